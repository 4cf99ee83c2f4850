-- name: list_jobs
-- Every job with its schedule, its state and what became of it; of hdbpp's jobs the procedure as it is now.
-- slots: hdbpp
SELECT j.job_id, j.origin, j.name, coalesce(h.proc_name, concat_ws('.', j.proc_schema, j.proc_name)) AS procedure,
       coalesce(h.config, j.config) AS config, j.scheduled AND j.gone_at IS NULL AS scheduled, j.schedule_interval::text, j.cron,
       j.run_at, j.after_job, j.fixed_schedule, j.timezone, j.initial_start, j.run_window, j.after_failure,
       j.max_runtime::text, j.max_retries, j.retry_period::text, j.atomic, j.on_lost, j.missed, j.overlap, j.lock_group,
       j.priority, j.owner, j.run_as, s.next_start, s.problem, s.waits_for, s.consecutive_failures, s.last_run_started_at,
       s.last_successful_finish, s.last_run_success, extract(epoch FROM s.last_run_duration)::float8 AS last_seconds,
       s.total_runs, s.total_successes, s.total_failures, s.total_crashes,
       (SELECT r.run_id FROM headrace.job_run r WHERE r.job_id = j.job_id AND r.state = 'running') AS running
  FROM headrace.job j
  LEFT JOIN headrace.job_state s USING (job_id)
  LEFT JOIN {hdbpp} h ON j.origin = 'hdbpp' AND h.job_id = j.job_id
 WHERE (%(job)s::bigint IS NULL OR j.job_id = %(job)s)
   AND (%(gone)s OR j.gone_at IS NULL)
 ORDER BY j.job_id

-- name: hdbpp_jobs
-- The jobs of hdbpp's table, in the order in which a drop-in run takes them.
SELECT job_id FROM headrace.job WHERE origin = 'hdbpp' AND gone_at IS NULL ORDER BY job_id

-- name: job_exists
-- Whether there is such a job.
SELECT EXISTS (SELECT FROM headrace.job WHERE job_id = %(job)s AND gone_at IS NULL)

-- name: follows_itself
-- Whether the jobs that a job follows lead back to it.
WITH RECURSIVE before (job_id) AS (
    SELECT after_job FROM headrace.job WHERE job_id = %(job)s AND after_job IS NOT NULL
     UNION
    SELECT j.after_job FROM headrace.job j JOIN before b ON j.job_id = b.job_id WHERE j.after_job IS NOT NULL
)
SELECT EXISTS (SELECT FROM before WHERE job_id = %(job)s)

-- name: add_job
-- A job of our own.
-- slots: columns, values
INSERT INTO headrace.job ({columns}) VALUES ({values}) RETURNING job_id

-- name: alter_job
-- Change a job.
-- slots: assignments
UPDATE headrace.job SET {assignments} WHERE job_id = %(job_id)s RETURNING job_id

-- name: delete_job
-- A job goes; its history stays.
DELETE FROM headrace.job WHERE job_id = %(job)s AND origin = 'headrace' RETURNING job_id

-- name: origin_of
-- Whose job it is.
SELECT origin FROM headrace.job WHERE job_id = %(job)s

-- name: start_at
-- A job that is scheduled and not live is due at this moment, whatever its schedule says.
UPDATE headrace.job_state s SET next_start = %(at)s, slot = %(at)s, reason = 'schedule', replan = false
  FROM headrace.job j
 WHERE s.job_id = %(job)s AND j.job_id = s.job_id AND j.scheduled AND j.gone_at IS NULL AND s.live_run IS NULL

-- name: may_execute
-- Whether a role, or this login, may execute a routine, and whether this login may become that role.
SELECT has_function_privilege(coalesce(%(role)s, current_user), %(oid)s::bigint::oid, 'EXECUTE'),
       pg_has_role(current_user, coalesce(%(role)s, current_user),
                   CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)

-- name: role_exists
-- Whether there is such a role.
SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = %(role)s)

-- name: history
-- Runs, newest first.
SELECT run_id, job_id, job_name, scheduled_for, attempt, reason, requested_by, state, queued_at, started_at, finished_at,
       extract(epoch FROM coalesce(finished_at, clock_timestamp()) - started_at)::float8 AS seconds,
       host, worker, backend_pid, control_run, proc_schema, proc_name, run_as, config, body_hash, inner_transactions,
       status_message, sqlstate, message, detail, hint, context, notices, cancel_requested_by
  FROM headrace.job_run
 WHERE (%(job)s::bigint IS NULL OR job_id = %(job)s)
   AND (%(run)s::bigint IS NULL OR run_id = %(run)s)
   AND (NOT %(failed)s OR state IN ('failed', 'lost', 'timeout'))
 ORDER BY run_id DESC
 LIMIT %(limit)s

