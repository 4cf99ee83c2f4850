-- name: lock_file
-- One reader per file: held by the session that commits the rows, so it cannot outlive it.
SELECT pg_try_advisory_lock(%(key)s)

-- name: unlock_file
-- The file is free for the next reader.
SELECT pg_advisory_unlock(%(key)s)

-- name: checkpoint
-- How far a file was read.
SELECT device, stamp, state, volume, inode, size_bytes, mtime_ns, raw_offset, skip_bytes, stream_offset,
       head_bytes, head_hash, tail_bytes, tail_hash, records, dead_letters, accepted_letters, error
  FROM headrace.telemetry_file
 WHERE host = %(host)s AND path = %(path)s

-- name: save_checkpoint
-- How far a file has been read now; commits with the rows.
INSERT INTO headrace.telemetry_file
       (host, path, device, stamp, state, volume, inode, size_bytes, mtime_ns, raw_offset, skip_bytes,
        stream_offset, head_bytes, head_hash, tail_bytes, tail_hash, records, dead_letters, accepted_letters, error,
        ingested_at)
VALUES (%(host)s, %(path)s, %(device)s, %(stamp)s, %(state)s, %(volume)s, %(inode)s, %(size_bytes)s, %(mtime_ns)s,
        %(raw_offset)s, %(skip_bytes)s, %(stream_offset)s, %(head_bytes)s, %(head_hash)s, %(tail_bytes)s,
        %(tail_hash)s, %(records)s, %(dead_letters)s, %(accepted_letters)s, %(error)s, clock_timestamp())
ON CONFLICT (host, path) DO UPDATE
   SET device = excluded.device, stamp = excluded.stamp, state = excluded.state, volume = excluded.volume,
       inode = excluded.inode, size_bytes = excluded.size_bytes, mtime_ns = excluded.mtime_ns,
       raw_offset = excluded.raw_offset, skip_bytes = excluded.skip_bytes,
       stream_offset = excluded.stream_offset, head_bytes = excluded.head_bytes, head_hash = excluded.head_hash,
       tail_bytes = excluded.tail_bytes, tail_hash = excluded.tail_hash, records = excluded.records,
       dead_letters = excluded.dead_letters, accepted_letters = excluded.accepted_letters, error = excluded.error, ingested_at = excluded.ingested_at,
       due_at = NULL, sent_at = NULL

-- name: fail_file
-- A file that cannot be read at all waits for its due time, or for a change of size or time.
INSERT INTO headrace.telemetry_file (host, path, device, stamp, state, error, due_at)
VALUES (%(host)s, %(path)s, %(device)s, %(stamp)s, 'failed', %(error)s, %(due_at)s)
ON CONFLICT (host, path) DO UPDATE
   SET state = 'failed', error = excluded.error, due_at = excluded.due_at, sent_at = NULL

-- name: forget_pending
-- A file that is gone is not waiting any more; what was read of it stays.
UPDATE headrace.telemetry_file
   SET state = CASE WHEN ingested_at IS NULL THEN 'failed' ELSE 'done' END, error = 'the file is gone', sent_at = NULL
 WHERE host = %(host)s AND path = %(path)s AND state = 'pending'

-- name: forget_folder_of
-- The folder of a file that is gone is looked at again, whatever it looked like: the file may come back as it was.
DELETE FROM headrace.inventory_folder WHERE host = %(host)s AND folder = regexp_replace(%(path)s, '/[^/]*$', '')

-- name: same_inode
-- Checkpoints of a file that may have carried another name before.
SELECT path, head_bytes, head_hash, tail_bytes, tail_hash, raw_offset
  FROM headrace.telemetry_file
 WHERE host = %(host)s AND volume = %(volume)s AND inode = %(inode)s AND path <> %(path)s AND head_bytes > 0

-- name: move_checkpoint
-- A renamed file keeps what was read under its old name.
UPDATE headrace.telemetry_file
   SET path = %(path)s
 WHERE host = %(host)s AND path = %(old_path)s
   AND NOT EXISTS (SELECT FROM headrace.telemetry_file t
                    WHERE t.host = %(host)s AND t.path = %(path)s AND t.records > 0)

