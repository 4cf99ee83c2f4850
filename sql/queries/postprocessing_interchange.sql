-- name: has_relation
-- Whether this database has a table or view of that name.
SELECT to_regclass(%(name)s) IS NOT NULL

-- name: timescaledb_jobs
-- What users defined in TimescaleDB; columns that came after 2.0 are asked for by name, so that old versions do too.
-- slots: jobs, catalog
SELECT j.job_id AS source_id, to_jsonb(j) ->> 'application_name' AS name, coalesce(r.rolname, j.owner::text) AS owner,
       j.proc_schema::text, j.proc_name::text, j.config::text AS config, to_jsonb(j) ->> 'check_schema' AS check_schema,
       to_jsonb(j) ->> 'check_name' AS check_name, j.scheduled, j.schedule_interval::text AS schedule_interval,
       coalesce((to_jsonb(j) ->> 'fixed_schedule')::boolean, false) AS fixed_schedule,
       to_jsonb(b) ->> 'timezone' AS timezone,
       CASE WHEN isfinite(more.initial_start) THEN more.initial_start END AS initial_start,
       j.max_runtime::text AS max_runtime, j.max_retries, j.retry_period::text AS retry_period,
       CASE WHEN isfinite(j.next_start) THEN j.next_start END AS next_start
  FROM {jobs} j
  LEFT JOIN {catalog} b ON b.id = j.job_id
  LEFT JOIN pg_catalog.pg_roles r  -- owner was a name once, and is a regrole now, whose text is quoted
    ON j.owner::text = CASE WHEN pg_typeof(j.owner) = 'regrole'::regtype THEN quote_ident(r.rolname) ELSE r.rolname END
 CROSS JOIN LATERAL (SELECT (to_jsonb(j) ->> 'initial_start')::timestamptz) AS more (initial_start)
 WHERE j.job_id >= 1000 AND j.proc_schema::text NOT LIKE '\_timescaledb%%'
 ORDER BY j.job_id

-- name: pg_cron_jobs
-- What pg_cron runs and the login may see, and what of this server tells how it is meant.
-- slots: jobs
SELECT j.jobid AS source_id, to_jsonb(j) ->> 'jobname' AS name, j.schedule, j.command, j.nodename, j.nodeport,
       j.database, j.username::text AS owner, j.active AS scheduled,
       coalesce(current_setting('cron.timezone', true), 'GMT') AS timezone,
       j.database = current_database() AS is_here, current_database() AS here,
       j.nodeport = current_setting('port')::integer AS is_this_port,
       coalesce(has_function_privilege(to_regprocedure('cron.alter_job(bigint,text,text,text,text,boolean)'), 'EXECUTE'),
                false) AS may_alter
  FROM {jobs} j
 ORDER BY j.jobid

-- name: hdbpp_jobs
-- The rows that hdbpp-postprocessing runs, with the schedule and the limits that they have been given here.
SELECT h.job_id AS source_id, h.application_name AS name, h.proc_name, coalesce(h.config::text, 'null') AS config,
       to_jsonb(j) AS settings, s.next_start
  FROM public.postprocessing_jobs h
  LEFT JOIN headrace.job j ON j.job_id = h.job_id AND j.origin = 'hdbpp'
  LEFT JOIN headrace.job_state s ON s.job_id = j.job_id
 WHERE h.application_name = 'HDB++ postprocessing'
 ORDER BY h.job_id

-- name: role_facts
-- Whether there is such a role, whether it is the login, whether the login may go on as it, and its own settings.
SELECT r.oid IS NOT NULL AS is_there, wanted.role = current_user AS is_login, current_user::text AS login,
       coalesce(r.rolsuper, false) AS is_superuser,
       coalesce(pg_has_role(r.oid, CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'SET'
                                        ELSE 'MEMBER' END), false) AS may_become,
       coalesce(r.rolconfig, '{}') AS settings
  FROM (VALUES (%(role)s::text)) AS wanted (role)
  LEFT JOIN pg_catalog.pg_roles r ON r.rolname = wanted.role

-- name: has_output_parameters
-- Whether a procedure of that name gives something back: PL/pgSQL would want variables for that.
SELECT EXISTS (SELECT FROM pg_catalog.pg_proc p
                JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
               WHERE p.proname = %(name)s AND p.prokind = 'p' AND p.proargmodes && '{o,b}'::"char"[]
                 AND (n.nspname = %(schema)s OR %(schema)s::text IS NULL))

-- name: wait_for_imports
-- One import of a database at a time, until the transaction ends; whoever comes second finds what the first took.
SELECT pg_advisory_xact_lock(%(key)s)

-- name: imported_job
-- The job of our own that was made of this one.
SELECT job_id FROM headrace.job WHERE imported_from = %(mark)s

-- name: users_of_routine
-- A job that runs this routine already.
SELECT min(job_id) FROM headrace.job WHERE proc_schema = %(proc_schema)s AND proc_name = %(proc_name)s

-- name: grant_wrapper
-- Let the role that a command ran as call the procedure that the command has become.
-- slots: wrapper, role
GRANT EXECUTE ON PROCEDURE {wrapper} TO {role}

-- name: after_job_of
-- Which job a row of hdbpp follows, by the number that this one has now.
SELECT after_job FROM headrace.job WHERE job_id = %(job)s

-- name: hand_over_followers
-- Jobs that followed the old number follow the new one.
UPDATE headrace.job SET after_job = %(new)s WHERE after_job = %(old)s AND job_id <> %(new)s

-- name: exportable_jobs
-- The definition of every job: names in their parts, a config in its own digits.
SELECT j.job_id, j.origin, j.name, j.run_as::text AS run_as, j.proc_schema, j.proc_name, j.config::text AS config,
       j.check_schema, j.check_name, j.scheduled, j.schedule_interval::text AS schedule_interval, j.cron, j.run_at,
       j.after_job, j.fixed_schedule, j.timezone, j.initial_start, j.run_window, j.after_failure,
       j.max_runtime::text AS max_runtime, j.max_retries, j.retry_period::text AS retry_period, j.atomic, j.on_lost,
       j.missed, j.missed_cap, j.start_deadline::text AS start_deadline, j.overlap, j.lock_group, j.priority,
       j.alert_after::text AS alert_after
  FROM headrace.job j
 WHERE j.gone_at IS NULL AND (%(job)s::bigint IS NULL OR j.job_id = %(job)s)
 ORDER BY j.job_id