-- name: cancel_runs
-- A person wants one run, or every live run of a job, to end; queued ones end at once.
UPDATE headrace.job_run r
   SET cancel_requested_at = clock_timestamp(), cancel_requested_by = %(by)s
 WHERE r.state IN ('queued', 'running') AND (r.run_id = %(run)s OR r.job_id = %(job)s)
RETURNING r.run_id, r.job_id, r.state, r.backend_pid, r.backend_start

-- name: pause
-- Nothing of this database, or of one job, starts until then.
INSERT INTO headrace.quiet_period (job_id, starts_at, ends_at, made_by, reason)
VALUES (%(job)s, coalesce(%(starts)s::timestamptz, now()), coalesce(%(ends)s::timestamptz, 'infinity'), %(by)s, %(reason)s)

-- name: resume
-- Take back what was paused from now on.
DELETE FROM headrace.quiet_period
 WHERE ends_at > now() AND (job_id = %(job)s OR (job_id IS NULL AND %(job)s::bigint IS NULL))

-- name: pauses
-- Quiet periods that hold or will hold.
SELECT job_id, starts_at, CASE WHEN isfinite(ends_at) THEN ends_at END AS ends_at, made_by, reason
  FROM headrace.quiet_period
 WHERE ends_at > now()
 ORDER BY starts_at, id

-- name: forget_runs
-- History beyond its retention: too old, or too many of one job; in portions.
DELETE FROM headrace.job_run
 WHERE run_id IN (
        SELECT run_id FROM (
            SELECT run_id, finished_at, row_number() OVER (PARTITION BY job_id ORDER BY run_id DESC) AS place
              FROM headrace.job_run WHERE finished_at IS NOT NULL) r
         WHERE r.finished_at < now() - %(older)s::interval OR r.place > %(most)s
         LIMIT 50000)

-- name: summary
-- What a database's jobs are doing, and which need somebody.
SELECT (SELECT count(*) FROM headrace.job WHERE gone_at IS NULL) AS jobs,
       (SELECT count(*) FROM headrace.job WHERE gone_at IS NULL AND scheduled) AS scheduled,
       (SELECT count(*) FROM headrace.job_run WHERE state = 'queued') AS queued,
       (SELECT count(*) FROM headrace.job_run WHERE state = 'running') AS running,
       (SELECT count(*) FROM headrace.job_state WHERE next_start < now() - interval '60 seconds') AS overdue,
       (SELECT min(next_start) FROM headrace.job_state WHERE next_start IS NOT NULL) AS next_start,
       (SELECT count(*) FROM headrace.alert WHERE done_at IS NULL) AS alerts_waiting

-- name: troubles
-- Jobs that need somebody: failing in a row, disabled by failures, wrongly scheduled, or silent for too long.
SELECT j.job_id, j.name, s.problem, s.consecutive_failures, j.scheduled, s.last_successful_finish,
       CASE WHEN s.problem IS NOT NULL THEN 'misconfigured'
            WHEN NOT j.scheduled AND s.consecutive_failures > 0 THEN 'disabled'
            WHEN s.consecutive_failures > 0 THEN 'failing'
            ELSE 'late' END AS trouble,
       (SELECT r.message FROM headrace.job_run r
         WHERE r.job_id = j.job_id AND r.state IN ('failed', 'timeout', 'lost') ORDER BY r.run_id DESC LIMIT 1) AS message
  FROM headrace.job j
  JOIN headrace.job_state s USING (job_id)
 WHERE j.gone_at IS NULL
   AND (s.problem IS NOT NULL OR s.consecutive_failures > 0
        OR (j.scheduled AND j.alert_after IS NOT NULL
            AND coalesce(s.last_successful_finish, j.created_at) < now() - j.alert_after))
 ORDER BY j.job_id
 LIMIT %(limit)s

-- name: run_outcomes
-- How some runs stand.
SELECT run_id, state, message FROM headrace.job_run WHERE run_id = ANY(%(ids)s)