-- name: clear_new_name
-- The bare row that the inventory made for the new name gives way.
DELETE FROM headrace.telemetry_file WHERE host = %(host)s AND path = %(path)s AND records = 0

-- name: clear_letters
-- Letters of a former file of the new name.
DELETE FROM headrace.dead_letter WHERE host = %(host)s AND path = %(path)s

-- name: move_letters
-- The dead letters follow their file.
UPDATE headrace.dead_letter SET path = %(path)s WHERE host = %(host)s AND path = %(old_path)s

-- name: clear_origin
-- The row that a scan made for the new name of a renamed file gives way to its old row.
DELETE FROM public.file_origins o
 WHERE o.origin_host = %(host)s AND o.origin_path = %(path)s
   AND EXISTS (SELECT FROM public.file_origins x
                WHERE x.origin_host = %(host)s AND x.origin_path = %(old_path)s)

-- name: rename_origin
-- The old row takes the new name, and its ingest time and replicas with it.
UPDATE public.file_origins
   SET origin_path = %(path)s, missing_sights = 0
 WHERE origin_host = %(host)s AND origin_path = %(old_path)s

-- name: copy_checkpoint
-- A hard link has nothing new: it starts where the other name stands.
INSERT INTO headrace.telemetry_file
       (host, path, device, stamp, state, volume, inode, size_bytes, mtime_ns, raw_offset, skip_bytes, stream_offset,
        head_bytes, head_hash, tail_bytes, tail_hash, ingested_at)
SELECT host, %(path)s, device, stamp, state, volume, inode, size_bytes, mtime_ns, raw_offset, skip_bytes, stream_offset,
       head_bytes, head_hash, tail_bytes, tail_hash, now()
  FROM headrace.telemetry_file WHERE host = %(host)s AND path = %(old_path)s
ON CONFLICT (host, path) DO UPDATE
   SET device = excluded.device, stamp = excluded.stamp, state = excluded.state, volume = excluded.volume,
       inode = excluded.inode, size_bytes = excluded.size_bytes, mtime_ns = excluded.mtime_ns,
       raw_offset = excluded.raw_offset, skip_bytes = excluded.skip_bytes, stream_offset = excluded.stream_offset,
       head_bytes = excluded.head_bytes, head_hash = excluded.head_hash, tail_bytes = excluded.tail_bytes,
       tail_hash = excluded.tail_hash, ingested_at = excluded.ingested_at, sent_at = NULL

-- name: twins
-- The same file name on other hosts, to see whether it holds the same bytes.
SELECT host, path, head_bytes, head_hash
  FROM headrace.telemetry_file
 WHERE device = %(device)s AND stamp = %(stamp)s AND host <> %(host)s AND head_bytes > 0

-- name: record_event
-- Something happened to a file that a person may ask about later.
INSERT INTO headrace.file_event (host, path, event, detail)
VALUES (%(host)s, %(path)s, %(event)s, %(detail)s)

-- name: copy_telem
-- Rows that are new: straight into the table. A duplicate makes it fail as a whole.
COPY public.telem (device, ts, ts_ns, prio, ec, msg)
FROM STDIN WITH (FORMAT csv, DELIMITER E'\x02', QUOTE E'\x01')

-- name: create_stage
-- Rows that may be there already wait here for the check; emptied at every commit.
CREATE TEMPORARY TABLE IF NOT EXISTS headrace_stage (
    device text, ts timestamptz, ts_ns smallint, prio text, ec text, msg jsonb
) ON COMMIT DELETE ROWS

-- name: copy_stage
-- Rows that may be there already.
COPY pg_temp.headrace_stage (device, ts, ts_ns, prio, ec, msg)
FROM STDIN WITH (FORMAT csv, DELIMITER E'\x02', QUOTE E'\x01')

-- name: merge_stage
-- Only what is not there yet.
INSERT INTO public.telem (device, ts, ts_ns, prio, ec, msg)
SELECT device, ts, ts_ns, prio, ec, msg FROM pg_temp.headrace_stage
ON CONFLICT DO NOTHING

-- name: clear_stage
-- A second portion in the same transaction starts empty.
TRUNCATE pg_temp.headrace_stage

