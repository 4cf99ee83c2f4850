-- name: facts
-- What this database has: our tables, hdbpp's tables, whether it can be written, and its own clock.
SELECT to_regclass('headrace.job_run') IS NOT NULL AS is_set_up,
       to_regclass('public.postprocessing_jobs') IS NOT NULL AS has_hdbpp,
       to_regclass('public.postprocessing_jobs_stats') IS NOT NULL AS has_hdbpp_stats,
       to_regproc('headrace.add_job') IS NOT NULL AS has_facade,
       pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' AS is_read_only

-- name: create_hdbpp_jobs
-- The table that hdbpp-postprocessing reads its jobs from.
CREATE TABLE IF NOT EXISTS public.postprocessing_jobs (
    job_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    application_name text,
    proc_name text,
    config jsonb
)

-- name: create_hdbpp_stats
-- The table that hdbpp-postprocessing keeps its counters in.
CREATE TABLE IF NOT EXISTS public.postprocessing_jobs_stats (
    job_id bigint PRIMARY KEY REFERENCES public.postprocessing_jobs,
    last_run_started_at timestamptz,
    last_successful_finish timestamptz,
    last_run_status text,
    job_status text,
    last_run_duration interval,
    total_runs bigint,
    total_successes bigint,
    total_failures bigint
)

-- name: grant_schema
-- Let a role see the schema of the façade.
-- slots: role
GRANT USAGE ON SCHEMA headrace TO {role}

-- name: grant_facade
-- Let a role manage jobs of its own.
-- slots: role
GRANT EXECUTE ON ROUTINE headrace.add_job, headrace.alter_job, headrace.delete_job, headrace.run_job, headrace.start_job,
    headrace.cancel_run TO {role}

-- name: grant_orders
-- Let a role place orders at the façade's counter.
-- slots: role
GRANT SELECT, INSERT ON headrace.job_order TO {role}

-- name: may_become
-- Whether this login may run procedures as that role.
SELECT pg_has_role(current_user, %(role)s,
                   CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)

-- name: grant_role
-- Let this login run procedures as that role.
-- slots: role
GRANT {role} TO CURRENT_USER

-- name: grant_views
-- Let a role read what jobs there are and how they went.
-- slots: role
GRANT SELECT ON headrace.jobs, headrace.job_stats, headrace.job_errors, headrace.job_history TO {role}

-- name: try_look
-- One look at a database at a time; whoever comes second has nothing to do.
SELECT pg_try_advisory_xact_lock(%(key)s)

-- name: mirror_hdbpp
-- Bring headrace.job up to date with the rows of postprocessing_jobs that hdbpp's own filter selects.
WITH wanted AS MATERIALIZED (
    SELECT job_id, application_name FROM public.postprocessing_jobs WHERE application_name = 'HDB++ postprocessing'
), gone AS (
    UPDATE headrace.job j SET gone_at = now()
     WHERE j.origin = 'hdbpp' AND j.gone_at IS NULL
       AND NOT EXISTS (SELECT FROM wanted w WHERE w.job_id = j.job_id)
    RETURNING 1
), back AS (
    UPDATE headrace.job j SET gone_at = NULL
      FROM wanted w
     WHERE w.job_id = j.job_id AND j.origin = 'hdbpp' AND j.gone_at IS NOT NULL
    RETURNING 1
), fresh AS (
    INSERT INTO headrace.job (job_id, origin, name)
    SELECT w.job_id, 'hdbpp', w.application_name
      FROM wanted w
     WHERE NOT EXISTS (SELECT FROM headrace.job j WHERE j.job_id = w.job_id)
    ON CONFLICT (job_id) DO NOTHING
    RETURNING 1
)
SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM back), (SELECT count(*) FROM fresh)

-- name: lock_states
-- Lock the states of some jobs; those that somebody else holds come with the next look.
SELECT job_id FROM headrace.job_state WHERE job_id = ANY(%(ids)s) ORDER BY job_id FOR UPDATE SKIP LOCKED

-- name: lock_job
-- Lock one job, as whoever alters it does, before its state.
SELECT FROM headrace.job WHERE job_id = %(job)s FOR NO KEY UPDATE

