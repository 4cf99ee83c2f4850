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

-- name: forget_failed_rewrites
-- What failed in an earlier demonstration must not keep its plan from choosing the table again.
DELETE FROM headrace.repack WHERE plan = %(plan)s AND state = 'failed'

-- name: create_readings
-- A table with an identity, an index, a comment, a grant and a view, the ledger of its changes, and procedures about both.
CREATE SCHEMA IF NOT EXISTS demo;

DROP VIEW IF EXISTS demo.warm_reading;
DROP TABLE IF EXISTS demo.readings, demo.readings_ledger;

CREATE TABLE demo.readings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device text NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    value integer NOT NULL,
    note text
);
CREATE INDEX readings_taken ON demo.readings (device, taken_at);
COMMENT ON TABLE demo.readings IS 'What the demonstration has rewritten.';
CREATE VIEW demo.warm_reading AS SELECT r.id, r.device, r.value FROM demo.readings AS r WHERE r.value >= 500;
GRANT SELECT ON demo.readings TO PUBLIC;

-- In the transaction of each change: the value that it left, NULL for a row that it deleted.
CREATE TABLE demo.readings_ledger (
    change bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id bigint NOT NULL,
    value integer
);

CREATE OR REPLACE PROCEDURE demo.bloat_readings(total integer) LANGUAGE plpgsql AS $body$
BEGIN
    INSERT INTO demo.readings (device, value, note)
    SELECT 'device ' || mod(n, 8), mod(n, 1000), repeat(md5(n::text), 3)
      FROM generate_series(1, total) AS n;
    -- Twice: each old version of a row stays in its page.
    UPDATE demo.readings SET value = value + 1 WHERE mod(id, 10) <> 0;
    UPDATE demo.readings SET value = value + 1, taken_at = clock_timestamp() WHERE mod(id, 10) <> 0;
    INSERT INTO demo.readings_ledger (id, value) SELECT r.id, r.value FROM demo.readings AS r;
    ANALYZE demo.readings;
END
$body$;

CREATE OR REPLACE PROCEDURE demo.change_readings(OUT changes bigint) LANGUAGE plpgsql AS $body$
DECLARE
    newest bigint := (SELECT max(r.id) FROM demo.readings AS r);
BEGIN
    -- Even numbers are updated, odd ones deleted: no row is touched twice by one statement.
    WITH updated AS (
        UPDATE demo.readings
           SET value = value + 1, taken_at = clock_timestamp()
         WHERE id IN (SELECT 2 * (1 + floor(random() * newest / 2)::bigint) FROM generate_series(1, 40))
        RETURNING id, value
    ), added AS (
        INSERT INTO demo.readings (device, value, note)
        SELECT 'device ' || n, n, 'added while the table was rewritten, or before, or after' FROM generate_series(1, 5) AS n
        RETURNING id, value
    ), gone AS (
        DELETE FROM demo.readings
         WHERE id IN (SELECT 2 * floor(random() * newest / 2)::bigint + 1 FROM generate_series(1, 5))
        RETURNING id
    )
    INSERT INTO demo.readings_ledger (id, value)
    SELECT id, value FROM updated UNION ALL SELECT id, value FROM added UNION ALL SELECT id, NULL FROM gone;
    GET DIAGNOSTICS changes = ROW_COUNT;
END
$body$;

CREATE OR REPLACE PROCEDURE demo.compare_readings(OUT all_rows bigint, OUT differing bigint)
LANGUAGE plpgsql AS $body$
BEGIN
    SELECT count(r.id), count(*) FILTER (WHERE r.value IS DISTINCT FROM l.value)
      INTO all_rows, differing
      FROM demo.readings AS r
      FULL JOIN (SELECT DISTINCT ON (n.id) n.id, n.value
                   FROM demo.readings_ledger AS n
                  ORDER BY n.id, n.change DESC) AS l ON l.id = r.id;
END
$body$

-- name: bloat_readings
-- Fill the table, and leave two dead versions of most rows in it.
CALL demo.bloat_readings(%(rows)s)

-- name: change_readings
-- Change some rows of the table, and note it in the ledger; how many.
CALL demo.change_readings(NULL)

-- name: compare_readings
-- How many rows the table has, and how many differ from what the ledger says of them.
CALL demo.compare_readings(NULL, NULL)

-- name: attached
-- What hangs on a table: its comment, indexes, what others may do with it, and the views that read it; as it is defined.
WITH t AS (SELECT c.oid, c.relowner, c.relacl FROM pg_class AS c WHERE c.oid = to_regclass(%(table)s))
SELECT 'view ' || v.oid::regclass::text AS what, pg_get_viewdef(v.oid) AS definition
  FROM pg_class AS v
 WHERE EXISTS (SELECT
                 FROM t
                 JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
                 JOIN pg_rewrite AS w ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
                WHERE w.ev_class = v.oid)
UNION ALL
SELECT 'grant ' || a.privilege_type || ' to ' || CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, ''
  FROM t, aclexplode(t.relacl) AS a
 WHERE a.grantee <> t.relowner
UNION ALL
SELECT 'index ' || i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)
  FROM t
  JOIN pg_index AS i ON i.indrelid = t.oid
UNION ALL
SELECT 'comment', obj_description(t.oid, 'pg_class')
  FROM t
 WHERE obj_description(t.oid, 'pg_class') IS NOT NULL

-- name: last_day
-- The last day of which a mission has a file; NULL if it has none.
SELECT max(f.day)
  FROM headrace.product_file AS f
  JOIN headrace.mission AS m ON m.id = f.mission_id
 WHERE m.name = %(mission)s

-- name: mission_files
-- The files of a mission for days from one on.
SELECT f.id, p.name AS product, f.day, f.filename, f.place, f.state, f.is_newest, f.sha256, f.inputs
  FROM headrace.product_file AS f
  JOIN headrace.product AS p ON p.id = f.product_id
  JOIN headrace.mission AS m ON m.id = f.mission_id
 WHERE m.name = %(mission)s AND f.day >= %(since)s
 ORDER BY f.day, f.id

-- name: builds
-- Of a mission's outputs for days from one on: runs that ended well, those of them that repaired, those that failed, those
-- that had the same inputs and the same code as another one, and outputs that are due.
WITH run AS (
    SELECT b.state, b.reason IN ('MISSING_OUTPUT', 'CORRUPT_OUTPUT') AS repairs,
           (b.process_id, b.day, b.key, b.inputs, b.code_id)::text AS what
      FROM headrace.product_build AS b
      JOIN headrace.process AS p ON p.id = b.process_id
      JOIN headrace.mission AS m ON m.id = p.mission_id
     WHERE m.name = %(mission)s AND b.day >= %(since)s
), ended AS (
    SELECT r.repairs, r.what FROM run AS r WHERE r.state IN ('succeeded', 'unchanged')
)
SELECT count(*) AS built,
       count(*) FILTER (WHERE e.repairs) AS repaired,
       count(*) FILTER (WHERE NOT e.repairs) - count(DISTINCT e.what) FILTER (WHERE NOT e.repairs) AS repeated,
       (SELECT count(*) FROM run AS r WHERE r.state NOT IN ('running', 'succeeded', 'unchanged')) AS failed,
       (SELECT count(*)
          FROM headrace.product_slot AS s
          JOIN headrace.process AS p ON p.id = s.process_id
          JOIN headrace.mission AS m ON m.id = p.mission_id
         WHERE m.name = %(mission)s AND s.day >= %(since)s AND s.due_at IS NOT NULL) AS due
  FROM ended AS e