-- name: bury
-- A stretch of a file that is no record; read again, it is the same letter.
INSERT INTO headrace.dead_letter (host, path, start_byte, end_byte, reason, raw)
VALUES (%(host)s, %(path)s, %(start)s, %(end)s, %(reason)s, %(raw)s)
ON CONFLICT (host, path, start_byte, reason) DO UPDATE SET end_byte = excluded.end_byte, raw = excluded.raw

-- name: exhume
-- A file that is read anew starts without dead letters.
DELETE FROM headrace.dead_letter WHERE host = %(host)s AND path = %(path)s

-- name: read_by_xtelemdb
-- Files of a host that xtelemdb has read to their end, and that have no checkpoint of ours.
SELECT o.origin_path, t.ingested_at
  FROM public.file_origins o
  JOIN public.file_ingest_times t ON (t.origin_host, t.origin_path) = (o.origin_host, o.origin_path)
 WHERE o.origin_host = %(host)s AND t.ingested_at >= o.modification_time
   AND NOT EXISTS (SELECT FROM headrace.telemetry_file f WHERE f.host = o.origin_host AND f.path = o.origin_path)
 ORDER BY o.origin_path

-- name: exhume_from
-- What is read again from a byte on starts without dead letters.
DELETE FROM headrace.dead_letter WHERE host = %(host)s AND path = %(path)s AND start_byte >= %(before)s
   AND end_byte > %(before)s

-- name: count_letters
-- How many dead letters a file has.
SELECT count(*) FROM headrace.dead_letter WHERE host = %(host)s AND path = %(path)s

-- name: upsert_origin
-- What the inventory knows of a file that was just read.
INSERT INTO public.file_origins AS o
       (origin_host, origin_path, modification_time, creation_time, size_bytes, path_bytes)
VALUES (%(host)s, %(path)s, %(modified)s, %(created)s, %(size_bytes)s, %(path_bytes)s)
ON CONFLICT (origin_host, origin_path) DO UPDATE
   SET modification_time = excluded.modification_time, size_bytes = excluded.size_bytes, missing_sights = 0
 WHERE (o.modification_time, o.size_bytes, o.missing_sights)
       IS DISTINCT FROM (excluded.modification_time, excluded.size_bytes, 0::smallint)

-- name: upsert_ingest_time
-- The file was read to its present end.
INSERT INTO public.file_ingest_times (ts, device, ingested_at, origin_host, origin_path)
VALUES (%(stamp)s, %(device)s, now(), %(host)s, %(path)s)
ON CONFLICT (ts, device) DO UPDATE SET ingested_at = excluded.ingested_at

-- name: folder_digests
-- What a host's folders looked like at the last look.
SELECT folder, digest, files FROM headrace.inventory_folder WHERE host = %(host)s

-- name: create_sightings
-- Files seen in folders that changed.
CREATE TEMPORARY TABLE IF NOT EXISTS headrace_sighting (
    origin_path text COLLATE "C", modification_time timestamptz, creation_time timestamptz, size_bytes bigint,
    path_bytes bytea, mtime_ns bigint, device text, stamp timestamptz
) ON COMMIT DELETE ROWS

-- name: copy_sightings
-- Files seen in folders that changed; device is null for a file that is no telemetry.
COPY pg_temp.headrace_sighting
     (origin_path, modification_time, creation_time, size_bytes, path_bytes, mtime_ns, device, stamp)
FROM STDIN WITH (FORMAT csv, DELIMITER E'\x02', QUOTE E'\x01')

-- name: copy_origins
-- Files of a folder that was never seen before: straight into the table.
COPY public.file_origins (origin_host, origin_path, modification_time, creation_time, size_bytes, path_bytes)
FROM STDIN WITH (FORMAT csv, DELIMITER E'\x02', QUOTE E'\x01')

-- name: merge_sightings
-- New and changed files go into the inventory; unchanged rows are left alone.
INSERT INTO public.file_origins AS o
       (origin_host, origin_path, modification_time, creation_time, size_bytes, path_bytes)