-- name: lock_state
-- Lock the state of one job, and of those that follow it: whoever holds one keeps us waiting before we hold the run.
SELECT s.job_id
  FROM headrace.job_state s
 WHERE s.job_id = %(job)s OR s.job_id IN (SELECT j.job_id FROM headrace.job j WHERE j.after_job = %(job)s)
 ORDER BY s.job_id
   FOR UPDATE

-- name: job_rows
-- Definition and state of some jobs, whose states are locked already: a read in the locking statement could be stale.
SELECT j.job_id, j.origin, j.name, j.scheduled AND j.gone_at IS NULL AS scheduled, j.cron, j.run_at, j.after_job,
       j.fixed_schedule, j.timezone, j.initial_start, j.run_window, j.max_retries, j.retry_period,
       j.on_lost, j.missed, j.missed_cap, j.start_deadline, j.overlap, j.lock_group, j.created_at,
       (extract(year FROM j.schedule_interval)::int * 12 + extract(month FROM j.schedule_interval)::int) AS interval_months,
       extract(day FROM j.schedule_interval)::int AS interval_days,
       (extract(hour FROM j.schedule_interval)::bigint * 3600000000 + extract(minute FROM j.schedule_interval)::bigint * 60000000
        + extract(microseconds FROM j.schedule_interval)::bigint) AS interval_microseconds,
       s.next_start, s.slot, s.reason, s.attempt, s.live_run, s.catch_up_until, s.planned_at, s.last_slot, s.last_finish,
       s.consecutive_failures, s.waits_for, s.priority
  FROM headrace.job j
  JOIN headrace.job_state s USING (job_id)
 WHERE j.job_id = ANY(%(ids)s)

-- name: to_replan
-- Jobs whose definition changed since they were planned.
SELECT job_id FROM headrace.job_state WHERE replan ORDER BY job_id LIMIT %(limit)s

-- name: free_ended
-- Jobs whose live run was ended by others (cancelled in SQL, deleted): the next step of this look plans them.
UPDATE headrace.job_state s SET live_run = NULL, replan = true
 WHERE s.job_id IN (
        SELECT f.job_id FROM headrace.job_state f
         WHERE f.live_run IS NOT NULL
           AND NOT EXISTS (SELECT FROM headrace.job_run r
                            WHERE r.run_id = f.live_run AND r.state IN ('queued', 'running'))
           FOR UPDATE SKIP LOCKED)

-- name: unwanted
-- Queued runs that somebody has cancelled in SQL.
SELECT run_id, job_id, coalesce(cancel_requested_by, 'somebody')
  FROM headrace.job_run
 WHERE state = 'queued' AND cancel_requested_at IS NOT NULL
 ORDER BY run_id

-- name: set_plan
-- When this job is due next.
UPDATE headrace.job_state
   SET next_start = %(next_start)s, slot = %(slot)s, reason = %(reason)s, attempt = %(attempt)s,
       catch_up_until = %(catch_up_until)s, replan = false, planned_at = coalesce(planned_at, now()),
       problem = %(problem)s, waits_for = NULL
 WHERE job_id = %(job)s

-- name: planned_by_its_end
-- A job that is live: the end of its run plans it, by the definition as it is then.
UPDATE headrace.job_state SET replan = false, problem = NULL, planned_at = coalesce(planned_at, now()) WHERE job_id = %(job)s

-- name: due_jobs
-- Jobs whose time has come, the longest due first; out of the index alone.
SELECT job_id, next_start, priority
  FROM headrace.job_state
 WHERE next_start <= now()
 ORDER BY next_start
 LIMIT %(limit)s

-- name: live_counts
-- Queued and running runs of this database, and per lock group.
SELECT coalesce(lock_group, '') AS lock_group, count(*) AS live
  FROM headrace.job_run
 WHERE state IN ('queued', 'running') AND (state = 'running' OR sent_at IS NOT NULL)
 GROUP BY 1

-- name: group_limits
-- How many runs each lock group may have at once; one where nothing is said.
SELECT lock_group, max_running FROM headrace.job_limit

-- name: quiet_jobs
-- Jobs that must not start now, and until when; job_id 0 stands for all of this database.
SELECT coalesce(job_id, 0), max(least(ends_at, now() + interval '1 day')), bool_or(NOT isfinite(ends_at)),
       max(coalesce(reason, 'quiet period of ' || made_by))
  FROM headrace.quiet_period
 WHERE starts_at <= now() AND ends_at > now()
 GROUP BY 1

