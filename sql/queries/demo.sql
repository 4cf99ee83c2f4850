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

-- name: create_procedures
-- The demonstration's own schema: a table, a procedure that fills it, and one that fails as often as its config says.
CREATE SCHEMA IF NOT EXISTS demo;

CREATE TABLE IF NOT EXISTS demo.summary (
    device text PRIMARY KEY,
    records bigint NOT NULL,
    newest timestamptz NOT NULL
);

CREATE OR REPLACE PROCEDURE demo.summarise(job_id integer, config jsonb) LANGUAGE plpgsql AS $body$
DECLARE
    all_records bigint;
    devices bigint;
BEGIN
    WITH written AS (
        INSERT INTO demo.summary AS s (device, records, newest)
        SELECT t.device, count(*), max(t.ts)
          FROM public.telem AS t
         GROUP BY t.device
        ON CONFLICT (device) DO UPDATE SET records = excluded.records, newest = excluded.newest
        RETURNING s.records
    )
    SELECT coalesce(sum(w.records), 0), count(*) INTO all_records, devices FROM written AS w;
    RAISE NOTICE '%% records of %% devices', all_records, devices;
END
$body$;

CREATE OR REPLACE PROCEDURE demo.flaky(job_id integer, config jsonb) LANGUAGE plpgsql AS $body$
DECLARE
    -- What a routine writes before it fails is rolled back; the history of its job is not.
    failures bigint := (SELECT s.total_failures FROM headrace.job_stats AS s WHERE s.job_id = flaky.job_id);
BEGIN
    IF failures < (config ->> 'failures')::integer THEN
        RAISE EXCEPTION 'the demonstration lets this run fail, %% of %%', failures + 1, config ->> 'failures'
            USING HINT = 'Nothing is to be done: it is tried again soon.';
    END IF;
    RAISE NOTICE 'works, after %% failures', failures;
END
$body$

-- name: delete_jobs
-- Jobs of an earlier demonstration in this database go; their history stays.
SELECT headrace.delete_job(job_id) FROM headrace.jobs WHERE proc_schema = 'demo'

-- name: add_job
-- A procedure becomes a job that starts now, and after its first failure again when the retry period is over; its number.
SELECT job_id
  FROM headrace.alter_job(
           headrace.add_job(%(procedure)s, %(every)s::interval, config => %(config)s::jsonb, job_name => %(name)s),
           retry_period => %(retry)s::interval)

-- name: job_outcomes
-- Per job: its runs and slots that are over, what the newest run said, and the slots of its grid without any record.
WITH ended AS (
    SELECT r.job_id,
           count(*) FILTER (WHERE r.state <> 'skipped') AS runs,
           count(*) FILTER (WHERE r.state = 'succeeded') AS succeeded,
           count(*) FILTER (WHERE r.state = 'succeeded' AND r.started_at >= %(since)s) AS succeeded_since,
           count(*) FILTER (WHERE r.state = 'skipped') AS skipped,
           count(*) FILTER (WHERE r.reason = 'retry') AS retries,
           (array_agg(coalesce(r.message, regexp_replace(r.notices ->> -1, '^NOTICE: +', ''), r.state)
                      ORDER BY r.run_id DESC) FILTER (WHERE r.state <> 'skipped'))[1] AS last,
           min(r.scheduled_for) FILTER (WHERE r.reason <> 'retry') AS first_slot,
           max(r.scheduled_for) FILTER (WHERE r.reason <> 'retry') AS last_slot
      FROM headrace.job_run AS r
     WHERE r.job_id = ANY(%(jobs)s) AND r.state NOT IN ('queued', 'running')
     GROUP BY r.job_id
)
SELECT e.job_id, e.runs, e.succeeded, e.succeeded_since, e.skipped, e.retries, coalesce(e.last, 'skipped') AS last,
       ARRAY(SELECT slot
               FROM generate_series(e.first_slot, e.last_slot, j.schedule_interval) AS slot
              WHERE NOT EXISTS (SELECT FROM headrace.job_run AS r
                                 WHERE r.job_id = e.job_id AND r.scheduled_for = slot)
              ORDER BY slot) AS missing
  FROM ended AS e
  JOIN headrace.job AS j USING (job_id)

-- name: create_devices
-- What the instrument changes, the day partitions that PgQ's events go into, and procedures about both; quick ticks.
CREATE SCHEMA IF NOT EXISTS demo;

CREATE TABLE IF NOT EXISTS demo.device (
    device text PRIMARY KEY,
    state text NOT NULL,
    files bigint NOT NULL,
    records bigint NOT NULL,
    bytes bigint NOT NULL,
    changed_at timestamptz NOT NULL
);

CREATE TABLE IF NOT EXISTS demo.device_by_day (
    day date NOT NULL,
    device text NOT NULL,
    state varchar(10) NOT NULL,
    files bigint NOT NULL,
    records bigint NOT NULL,
    bytes bigint NOT NULL,
    changed_at timestamptz NOT NULL,
    arrived_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (device, day)
) PARTITION BY RANGE (day);

-- An earlier demonstration has widened it.
ALTER TABLE demo.device_by_day ALTER COLUMN state TYPE varchar(10) USING left(state, 10);

CREATE OR REPLACE PROCEDURE demo.write_devices(devices jsonb) LANGUAGE plpgsql AS $body$
BEGIN
    INSERT INTO demo.device AS d (device, state, files, records, bytes, changed_at)
    SELECT r.device, r.state, r.files, r.records, r.bytes, clock_timestamp()
      FROM jsonb_to_recordset(devices) AS r(device text, state text, files bigint, records bigint, bytes bigint)
    ON CONFLICT (device) DO UPDATE
       SET state = excluded.state, files = excluded.files, records = excluded.records, bytes = excluded.bytes,
           changed_at = excluded.changed_at;
END
$body$;

CREATE OR REPLACE PROCEDURE demo.compare_devices(OUT devices bigint, OUT differing bigint, OUT slowest interval)
LANGUAGE plpgsql AS $body$
BEGIN
    SELECT count(*),
           count(*) FILTER (WHERE to_jsonb(s) IS DISTINCT FROM to_jsonb(t) - 'day' - 'arrived_at'),
           -- What was replayed came late on purpose.
           max(t.arrived_at - t.changed_at) FILTER (WHERE t.device <> 'dome')
      INTO devices, differing, slowest
      FROM demo.device AS s
      FULL JOIN (SELECT DISTINCT ON (d.device) d.*
                   FROM demo.device_by_day AS d
                  ORDER BY d.device, d.day DESC) AS t ON t.device = s.device;
END
$body$;

SELECT pgq.set_queue_config('demo', 'ticker_max_lag', '1 second')

-- name: write_devices
-- The devices as the instrument has them now: rows as a JSON array.
CALL demo.write_devices(%(rows)s::jsonb)

-- name: compare_devices
-- How many devices there are, how many differ between the source and the target's newest day, and how late rows came.
CALL demo.compare_devices(NULL, NULL, NULL)

-- name: widen_state
-- What mends the event that fails on purpose.
ALTER TABLE demo.device_by_day ALTER COLUMN state TYPE text
