-- name: files_read
-- Per device: files whose first record is not older than a moment, and the records that were read of them.
SELECT device,
       count(*) FILTER (WHERE ingested_at IS NOT NULL)::bigint AS files,
       coalesce(sum(records), 0)::bigint AS records
  FROM headrace.telemetry_file
 WHERE stamp >= %(since)s
 GROUP BY device

-- name: rows_arrived
-- Per device: rows of the archive that are not older than a moment.
SELECT device, count(*) AS records
  FROM public.telem
 WHERE ts >= %(since)s
 GROUP BY device