-- name: hold
-- A due job that cannot start yet waits a little; its slot stays.
UPDATE headrace.job_state SET next_start = %(until)s, waits_for = %(why)s WHERE job_id = %(job)s

-- name: queue_slot
-- The run of one slot; nothing if that slot has one already.
INSERT INTO headrace.job_run (job_id, scheduled_for, attempt, reason, job_name, lock_group, priority)
VALUES (%(job)s, %(slot)s, %(attempt)s, %(reason)s, %(name)s, %(lock_group)s, %(priority)s)
ON CONFLICT (job_id, scheduled_for) DO NOTHING
RETURNING run_id

-- name: skip_slots
-- Slots that never run, on record.
INSERT INTO headrace.job_run (job_id, scheduled_for, reason, state, finished_at, job_name, message)
SELECT %(job)s, slot, 'schedule', 'skipped', clock_timestamp(), %(name)s, %(why)s
  FROM unnest(%(slots)s::timestamptz[]) slot
ON CONFLICT (job_id, scheduled_for) DO NOTHING

-- name: set_live
-- A job's slot is queued: the job is due no more until that run has ended.
UPDATE headrace.job_state
   SET live_run = %(run)s, next_start = NULL, last_slot = greatest(last_slot, %(slot)s), attempt = %(attempt)s,
       catch_up_until = %(catch_up_until)s, waits_for = NULL
 WHERE job_id = %(job)s

-- name: request_run
-- A person's or a drop-in's run of one job, now.
INSERT INTO headrace.job_run (job_id, scheduled_for, reason, requested_by, job_name, lock_group, priority, sent_at)
SELECT j.job_id, clock_timestamp(), %(reason)s, %(by)s, j.name, j.lock_group, j.priority, now()
  FROM headrace.job j
 WHERE j.job_id = %(job)s
RETURNING run_id

-- name: request_slot
-- A run for a past slot, asked for by a person; nothing if that slot has one already.
INSERT INTO headrace.job_run (job_id, scheduled_for, reason, requested_by, job_name, lock_group, priority)
SELECT j.job_id, %(slot)s, 'back-fill', %(by)s, j.name, j.lock_group, j.priority
  FROM headrace.job j
 WHERE j.job_id = %(job)s
ON CONFLICT (job_id, scheduled_for) DO NOTHING
RETURNING run_id

-- name: unsent
-- Queued runs whose message was never sent, or so long ago that it may be lost; they count as sent now. Of the past
-- slots that a person asked for, each job has one on its way at a time, so that they keep nothing else waiting.
UPDATE headrace.job_run r SET sent_at = clock_timestamp()
 WHERE r.run_id IN (
        SELECT q.run_id FROM headrace.job_run q
         WHERE q.state = 'queued' AND q.cancel_requested_at IS NULL
           AND (q.sent_at IS NULL OR (%(resend)s AND q.sent_at < now() - %(older)s::interval))
           AND (q.reason <> 'back-fill' OR q.sent_at IS NOT NULL
                OR q.run_id = (SELECT min(b.run_id) FROM headrace.job_run b
                                WHERE b.job_id = q.job_id AND b.reason = 'back-fill' AND b.state IN ('queued', 'running')))
         ORDER BY q.priority DESC, q.run_id
         LIMIT %(limit)s
           FOR UPDATE SKIP LOCKED)
RETURNING r.run_id, r.job_id, r.priority

-- name: silent_runs
-- Running without a heartbeat for too long; with the seconds of silence, and whether the backend still lives.
SELECT r.run_id, r.job_id, r.backend_pid, extract(epoch FROM now() - r.heartbeat)::float8 AS silent_seconds,
       EXISTS (SELECT FROM pg_catalog.pg_stat_activity a
                WHERE a.pid = r.backend_pid
                  AND (a.backend_start = r.backend_start OR a.backend_start IS NULL)) AS backend_lives,
       r.heartbeat
  FROM headrace.job_run r
 WHERE r.state = 'running' AND r.heartbeat < now() - %(older)s::interval
 ORDER BY r.run_id