SELECT %(host)s, origin_path, modification_time, creation_time, size_bytes, path_bytes FROM pg_temp.headrace_sighting
ON CONFLICT (origin_host, origin_path) DO UPDATE
   SET modification_time = excluded.modification_time, size_bytes = excluded.size_bytes, missing_sights = 0
 WHERE (o.modification_time, o.size_bytes, o.missing_sights)
       IS DISTINCT FROM (excluded.modification_time, excluded.size_bytes, 0::smallint)

-- name: mark_pending
-- Telemetry files whose size or time is not the one that was read.
INSERT INTO headrace.telemetry_file AS f (host, path, device, stamp, state, seen_size_bytes, seen_mtime_ns)
SELECT %(host)s, s.origin_path, s.device, s.stamp, 'pending', s.size_bytes, s.mtime_ns
  FROM pg_temp.headrace_sighting s
 WHERE s.device IS NOT NULL
ON CONFLICT (host, path) DO UPDATE
   SET state = 'pending', due_at = NULL,
       seen_size_bytes = excluded.seen_size_bytes, seen_mtime_ns = excluded.seen_mtime_ns
 WHERE f.state <> 'pending'
   AND (f.size_bytes, f.mtime_ns) IS DISTINCT FROM (excluded.seen_size_bytes, excluded.seen_mtime_ns)

-- name: save_folder
-- What a folder looks like now; commits with its files.
INSERT INTO headrace.inventory_folder (host, folder, digest, files, scanned_at)
SELECT %(host)s, f.folder, f.digest, f.files, now()
  FROM unnest(%(folders)s::text[], %(digests)s::bytea[], %(files)s::int[]) AS f (folder, digest, files)
ON CONFLICT (host, folder) DO UPDATE
   SET digest = excluded.digest, files = excluded.files, scanned_at = excluded.scanned_at

-- name: forget_folders
-- Folders that are gone.
DELETE FROM headrace.inventory_folder WHERE host = %(host)s AND folder = ANY(%(folders)s)

-- name: files_of_folder
-- What the inventory has directly in a folder, and how often each was missed.
SELECT origin_path, missing_sights
  FROM public.file_origins
 WHERE origin_host = %(host)s
   AND origin_path >= %(prefix)s AND origin_path < %(after)s
   AND position('/' IN substr(origin_path, length(%(prefix)s) + 1)) = 0

-- name: miss_files
-- Not on the disk at this look; missing after the second look in a row.
UPDATE public.file_origins
   SET missing_sights = least(missing_sights + 1, 2)
 WHERE origin_host = %(host)s AND origin_path = ANY(%(paths)s) AND missing_sights < 2
RETURNING origin_path, missing_sights

-- name: due_files
-- Telemetry files to read, oldest first, that no young message asks for already; they count as sent now.
UPDATE headrace.telemetry_file f
   SET sent_at = now(), state = 'pending'
  FROM (SELECT host, path
          FROM headrace.telemetry_file
         WHERE host = %(host)s
           AND (state = 'pending' OR (state = 'failed' AND due_at <= now()))
           AND (due_at IS NULL OR due_at <= now())
           AND (sent_at IS NULL OR sent_at < now() - %(older)s::interval)
         ORDER BY seen_mtime_ns
         LIMIT greatest(0, %(in_flight)s - (
               SELECT count(*) FROM headrace.telemetry_file s
                WHERE s.host = %(host)s AND s.state = 'pending' AND s.sent_at >= now() - %(older)s::interval))
           FOR UPDATE SKIP LOCKED) due
 WHERE f.host = due.host AND f.path = due.path
RETURNING f.path

-- name: due_hosts
-- Hosts whose folders were not looked at for the sweep interval and that no young message asks already; counted as sent.
INSERT INTO headrace.inventory_host AS h (host, sent_at)
SELECT name, now() FROM unnest(%(hosts)s::text[]) AS name
ON CONFLICT (host) DO UPDATE
   SET sent_at = now()
 WHERE (h.sent_at IS NULL OR h.sent_at < now() - %(interval)s::interval)
   AND (h.taken_at >= h.sent_at OR h.sent_at IS NULL OR h.sent_at < now() - %(older)s::interval)
RETURNING host

-- name: last_problems
-- What the last look at a host's folders could not read.
SELECT problems FROM headrace.inventory_host WHERE host = %(host)s