-- name: job_lines
-- Jobs for a page and for a scraper: those in trouble first, then those that run, then by their next start.
WITH quiet AS MATERIALIZED (
    SELECT job_id, coalesce(reason, 'quiet period of ' || made_by) AS reason
      FROM headrace.quiet_period
     WHERE starts_at <= now() AND ends_at > now()
), line AS (
    SELECT j.job_id, s.next_start, s.last_finish, r.started_at AS running_since,
           CASE WHEN s.problem IS NOT NULL THEN 'misconfigured'
                WHEN NOT j.scheduled AND s.consecutive_failures > 0 THEN 'disabled'
                WHEN s.consecutive_failures > 0 THEN 'failing'
                WHEN j.scheduled AND coalesce(s.last_successful_finish, j.created_at) < now() - j.alert_after THEN 'late'
                -- Where nothing may start, being due is no trouble.
                WHEN s.next_start < now() - interval '60 seconds' AND NOT %(read_only)s
                     AND NOT EXISTS (SELECT FROM quiet q WHERE q.job_id IS NULL OR q.job_id = j.job_id) THEN 'overdue'
           END AS trouble
      FROM headrace.job j
      JOIN headrace.job_state s USING (job_id)
      LEFT JOIN headrace.job_run r ON r.job_id = j.job_id AND r.state = 'running'
     WHERE j.gone_at IS NULL
), placed AS (
    SELECT job_id, trouble, running_since,
           row_number() OVER (ORDER BY trouble IS NULL, CASE WHEN trouble IS NOT NULL THEN last_finish END DESC NULLS FIRST,
                                       running_since, next_start, job_id) AS place,
           -- A scraper's choice must not change with every start, or each job's history would have holes.
           row_number() OVER (ORDER BY trouble IS NULL, job_id) AS steady_place
      FROM line
)
SELECT p.place, p.steady_place <= %(measured)s AS is_measured, p.trouble, p.running_since,
       extract(epoch FROM now() - p.running_since)::float8 AS running_seconds,
       j.job_id, j.origin, j.name, concat_ws('.', j.proc_schema, j.proc_name) AS procedure, j.scheduled,
       j.schedule_interval::text AS schedule_interval, j.cron, j.run_at, j.after_job, j.fixed_schedule, j.timezone,
       s.next_start, extract(epoch FROM now() - s.next_start)::float8 AS due_seconds, s.live_run, s.problem, s.waits_for,
       s.consecutive_failures, s.last_run_started_at, s.last_successful_finish, s.last_run_success,
       extract(epoch FROM s.last_run_duration)::float8 AS last_seconds, s.total_runs, s.total_successes, s.total_failures,
       (SELECT q.reason FROM quiet q WHERE q.job_id = j.job_id OR q.job_id IS NULL LIMIT 1) AS quiet,
       CASE WHEN s.consecutive_failures > 0
            THEN (SELECT r.message FROM headrace.job_run r
                   WHERE r.job_id = j.job_id AND r.state IN ('failed', 'timeout', 'lost') ORDER BY r.run_id DESC LIMIT 1)
            ELSE (SELECT r.message FROM headrace.job_run r
                   WHERE r.job_id = j.job_id AND r.finished_at IS NOT NULL ORDER BY r.run_id DESC LIMIT 1)
       END AS message
  FROM placed p
  JOIN headrace.job j USING (job_id)
  JOIN headrace.job_state s USING (job_id)
 WHERE p.place <= %(shown)s OR p.steady_place <= %(measured)s
 ORDER BY p.place

-- name: hdbpp_routines
-- What rows of postprocessing_jobs call, as it stands there now.
SELECT job_id, proc_name FROM public.postprocessing_jobs WHERE job_id = ANY(%(ids)s)

-- name: count_troubles
-- How many jobs need somebody, by the kind of trouble; those that failures have disabled are failing, too.
SELECT count(*) FILTER (WHERE s.consecutive_failures > 0) AS failing,
       count(*) FILTER (WHERE s.consecutive_failures > 0 AND NOT j.scheduled) AS disabled,
       count(*) FILTER (WHERE s.problem IS NOT NULL) AS misconfigured,
       count(*) FILTER (WHERE j.scheduled AND coalesce(s.last_successful_finish, j.created_at) < now() - j.alert_after)
           AS late
  FROM headrace.job j
  JOIN headrace.job_state s USING (job_id)
 WHERE j.gone_at IS NULL

-- name: newest_failures
-- The newest runs that did not end well, out of the newest hundred thousand: a busy history is not read to its end.
SELECT run_id, job_id, job_name, state, attempt, scheduled_for, started_at, finished_at,
       extract(epoch FROM finished_at - started_at)::float8 AS seconds, host, sqlstate, message
  FROM headrace.job_run
 WHERE state IN ('failed', 'lost', 'timeout')
   AND run_id > (SELECT max(run_id) FROM headrace.job_run) - 100000
 ORDER BY run_id DESC
 LIMIT %(limit)s