-- name: try_place
-- One of the places for runs of all databases together.
SELECT pg_try_advisory_lock(%(key)s)

-- name: job_lock_holder
-- Which backend holds the lock of a job.
SELECT l.pid, a.application_name
  FROM pg_catalog.pg_locks l
  LEFT JOIN pg_catalog.pg_stat_activity a USING (pid)
 WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
   AND l.classid::bigint = %(high)s AND l.objid::bigint = %(low)s

-- name: unclaim
-- A claimed run that could not begin goes back to waiting.
UPDATE headrace.job_run
   SET state = 'queued', started_at = NULL, heartbeat = NULL, sent_at = clock_timestamp(), worker = NULL,
       backend_pid = NULL, backend_start = NULL
 WHERE run_id = %(run)s AND state = 'running' AND backend_pid = %(pid)s AND backend_start = %(start)s
   AND cancel_requested_at IS NULL

-- name: run_state
-- Where a run stands.
SELECT state, message FROM headrace.job_run WHERE run_id = %(run)s

-- name: group_is_full
-- Whether as many runs of a lock group are running as may; asked under the group's lock.
SELECT count(*) >= coalesce((SELECT max_running FROM headrace.job_limit WHERE lock_group = %(lock_group)s), 1)
  FROM headrace.job_run
 WHERE state = 'running' AND lock_group = %(lock_group)s

-- name: lock_for_claim
-- Claims within one lock group take turns, so that its limit is exact.
SELECT pg_advisory_xact_lock(hashtextextended('headrace lock group ' || %(lock_group)s::text, 0::bigint))

-- name: hdbpp_job
-- Procedure and config of a job of hdbpp's, as they are now.
SELECT proc_name, config::text FROM public.postprocessing_jobs WHERE job_id = %(job)s

-- name: own_job
-- Procedure, config and limits of a job as they are now.
SELECT origin, proc_schema, proc_name, config::text, run_as, atomic, extract(epoch FROM max_runtime)::float8
  FROM headrace.job
 WHERE job_id = %(job)s

-- name: parse_name
-- A routine's name as somebody wrote it, taken apart by PostgreSQL's own rules; each part cut to an identifier's length.
SELECT array_agg(part::name::text ORDER BY position)
  FROM unnest(parse_ident(%(name)s)) WITH ORDINALITY AS parts (part, position)

-- name: routines
-- Routines of this name, those that take (integer, json) first; with the hash of what they do.
SELECT p.oid::bigint AS oid, n.nspname AS schema, p.proname AS name, p.prokind AS kind,
       p.pronargs >= 2 AND p.pronargs - p.pronargdefaults <= 2
           AND p.proargtypes[0] IN ('int4'::regtype::oid, 'int8'::regtype::oid)
           AND p.proargtypes[1] IN ('json'::regtype::oid, 'jsonb'::regtype::oid) AS fits,
       CASE WHEN p.pronargs >= 2 THEN p.proargtypes[0]::regtype::text END AS number_type,
       CASE WHEN p.pronargs >= 2 THEN p.proargtypes[1]::regtype::text END AS document_type,
       pg_get_function_identity_arguments(p.oid) AS arguments,
       encode(sha256(convert_to(pg_get_functiondef(p.oid), 'UTF8'::name)), 'hex') AS body_hash
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
 WHERE p.proname = %(name)s AND p.prokind IN ('p', 'f')
   AND (n.nspname = %(schema)s OR (%(schema)s::text IS NULL AND n.nspname::text = ANY(%(path)s::text[])))
 ORDER BY fits DESC, array_position(%(path)s::text[], n.nspname::text), number_type DESC, document_type DESC, p.oid

-- name: note_call
-- What a run is about to call, for its history.
UPDATE headrace.job_run
   SET proc_schema = %(schema)s, proc_name = %(name)s, run_as = %(run_as)s, config = %(config)s::jsonb,
       body_hash = %(body_hash)s, control_run = %(control_run)s
 WHERE run_id = %(run)s

-- name: default_path
-- The schemas that the role's own search path has; asked under that very path, in one transaction.
RESET search_path; SELECT current_schemas(false)::text[]

-- name: safe_path
-- The search path of all our own questions: nobody else can have put anything into it.
SET search_path = pg_catalog, pg_temp