-- name: inventory_taken
-- The folders of a host were looked at.
INSERT INTO headrace.inventory_host AS h (host, taken_at, files, problems)
VALUES (%(host)s, clock_timestamp(), %(files)s, %(problems)s)
ON CONFLICT (host) DO UPDATE
   SET taken_at = excluded.taken_at, files = excluded.files, problems = excluded.problems

-- name: file_states
-- Telemetry files per host and state.
SELECT host, state, count(*) AS files FROM headrace.telemetry_file GROUP BY host, state ORDER BY host, state

-- name: oldest_pending
-- How long the oldest unread change of each host has been waiting, in seconds.
SELECT host, count(*) AS files,
       extract(epoch FROM now() - to_timestamp(min(seen_mtime_ns) / 1e9))::float8 AS lag_seconds
  FROM headrace.telemetry_file
 WHERE state = 'pending'
 GROUP BY host
 ORDER BY host

-- name: device_lag
-- Per device: its newest file and how long after its last change its records were in the database, in seconds.
WITH RECURSIVE device AS (  -- one index probe per device, however many files there are
    (SELECT f.device FROM headrace.telemetry_file f WHERE f.ingested_at IS NOT NULL ORDER BY f.device LIMIT 1)
    UNION ALL
    SELECT (SELECT f.device FROM headrace.telemetry_file f
             WHERE f.ingested_at IS NOT NULL AND f.device > d.device ORDER BY f.device LIMIT 1)
      FROM device d WHERE d.device IS NOT NULL
)
SELECT newest.*
  FROM device d
 CROSS JOIN LATERAL (
    SELECT f.device, f.host, f.path, f.state, f.records, f.ingested_at,
           greatest(0, extract(epoch FROM f.ingested_at - to_timestamp(f.mtime_ns / 1e9)))::float8 AS lag_seconds
      FROM headrace.telemetry_file f
     WHERE f.device = d.device AND f.ingested_at IS NOT NULL
     ORDER BY f.ingested_at DESC
     LIMIT 1) newest
 ORDER BY newest.device

-- name: lag_quantiles
-- From a file's last change to its commit, in seconds, over the files read since a moment.
SELECT count(*) AS files, coalesce(sum(records), 0)::bigint AS records, coalesce(sum(dead_letters), 0)::bigint AS dead,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY greatest(0, extract(epoch FROM ingested_at - to_timestamp(mtime_ns / 1e9))))::float8 AS p50,
       percentile_cont(0.99) WITHIN GROUP (ORDER BY greatest(0, extract(epoch FROM ingested_at - to_timestamp(mtime_ns / 1e9))))::float8 AS p99
  FROM headrace.telemetry_file
 WHERE ingested_at >= %(since)s

-- name: troubles
-- Files that a person has to look at, with the reason.
SELECT host, path, state, error, dead_letters
  FROM headrace.telemetry_file
 WHERE state IN ('damaged', 'failed')
 ORDER BY host, path
 LIMIT %(limit)s

-- name: accept_file
-- A person has looked at what could not be read, and nothing more is to be done about it.
UPDATE headrace.telemetry_file
   SET state = 'done', accepted_letters = dead_letters, due_at = NULL
 WHERE host = %(host)s AND path = %(path)s AND state IN ('damaged', 'failed')
RETURNING dead_letters

-- name: settled_files
-- Which of these files are in order now, whatever their runs say.
SELECT f.host || ':' || f.path
  FROM unnest(%(hosts)s::text[], %(paths)s::text[]) AS asked (host, path)
  JOIN headrace.telemetry_file f ON f.host = asked.host AND f.path = asked.path
 WHERE f.state IN ('done', 'open', 'cancelled')

-- name: dead_letters
-- The newest dead letters.
SELECT id, host, path, start_byte, end_byte, reason, seen_at
  FROM headrace.dead_letter
 ORDER BY id DESC
 LIMIT %(limit)s

-- name: missing_files
-- Files that two looks in a row did not find.
SELECT count(*) FROM public.file_origins WHERE missing_sights >= 2

-- name: inventory_problems
-- What the last look at each host's folders could not read.
SELECT host, taken_at, files, problems FROM headrace.inventory_host ORDER BY host