-- name: set_role
-- The routine runs with this role's rights.
-- slots: role
SET ROLE {role}

-- name: reset_role
-- Back to the login and to our own session, whatever the routine has changed.
SET search_path = pg_catalog, pg_temp; RESET ROLE; SET DateStyle = ISO; SET IntervalStyle = postgres;
SET TimeZone = UTC; SET lock_timeout = 0

-- name: call_procedure
-- The call, alone in its statement, so that the procedure may commit.
-- slots: routine, number, document
CALL {routine}(%(job_id)s::{number}, %(config)s::{document})

-- name: call_function
-- The same for a function.
-- slots: routine, number, document
SELECT {routine}(%(job_id)s::{number}, %(config)s::{document})

-- name: beat
-- A run is alive; answers whether somebody wants it to end.
UPDATE headrace.job_run SET heartbeat = clock_timestamp()
 WHERE run_id = %(run)s AND state = 'running'
RETURNING cancel_requested_by

-- name: activity
-- What the backend of a run is doing: what it waits for, and who is in its way.
SELECT a.wait_event_type, a.wait_event, pg_blocking_pids(a.pid)
  FROM pg_catalog.pg_stat_activity a
 WHERE a.pid = %(pid)s AND a.backend_start = %(start)s

-- name: cancel_backend
-- Cancel what the backend of a run is doing.
SELECT pg_cancel_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = %(pid)s AND backend_start = %(start)s

-- name: terminate_backend
-- End the backend of a run.
SELECT pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = %(pid)s AND backend_start = %(start)s

-- name: backend_lives
-- Is that very backend still there? Of another login's backend the start is not shown: it counts as alive.
SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity
                WHERE pid = %(pid)s AND (backend_start = %(start)s OR backend_start IS NULL))

-- name: finish_run
-- The end of a run that is still running under this backend.
UPDATE headrace.job_run
   SET state = %(state)s, finished_at = clock_timestamp(), heartbeat = clock_timestamp(),
       inner_transactions = %(inner_transactions)s, status_message = %(status_message)s, sqlstate = %(sqlstate)s,
       message = %(message)s, detail = %(detail)s, hint = %(hint)s, context = %(context)s,
       notices = %(notices)s::jsonb,
       cancel_requested_by = coalesce(cancel_requested_by, %(cancelled_by)s)
 WHERE run_id = %(run)s AND state = 'running' AND backend_pid = %(pid)s
RETURNING run_id, job_id, scheduled_for, reason, attempt, started_at, finished_at, job_name, proc_schema, proc_name,
          finished_at - started_at AS duration

-- name: close_queued
-- A queued run that will not happen.
UPDATE headrace.job_run
   SET state = %(state)s, finished_at = clock_timestamp(), message = %(message)s,
       cancel_requested_by = coalesce(cancel_requested_by, %(by)s)
 WHERE run_id = %(run)s AND state = 'queued'
RETURNING run_id, job_id, scheduled_for, reason, attempt, started_at, finished_at, job_name, proc_schema, proc_name,
          interval '0' AS duration

-- name: count_run
-- What became of a job so far, after one more run.
UPDATE headrace.job_state
   SET last_run_started_at = %(started_at)s, last_finish = %(finished_at)s, last_run_success = %(success)s,
       last_run_duration = %(duration)s,
       last_successful_finish = CASE WHEN %(success)s THEN %(finished_at)s ELSE last_successful_finish END,
       total_runs = total_runs + 1,
       total_successes = total_successes + (%(success)s)::int,
       total_failures = total_failures + (NOT %(success)s)::int,
       total_crashes = total_crashes + (%(lost)s)::int,
       late_alert_at = CASE WHEN %(success)s THEN NULL ELSE late_alert_at END
 WHERE job_id = %(job)s

-- name: plan_after
-- What follows a run of the schedule; a definition that changed meanwhile is planned by the next look.
UPDATE headrace.job_state
   SET live_run = NULL,
       next_start = CASE WHEN EXISTS (SELECT FROM headrace.job j WHERE j.job_id = %(job)s AND j.scheduled AND j.gone_at IS NULL)
                         THEN %(next_start)s::timestamptz END,
       slot = %(slot)s, reason = %(reason)s, attempt = %(attempt)s, catch_up_until = %(catch_up_until)s,
       consecutive_failures = %(failures)s, replan = replan OR %(replan)s
 WHERE job_id = %(job)s

-- name: disable_job
-- The job is scheduled no more: it failed too often, or it was a one-shot.
UPDATE headrace.job SET scheduled = false WHERE job_id = %(job)s

-- name: due_children
-- Jobs that follow this one are due now, each for this moment.
UPDATE headrace.job_state s
   SET next_start = now(), slot = %(at)s, reason = 'after', attempt = 1
  FROM headrace.job j
 WHERE j.job_id = s.job_id AND j.after_job = %(job)s AND j.scheduled AND j.gone_at IS NULL AND s.live_run IS NULL
   AND (%(success)s OR j.after_failure = 'run')
RETURNING s.job_id

-- name: busy_children
-- Jobs that follow this one and are still at their last time: on record as skipped.
INSERT INTO headrace.job_run (job_id, scheduled_for, reason, state, finished_at, job_name, message)
SELECT j.job_id, %(at)s, 'after', 'skipped', clock_timestamp(), j.name, 'it was still going from the last time'
  FROM headrace.job j
  JOIN headrace.job_state s USING (job_id)
 WHERE j.after_job = %(job)s AND j.scheduled AND j.gone_at IS NULL AND s.live_run IS NOT NULL
   AND (%(success)s OR j.after_failure = 'run')
ON CONFLICT (job_id, scheduled_for) DO NOTHING

-- name: stopped_children
-- Jobs that follow this one only if it ends well: on record as skipped.
INSERT INTO headrace.job_run (job_id, scheduled_for, reason, state, finished_at, job_name, message)
SELECT j.job_id, %(at)s, 'after', 'skipped', clock_timestamp(), j.name, %(why)s
  FROM headrace.job j
 WHERE j.after_job = %(job)s AND j.scheduled AND j.gone_at IS NULL AND j.after_failure = 'stop'
ON CONFLICT (job_id, scheduled_for) DO NOTHING

-- name: hdbpp_stats
-- hdbpp's own counters go on in its own words; a job that is deleted meanwhile has none.
INSERT INTO public.postprocessing_jobs_stats AS s (job_id, last_run_started_at, last_successful_finish, last_run_status,
        job_status, last_run_duration, total_runs, total_successes, total_failures)
SELECT p.job_id, %(started_at)s, CASE WHEN %(success)s THEN %(finished_at)s::timestamptz END,
       CASE WHEN %(success)s THEN 'Job run ok' ELSE 'Job run in error' END, %(status)s, %(duration)s::interval,
       1, (%(success)s)::int, (NOT %(success)s)::int
  FROM public.postprocessing_jobs p
 WHERE p.job_id = %(job)s
ON CONFLICT (job_id) DO UPDATE
   SET last_run_started_at = excluded.last_run_started_at,
       last_successful_finish = coalesce(excluded.last_successful_finish, s.last_successful_finish),
       last_run_status = excluded.last_run_status, job_status = excluded.job_status,
       last_run_duration = excluded.last_run_duration,
       total_runs = coalesce(s.total_runs, 0) + 1,
       total_successes = coalesce(s.total_successes, 0) + excluded.total_successes,
       total_failures = coalesce(s.total_failures, 0) + excluded.total_failures

-- name: usual_seconds
-- The median of a job's last successful runs before this one, and how many there were; in seconds.
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM r.finished_at - r.started_at))::float8, count(*)
  FROM (SELECT finished_at, started_at FROM headrace.job_run
         WHERE job_id = %(job)s AND state = 'succeeded' AND run_id <> %(run)s
         ORDER BY run_id DESC LIMIT 20) r

-- name: late_jobs
-- Jobs whose last success is older than they are allowed, and that nobody was told of.
UPDATE headrace.job_state s SET late_alert_at = now()
  FROM headrace.job j
 WHERE j.job_id = s.job_id AND j.alert_after IS NOT NULL AND j.scheduled AND j.gone_at IS NULL
   AND s.late_alert_at IS NULL
   AND coalesce(s.last_successful_finish, j.created_at) < now() - j.alert_after
RETURNING s.job_id, j.name, s.last_successful_finish, j.alert_after

-- name: savepoint
-- One job's trouble is undone alone.
SAVEPOINT one_job

-- name: undo_one
-- Back to before this job.
ROLLBACK TO SAVEPOINT one_job

-- name: keep_one
-- This job is done with.
RELEASE SAVEPOINT one_job

-- name: savepoint_stats
-- hdbpp's counters are undone alone.
SAVEPOINT hdbpp_stats

-- name: undo_stats
-- Back to before hdbpp's counters.
ROLLBACK TO SAVEPOINT hdbpp_stats

-- name: wait_little
-- Whoever holds a row, a person's open psql perhaps, keeps this transaction waiting only so long; in milliseconds.
SELECT set_config('lock_timeout', %(milliseconds)s, true)

-- name: now
-- The database's own clock, which all of its schedules follow.
SELECT now()

-- name: end_orphan
-- Cancel, or terminate, the backend of a run whose worker gives no sign of life.
SELECT CASE WHEN %(terminate)s THEN pg_terminate_backend(a.pid) ELSE pg_cancel_backend(a.pid) END
  FROM headrace.job_run r
  JOIN pg_catalog.pg_stat_activity a ON a.pid = r.backend_pid AND a.backend_start = r.backend_start
 WHERE r.run_id = %(run)s AND r.state = 'running'

-- name: load
-- Sessions that are doing something, ours left out, and the worst standby's replay lag in seconds.
SELECT (SELECT count(*) FROM pg_catalog.pg_stat_activity
         WHERE state = 'active' AND backend_type = 'client backend' AND application_name NOT LIKE 'headrace %%'),
       coalesce((SELECT max(extract(epoch FROM replay_lag)) FROM pg_catalog.pg_stat_replication), 0)::float8

-- name: enter
-- The executing backend takes the lock of its job and says who it is, and the number of this transaction of its.
SELECT pg_try_advisory_lock(%(key)s), pg_backend_pid(),
       (SELECT backend_start FROM pg_catalog.pg_stat_activity WHERE pid = pg_backend_pid()),
       (SELECT split_part(virtualtransaction, '/', 2)::bigint
          FROM pg_catalog.pg_locks WHERE pid = pg_backend_pid() AND locktype = 'virtualxid' LIMIT 1)

-- name: queued_run
-- A run as its message finds it: whether it may start, and which other run of its job is on record as running.
SELECT r.state, r.reason, r.lock_group, j.scheduled AND j.gone_at IS NULL,
       (SELECT max(coalesce(q.reason, 'quiet period of ' || q.made_by)) FROM headrace.quiet_period q
         WHERE (q.job_id IS NULL OR q.job_id = r.job_id) AND q.starts_at <= now() AND q.ends_at > now()),
       o.run_id, o.backend_pid, o.backend_start
  FROM headrace.job_run r
  LEFT JOIN headrace.job j USING (job_id)
  LEFT JOIN headrace.job_run o ON o.job_id = r.job_id AND o.state = 'running' AND o.run_id <> r.run_id
 WHERE r.run_id = %(run)s

-- name: claim
-- A backend takes a queued run, unless somebody has it, cancelled it, or the job already runs.
UPDATE headrace.job_run
   SET state = 'running', started_at = clock_timestamp(), heartbeat = clock_timestamp(), host = %(host)s,
       worker = %(worker)s, backend_pid = %(pid)s, backend_start = %(start)s
 WHERE run_id = %(run)s AND state = 'queued' AND cancel_requested_at IS NULL

-- name: begin_call
-- The routine finds the session as any client of its role would, with PostgreSQL's own limit of the call.
RESET search_path; RESET TimeZone; RESET DateStyle; RESET IntervalStyle; RESET lock_timeout;
RESET idle_in_transaction_session_timeout; SET statement_timeout = %(milliseconds)s

-- name: transactions_after
-- Back to our own session, and the number of this transaction: each one, committed inside a routine or not, counted.
SET search_path = pg_catalog, pg_temp; RESET ROLE; SET statement_timeout = 0;
SELECT split_part(virtualtransaction, '/', 2)::bigint
  FROM pg_catalog.pg_locks WHERE pid = pg_backend_pid() AND locktype = 'virtualxid' LIMIT 1
