-- TimescaleDB 2's job API over the tables of postprocessing: the same names, arguments, defaults and views.
--
-- The functions that people call run with the caller's rights. They hand over what is asked by an INSERT into the view
-- job_order, whose first trigger notes who asks and whose second one, with the owner's rights, checks and obeys. A
-- trigger cannot be called, so nobody can give another name; and current_user there is right even inside somebody's
-- SECURITY DEFINER function or index expression, where session_user would lend its rights to a stranger.
-- To let another role define jobs, which then run with its rights:
--     GRANT USAGE ON SCHEMA headrace TO r;
--     GRANT SELECT, INSERT ON headrace.job_order TO r;
--     GRANT EXECUTE ON FUNCTION headrace.add_job, headrace.alter_job, headrace.delete_job, headrace.start_job,
--         headrace.cancel_run TO r;
--     GRANT EXECUTE ON PROCEDURE headrace.run_job TO r;
--     GRANT r TO <the login of the settings>;
-- Never ALL ROUTINES: who may execute a trigger function can put it on a table of his own. And only to roles that are
-- trusted like the login: the workers SET ROLE r, which a routine can undo by RESET ROLE.

CREATE VIEW headrace.job_order AS
SELECT NULL::name AS caller, NULL::text AS action, NULL::integer AS job_id, NULL::bigint AS run_id,
       NULL::regproc AS proc, NULL::interval AS schedule_interval, NULL::text AS cron, NULL::timestamptz AS run_at,
       NULL::integer AS after_job, NULL::boolean AS fixed_schedule, NULL::timestamptz AS initial_start,
       NULL::text AS timezone, NULL::text AS run_window, NULL::timestamptz AS next_start, NULL::boolean AS scheduled,
       NULL::interval AS max_runtime, NULL::integer AS max_retries, NULL::interval AS retry_period,
       NULL::jsonb AS config, NULL::jsonb AS config_merge, NULL::regproc AS check_config, NULL::text AS job_name,
       NULL::boolean AS atomic, NULL::text AS on_lost, NULL::text AS missed, NULL::text AS overlap,
       NULL::text AS lock_group, NULL::integer AS priority, NULL::boolean AS if_exists,
       NULL::text AS state, NULL::text AS check_name, NULL::text AS application_name, NULL::text AS statement
 WHERE false;
COMMENT ON VIEW headrace.job_order IS
    'The counter of the job functions: an INSERT is an order, the columns that come back are its answer; it has no rows.';

-- The routine that a job names: (integer|bigint, jsonb|json), further arguments only with defaults; null: none.
CREATE FUNCTION headrace.find_action(wanted_schema text, wanted_name text) RETURNS oid
LANGUAGE plpgsql STABLE AS $body$
BEGIN
    RETURN (SELECT p.oid
              FROM pg_catalog.pg_proc AS p
              JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
             WHERE n.nspname = wanted_schema AND p.proname = wanted_name AND p.prokind IN ('f', 'p')
               AND p.pronargs >= 2 AND p.pronargs - p.pronargdefaults <= 2
               AND p.proargtypes[0] IN ('integer'::regtype, 'bigint'::regtype)
               AND p.proargtypes[1] IN ('jsonb'::regtype, 'json'::regtype)
               AND (p.prokind = 'f' OR 'o' <> ALL (coalesce(p.proargmodes, '{}')))
             ORDER BY p.proargtypes[0] <> 'integer'::regtype, p.proargtypes[1] <> 'jsonb'::regtype, p.pronargs
             LIMIT 1);
END
$body$;

-- The function (config jsonb) that judges a config; null: none.
CREATE FUNCTION headrace.find_check(wanted_schema text, wanted_name text) RETURNS oid
LANGUAGE plpgsql STABLE AS $body$
BEGIN
    RETURN (SELECT p.oid
              FROM pg_catalog.pg_proc AS p
              JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
             WHERE n.nspname = wanted_schema AND p.proname = wanted_name AND p.prokind IN ('f', 'p')
               AND p.pronargs = 1 AND p.proargtypes[0] = 'jsonb'::regtype);
END
$body$;

-- The statement with which the caller, with his own rights, runs a check; its one parameter is the config.
CREATE FUNCTION headrace.check_statement(wanted_schema text, wanted_name text) RETURNS text
LANGUAGE plpgsql STABLE AS $body$
DECLARE
    kind "char" := (SELECT prokind FROM pg_catalog.pg_proc WHERE oid = headrace.find_check(wanted_schema, wanted_name));
BEGIN
    IF kind IS NULL THEN
        RAISE EXCEPTION 'check function %.%(jsonb) does not exist', quote_ident(wanted_schema), quote_ident(wanted_name)
            USING ERRCODE = 'undefined_function', HINT = 'The check function''s signature must be (config jsonb).';
    END IF;
    RETURN format('%s %I.%I($1)', CASE kind WHEN 'p' THEN 'CALL' ELSE 'SELECT' END, wanted_schema, wanted_name);
END
$body$;

CREATE FUNCTION headrace.job_title(job_id bigint, job_name text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $body$
DECLARE
    title text := format('%s [%s]', coalesce(job_name, 'User-Defined Action'), job_id);
BEGIN
    IF octet_length(title) > 63 THEN
        RAISE EXCEPTION 'application name too long: % is % bytes, at most 63 fit', title, octet_length(title)
            USING ERRCODE = 'name_too_long', HINT = 'Give a shorter job_name.';
    END IF;
    RETURN title;
END
$body$;

CREATE FUNCTION headrace.check_time_zone(zone text) RETURNS void LANGUAGE plpgsql AS $body$
DECLARE
    spelling text;
BEGIN
    -- Slow, for it reads every zone; but PostgreSQL alone would also take 'europe/paris' and 'X+3'.
    SELECT z.name INTO spelling
      FROM pg_catalog.pg_timezone_names AS z
     WHERE lower(z.name) = lower(zone)
     ORDER BY z.name <> zone, z.name
     LIMIT 1;
    IF spelling IS DISTINCT FROM zone THEN
        RAISE EXCEPTION 'time zone "%" is not recognized', zone
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = CASE WHEN spelling IS NULL THEN 'Give a name of pg_timezone_names, such as Europe/Paris.'
                              ELSE format('It is spelled %s.', spelling) END;
    END IF;
END
$body$;

-- The schedule of an order makes sense; what a cron expression means is for the scheduler to say (jobs.problem).
CREATE FUNCTION headrace.check_schedule(o headrace.job_order) RETURNS void LANGUAGE plpgsql AS $body$
DECLARE
    every interval := o.schedule_interval;
    complaint text;
BEGIN
    IF num_nonnulls(every, o.cron, o.run_at, o.after_job) > 1 THEN
        complaint := 'give only one of schedule_interval, cron, run_at and after_job';
    ELSIF num_nonnulls(every, o.cron, o.run_at, o.after_job) = 0 THEN
        complaint := 'schedule interval cannot be NULL';
    ELSIF every <= interval '0' OR NOT isfinite(every) THEN
        complaint := format('schedule interval must be longer than zero and finite, not %s', every);
    ELSIF o.fixed_schedule AND date_trunc('month', every) <> interval '0' AND every <> date_trunc('month', every) THEN
        complaint := 'month intervals cannot have day or time component';
    ELSIF btrim(o.cron) = '' THEN
        complaint := 'cron cannot be empty';
    ELSIF NOT isfinite(o.run_at) THEN
        complaint := 'run_at must be a finite time';
    ELSIF NOT isfinite(o.initial_start) THEN
        complaint := 'initial_start must be a finite time';
    END IF;
    IF complaint IS NOT NULL THEN
        RAISE EXCEPTION '%', complaint
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = CASE WHEN complaint LIKE 'month%' THEN 'Use whole months, or fixed_schedule => false.'
                              WHEN complaint LIKE '%NULL' THEN 'Or give cron, run_at or after_job.'
                              ELSE '' END;
    END IF;
    IF o.after_job IS NOT NULL AND NOT EXISTS (SELECT FROM headrace.job WHERE job_id = o.after_job) THEN
        RAISE EXCEPTION 'job % not found', o.after_job
            USING ERRCODE = 'undefined_object', HINT = 'after_job is the number of the job to follow.';
    END IF;
    IF o.after_job IS NOT NULL AND o.job_id IN (
        WITH RECURSIVE before AS (
            SELECT o.after_job::bigint AS id
             UNION
            SELECT j.after_job FROM headrace.job AS j JOIN before ON j.job_id = before.id
        )
        SELECT id FROM before
    ) THEN
        RAISE EXCEPTION 'job % would run after itself: job % already follows it', o.job_id, o.after_job
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$body$;

-- The job of an order, locked, if the caller may manage it: its owner, the schema's owner, their members, a superuser.
CREATE FUNCTION headrace.job_to_manage(o headrace.job_order) RETURNS headrace.job LANGUAGE plpgsql AS $body$
DECLARE
    job headrace.job;
BEGIN
    SELECT * INTO job FROM headrace.job AS j WHERE j.job_id = o.job_id FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'job % not found', o.job_id
            USING ERRCODE = 'undefined_object', HINT = 'headrace.jobs shows those there are.';
    END IF;
    PERFORM headrace.check_manager(o.caller, job.owner, format('job %s', job.job_id));
    RETURN job;
END
$body$;

CREATE FUNCTION headrace.check_manager(caller name, owner name, what text) RETURNS void LANGUAGE plpgsql AS $body$
BEGIN
    -- Found by name first: pg_has_role would fail on the name of a role that was dropped.
    IF NOT pg_has_role(caller, current_user, 'USAGE') AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = owner AND pg_has_role(caller, r.oid, 'USAGE')
    ) THEN
        RAISE EXCEPTION 'must be owner of %', what
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('It belongs to %s.', coalesce(owner, current_user));
    END IF;
END
$body$;

CREATE FUNCTION headrace.write_job(o headrace.job_order) RETURNS headrace.job_order LANGUAGE plpgsql AS $body$
DECLARE
    action oid;
    routine record;
    checker record;
    membership text := CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'SET' ELSE 'MEMBER' END;
BEGIN
    IF coalesce(o.proc::oid, 0) = 0 THEN
        RAISE EXCEPTION 'function or procedure cannot be NULL' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT n.nspname, p.proname INTO routine
      FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
     WHERE p.oid = o.proc;
    action := headrace.find_action(routine.nspname, routine.proname);
    IF action IS NULL THEN
        RAISE EXCEPTION 'function or procedure "%(integer, jsonb)" does not exist',
                        coalesce(quote_ident(routine.nspname) || '.' || quote_ident(routine.proname), o.proc::text)
            USING ERRCODE = 'undefined_function',
                  HINT = 'A job''s routine takes (integer or bigint, jsonb or json); further arguments need defaults.';
    END IF;
    IF NOT has_function_privilege(o.caller, action, 'EXECUTE') THEN
        RAISE EXCEPTION 'permission denied for function %', action::regprocedure
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('The job would run as %I, which needs EXECUTE on it.', o.caller);
    END IF;
    IF o.caller <> current_user AND NOT pg_has_role(current_user, o.caller, membership) THEN
        RAISE EXCEPTION 'the workers'' login % cannot run jobs as %', quote_ident(current_user), quote_ident(o.caller)
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('GRANT %I TO %I; or SET ROLE %2$I before this call.', o.caller, current_user);
    END IF;
    o.fixed_schedule := coalesce(o.fixed_schedule, true);
    PERFORM headrace.check_schedule(o);
    IF o.timezone IS NOT NULL THEN
        PERFORM headrace.check_time_zone(o.timezone);
    END IF;
    IF o.schedule_interval IS NOT NULL AND o.fixed_schedule THEN
        o.initial_start := coalesce(o.initial_start, now());
    END IF;
    SELECT n.nspname, p.proname INTO checker
      FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
     WHERE p.oid = o.check_config;
    IF o.check_config::oid <> 0 THEN
        o.statement := headrace.check_statement(checker.nspname, checker.proname);
    END IF;

    o.job_id := nextval('headrace.job_number');
    INSERT INTO headrace.job (job_id, name, owner, run_as, proc_schema, proc_name, config, check_schema, check_name,
                              scheduled, schedule_interval, cron, run_at, after_job, fixed_schedule, timezone,
                              initial_start)
    VALUES (o.job_id, headrace.job_title(o.job_id, o.job_name), o.caller, nullif(o.caller, current_user),
            routine.nspname, routine.proname, o.config, checker.nspname, checker.proname, coalesce(o.scheduled, true),
            o.schedule_interval, o.cron, o.run_at, o.after_job, o.fixed_schedule, o.timezone, o.initial_start);
    RETURN o;
END
$body$;

CREATE FUNCTION headrace.change_job(o headrace.job_order) RETURNS headrace.job_order LANGUAGE plpgsql AS $body$
DECLARE
    job headrace.job;
    job_state headrace.job_state;
    judged boolean := num_nonnulls(o.config, o.config_merge, o.check_config) > 0;
    rescheduled boolean := num_nonnulls(o.schedule_interval, o.cron, o.run_at, o.after_job,
                                        o.fixed_schedule, o.initial_start) > 0;
    free_slot timestamptz := greatest(o.next_start, clock_timestamp());  -- a past one is now, not missed
    broken_rule text;
BEGIN
    IF o.if_exists AND NOT EXISTS (SELECT FROM headrace.job AS j WHERE j.job_id = o.job_id) THEN
        RAISE NOTICE 'job % not found, skipping', o.job_id;
        RETURN NULL;
    END IF;
    job := headrace.job_to_manage(o);

    IF num_nonnulls(o.config, o.config_merge) = 2 THEN
        RAISE EXCEPTION 'config and config_merge cannot both be given' USING ERRCODE = 'invalid_parameter_value';
    ELSIF o.next_start = '-infinity' THEN
        RAISE EXCEPTION 'next_start cannot be -infinity'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'now() runs the job at once, infinity pauses it.';
    ELSIF job.origin = 'hdbpp' AND (judged OR o.job_name IS NOT NULL) THEN
        RAISE EXCEPTION 'the config and the name of job % are in public.postprocessing_jobs', o.job_id
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('UPDATE public.postprocessing_jobs SET config = ... WHERE job_id = %s;', o.job_id);
    ELSIF o.config_merge IS NOT NULL
          AND (jsonb_typeof(o.config_merge) <> 'object' OR jsonb_typeof(job.config) <> 'object') THEN
        RAISE EXCEPTION 'config_merge merges objects; here are % and %',
                        coalesce(jsonb_typeof(job.config), 'no config'), jsonb_typeof(o.config_merge)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give the whole config.';
    END IF;

    IF o.check_config IS NOT NULL THEN
        SELECT n.nspname, p.proname INTO job.check_schema, job.check_name
          FROM (VALUES (o.check_config::oid)) AS given (id)
          LEFT JOIN pg_catalog.pg_proc AS p ON p.oid = given.id
          LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace;
    END IF;
    -- regproc 0 ('-'): no check any more.
    IF judged AND (job.check_name IS NOT NULL OR o.check_config::oid <> 0) THEN
        o.statement := headrace.check_statement(job.check_schema, job.check_name);
        -- It runs with the rights of whoever alters the job: not if a stranger's function would get an administrator's.
        IF o.check_config IS NULL AND o.caller <> job.owner AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_roles AS r ON r.oid = p.proowner
             WHERE p.oid = headrace.find_check(job.check_schema, job.check_name)
               AND (r.rolsuper OR r.rolname IN (o.caller, current_user))
        ) THEN
            RAISE EXCEPTION 'the check function % of job % would run with the rights of %',
                            format('%I.%I', job.check_schema, job.check_name), o.job_id, quote_ident(o.caller)
                USING ERRCODE = 'insufficient_privilege',
                      HINT = format('Let %I change the config, or give a check_config that you trust.', job.owner);
        END IF;
    END IF;

    IF num_nonnulls(o.schedule_interval, o.cron, o.run_at, o.after_job) = 0 THEN
        o.schedule_interval := job.schedule_interval;
        o.cron := job.cron;
        o.run_at := job.run_at;
        o.after_job := job.after_job;
    END IF;
    o.fixed_schedule := coalesce(o.fixed_schedule, job.fixed_schedule);
    IF rescheduled AND num_nonnulls(o.schedule_interval, o.cron, o.run_at, o.after_job) > 0 THEN
        PERFORM headrace.check_schedule(o);
    END IF;
    IF o.timezone <> '' THEN
        PERFORM headrace.check_time_zone(o.timezone);
    END IF;

    BEGIN
        UPDATE headrace.job AS j
           SET name = CASE WHEN o.job_name IS NULL THEN j.name ELSE headrace.job_title(j.job_id, o.job_name) END,
               config = CASE WHEN o.config_merge IS NULL THEN coalesce(o.config, j.config)
                             ELSE coalesce(j.config, '{}') || o.config_merge END,
               check_schema = job.check_schema,
               check_name = job.check_name,
               scheduled = coalesce(o.scheduled, j.scheduled) AND o.next_start IS DISTINCT FROM 'infinity',
               schedule_interval = o.schedule_interval,
               cron = o.cron,
               run_at = o.run_at,
               after_job = o.after_job,
               fixed_schedule = o.fixed_schedule,
               initial_start = coalesce(o.initial_start, j.initial_start, CASE
                   WHEN rescheduled AND o.schedule_interval IS NOT NULL AND o.fixed_schedule THEN now() END),
               timezone = nullif(coalesce(o.timezone, j.timezone), ''),
               run_window = nullif(coalesce(o.run_window, j.run_window), ''),
               max_runtime = coalesce(o.max_runtime, j.max_runtime),
               max_retries = coalesce(o.max_retries, j.max_retries),
               retry_period = coalesce(o.retry_period, j.retry_period),
               atomic = coalesce(o.atomic, j.atomic),
               on_lost = coalesce(o.on_lost, j.on_lost),
               missed = coalesce(o.missed, j.missed),
               overlap = coalesce(o.overlap, j.overlap),
               lock_group = nullif(coalesce(o.lock_group, j.lock_group), ''),
               priority = coalesce(o.priority, j.priority)
         WHERE j.job_id = job.job_id
        RETURNING j.* INTO job;
    EXCEPTION WHEN check_violation THEN
        GET STACKED DIAGNOSTICS broken_rule = CONSTRAINT_NAME;
        RAISE EXCEPTION 'job % does not allow that: %', o.job_id,
                        (SELECT pg_get_constraintdef(oid) FROM pg_catalog.pg_constraint
                          WHERE conrelid = 'headrace.job'::regclass AND conname = broken_rule)
            USING ERRCODE = 'check_violation';
    END;

    SELECT * INTO job_state FROM headrace.job_state AS s WHERE s.job_id = job.job_id FOR UPDATE;
    IF isfinite(o.next_start) AND NOT job.scheduled THEN
        RAISE EXCEPTION 'job % is paused, so it has no next_start', o.job_id
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Give scheduled => true as well.';
    ELSIF isfinite(o.next_start) AND job_state.live_run IS NOT NULL THEN
        RAISE WARNING 'job % is queued or running; its next_start follows from the end of that run', o.job_id
            USING HINT = format('To run it once more: SELECT headrace.start_job(%s);', o.job_id);
    ELSIF isfinite(o.next_start) THEN
        -- A slot has one run for ever.
        WHILE EXISTS (SELECT FROM headrace.job_run AS r
                       WHERE r.job_id = job.job_id AND r.scheduled_for = free_slot) LOOP
            free_slot := free_slot + interval '1 microsecond';
        END LOOP;
        UPDATE headrace.job_state AS s
           SET next_start = o.next_start, slot = free_slot, reason = 'schedule', attempt = 1, replan = false,
               planned_at = coalesce(s.planned_at, now()), waits_for = NULL
         WHERE s.job_id = job.job_id
        RETURNING s.* INTO job_state;
    END IF;

    o.next_start := job_state.next_start;
    o.scheduled := job.scheduled;
    o.config := job.config;
    o.max_runtime := job.max_runtime;
    o.max_retries := job.max_retries;
    o.retry_period := job.retry_period;
    o.initial_start := job.initial_start;
    o.timezone := job.timezone;
    o.check_name := quote_ident(job.check_schema) || '.' || quote_ident(job.check_name);
    o.application_name := job.name;
    RETURN o;
END
$body$;

-- Ends a run that is not over; one that is running gets the wish and a signal, and ends itself.
-- Of a queued slot of the schedule only the wish is noted: the look ends it within a second, with all that follows.
CREATE FUNCTION headrace.stop_run(run headrace.job_run, caller name, at_once boolean) RETURNS void
LANGUAGE plpgsql AS $body$
DECLARE
    is_ended boolean := run.state = 'queued' AND (at_once OR NOT EXISTS (
        SELECT FROM headrace.job_state AS s WHERE s.job_id = run.job_id AND s.live_run = run.run_id));
BEGIN
    UPDATE headrace.job_run AS r
       SET cancel_requested_at = coalesce(r.cancel_requested_at, clock_timestamp()),
           cancel_requested_by = coalesce(r.cancel_requested_by, caller),
           state = CASE WHEN is_ended THEN 'cancelled' ELSE r.state END,
           finished_at = CASE WHEN is_ended THEN clock_timestamp() END,
           message = CASE WHEN is_ended THEN format('cancelled by %s before it started', caller) ELSE r.message END
     WHERE r.run_id = run.run_id;
    IF run.state = 'running' THEN
        -- By its start as well: a process number comes again.
        PERFORM pg_cancel_backend(a.pid)
           FROM pg_catalog.pg_stat_activity AS a
          WHERE a.pid = run.backend_pid AND a.backend_start = run.backend_start;
    END IF;
END
$body$;

CREATE FUNCTION headrace.remove_job(o headrace.job_order) RETURNS headrace.job_order LANGUAGE plpgsql AS $body$
DECLARE
    job headrace.job := headrace.job_to_manage(o);
    run headrace.job_run;
    followers text;
BEGIN
    IF job.origin = 'hdbpp' AND job.gone_at IS NULL THEN
        RAISE EXCEPTION 'job % is a row of public.postprocessing_jobs', o.job_id
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('DELETE FROM public.postprocessing_jobs WHERE job_id = %s; or pause it: '
                                'SELECT headrace.alter_job(%1$s, scheduled => false);', o.job_id);
    END IF;
    FOR run IN SELECT r.* FROM headrace.job_run AS r
                WHERE r.job_id = job.job_id AND r.state IN ('queued', 'running') ORDER BY r.run_id FOR UPDATE LOOP
        PERFORM headrace.stop_run(run, o.caller, true);
    END LOOP;
    DELETE FROM headrace.job AS j WHERE j.job_id = job.job_id;
    SELECT string_agg(j.job_id::text, ', ' ORDER BY j.job_id) INTO followers
      FROM headrace.job AS j
     WHERE j.after_job = o.job_id;
    IF followers IS NOT NULL THEN
        RAISE WARNING 'what ran after job % will not run any more: job %', o.job_id, followers
            USING HINT = 'Give them a schedule with headrace.alter_job().';
    END IF;
    RETURN o;
END
$body$;

CREATE FUNCTION headrace.request_run(o headrace.job_order) RETURNS headrace.job_order LANGUAGE plpgsql AS $body$
DECLARE
    job headrace.job := headrace.job_to_manage(o);
BEGIN
    IF job.gone_at IS NOT NULL THEN
        RAISE EXCEPTION 'job % is no longer in public.postprocessing_jobs', o.job_id
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'INSERT it there again.';
    END IF;
    INSERT INTO headrace.job_run (job_id, scheduled_for, reason, requested_by, job_name, lock_group, priority)
    VALUES (job.job_id, clock_timestamp(), 'request', o.caller, job.name, job.lock_group, job.priority)
    RETURNING run_id INTO o.run_id;
    RETURN o;
END
$body$;

CREATE FUNCTION headrace.cancel_one(o headrace.job_order) RETURNS headrace.job_order LANGUAGE plpgsql AS $body$
DECLARE
    run headrace.job_run;
BEGIN
    SELECT * INTO run FROM headrace.job_run AS r WHERE r.run_id = o.run_id FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'run % not found', o.run_id
            USING ERRCODE = 'undefined_object', HINT = 'headrace.job_history shows those that are over.';
    END IF;
    PERFORM headrace.check_manager(o.caller, (SELECT j.owner FROM headrace.job AS j WHERE j.job_id = run.job_id),
                                   format('the job of run %s', run.run_id));
    IF run.state IN ('queued', 'running') THEN
        PERFORM headrace.stop_run(run, o.caller, false);
    END IF;
    o.state := run.state;
    RETURN o;
END
$body$;

-- What run_job is to execute: a SELECT of the function, or the making of a temporary procedure with the CALL.
CREATE FUNCTION headrace.compose_call(o headrace.job_order) RETURNS headrace.job_order LANGUAGE plpgsql AS $body$
DECLARE
    job headrace.job := headrace.job_to_manage(o);
    routine pg_catalog.pg_proc;
    variables text;
    names text;
BEGIN
    IF job.origin = 'hdbpp' THEN
        RAISE EXCEPTION 'job % is a row of public.postprocessing_jobs; run_job does not run those', o.job_id
            USING ERRCODE = 'feature_not_supported', HINT = format('SELECT headrace.start_job(%s);', o.job_id);
    END IF;
    SELECT * INTO routine
      FROM pg_catalog.pg_proc AS p
     WHERE p.oid = headrace.find_action(job.proc_schema, job.proc_name);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'function or procedure "%(integer, jsonb)" does not exist',
                        format('%I.%I', job.proc_schema, job.proc_name)
            USING ERRCODE = 'undefined_function',
                  HINT = 'A job''s routine takes (integer or bigint, jsonb or json); further arguments need defaults.';
    END IF;
    o.state := routine.prokind;
    IF routine.prokind = 'f' THEN
        o.statement := format('SELECT %I.%I(%L::%s, %L::%s)', job.proc_schema, job.proc_name,
                              job.job_id, format_type(routine.proargtypes[0], NULL),
                              job.config, format_type(routine.proargtypes[1], NULL));
        RETURN o;
    END IF;
    -- Every argument is a variable, because INOUT ones must be.
    SELECT string_agg(format('a%s %s := %s;', i, format_type(routine.proargtypes[i - 1], NULL), CASE i
               WHEN 1 THEN quote_literal(job.job_id)
               WHEN 2 THEN quote_nullable(job.config)
               ELSE pg_get_function_arg_default(routine.oid, i) END), ' ' ORDER BY i),
           string_agg('a' || i, ', ' ORDER BY i)
      INTO variables, names
      FROM generate_series(1, routine.pronargs) AS i;
    o.statement := format('CREATE OR REPLACE PROCEDURE pg_temp.headrace_run_job() LANGUAGE plpgsql AS %L',
                          format('DECLARE %s BEGIN CALL %I.%I(%s); END',
                                 variables, job.proc_schema, job.proc_name, names));
    RETURN o;
END
$body$;

CREATE FUNCTION headrace.note_caller() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    NEW.caller := current_user;
    RETURN NEW;
END
$body$;

CREATE FUNCTION headrace.obey_order() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    -- On another view nobody would have noted the caller.
    IF TG_RELID <> 'headrace.job_order'::regclass THEN
        RAISE EXCEPTION 'this trigger belongs on headrace.job_order alone' USING ERRCODE = 'insufficient_privilege';
    END IF;
    CASE NEW.action
        WHEN 'add' THEN RETURN headrace.write_job(NEW);
        WHEN 'alter' THEN RETURN headrace.change_job(NEW);
        WHEN 'delete' THEN RETURN headrace.remove_job(NEW);
        WHEN 'start' THEN RETURN headrace.request_run(NEW);
        WHEN 'cancel' THEN RETURN headrace.cancel_one(NEW);
        WHEN 'run' THEN RETURN headrace.compose_call(NEW);
    END CASE;
END
$body$;

-- In the order of their names: who asks is settled before anything is done.
CREATE TRIGGER a_caller INSTEAD OF INSERT ON headrace.job_order FOR EACH ROW EXECUTE FUNCTION headrace.note_caller();
CREATE TRIGGER b_obey INSTEAD OF INSERT ON headrace.job_order FOR EACH ROW EXECUTE FUNCTION headrace.obey_order();

-- What people call.

CREATE FUNCTION headrace.add_job(
    proc regproc, schedule_interval interval, config jsonb DEFAULT NULL, initial_start timestamptz DEFAULT NULL,
    scheduled boolean DEFAULT true, check_config regproc DEFAULT NULL, fixed_schedule boolean DEFAULT true,
    timezone text DEFAULT NULL, job_name text DEFAULT NULL,
    cron text DEFAULT NULL, run_at timestamptz DEFAULT NULL, after_job integer DEFAULT NULL
) RETURNS integer LANGUAGE plpgsql AS $body$
DECLARE
    done headrace.job_order;
BEGIN
    INSERT INTO headrace.job_order AS o (action, proc, schedule_interval, config, initial_start, scheduled,
                                         check_config, fixed_schedule, timezone, job_name, cron, run_at, after_job)
    VALUES ('add', add_job.proc, add_job.schedule_interval, add_job.config, add_job.initial_start, add_job.scheduled,
            add_job.check_config, add_job.fixed_schedule, add_job.timezone, add_job.job_name, add_job.cron,
            add_job.run_at, add_job.after_job)
    RETURNING o.* INTO done;
    IF done.statement IS NOT NULL THEN
        EXECUTE done.statement USING add_job.config;
    END IF;
    RETURN done.job_id;
END
$body$;
COMMENT ON FUNCTION headrace.add_job IS
    'As in TimescaleDB 2, and instead of schedule_interval one of cron, run_at and after_job: defines a job that runs as the caller and returns its number; check_config judges the config with the caller''s rights.';

CREATE TYPE headrace.altered_job AS (
    job_id integer, schedule_interval interval, max_runtime interval, max_retries integer, retry_period interval,
    scheduled boolean, config jsonb, next_start timestamptz, check_config text, fixed_schedule boolean,
    initial_start timestamptz, timezone text, application_name name
);

CREATE FUNCTION headrace.alter_job(
    job_id integer, schedule_interval interval DEFAULT NULL, max_runtime interval DEFAULT NULL,
    max_retries integer DEFAULT NULL, retry_period interval DEFAULT NULL, scheduled boolean DEFAULT NULL,
    config jsonb DEFAULT NULL, next_start timestamptz DEFAULT NULL, if_exists boolean DEFAULT false,
    check_config regproc DEFAULT NULL, fixed_schedule boolean DEFAULT NULL, initial_start timestamptz DEFAULT NULL,
    timezone text DEFAULT NULL, job_name text DEFAULT NULL, config_merge jsonb DEFAULT NULL,
    cron text DEFAULT NULL, run_at timestamptz DEFAULT NULL, after_job integer DEFAULT NULL,
    run_window text DEFAULT NULL, atomic boolean DEFAULT NULL, on_lost text DEFAULT NULL, missed text DEFAULT NULL,
    overlap text DEFAULT NULL, lock_group text DEFAULT NULL, priority integer DEFAULT NULL
) RETURNS SETOF headrace.altered_job LANGUAGE plpgsql AS $body$
DECLARE
    done headrace.job_order;
BEGIN
    INSERT INTO headrace.job_order AS o (
        action, job_id, schedule_interval, max_runtime, max_retries, retry_period, scheduled, config, next_start,
        if_exists, check_config, fixed_schedule, initial_start, timezone, job_name, config_merge,
        cron, run_at, after_job, run_window, atomic, on_lost, missed, overlap, lock_group, priority)
    VALUES (
        'alter', alter_job.job_id, alter_job.schedule_interval, alter_job.max_runtime, alter_job.max_retries,
        alter_job.retry_period, alter_job.scheduled, alter_job.config, alter_job.next_start, alter_job.if_exists,
        alter_job.check_config, alter_job.fixed_schedule, alter_job.initial_start, alter_job.timezone,
        alter_job.job_name, alter_job.config_merge, alter_job.cron, alter_job.run_at, alter_job.after_job,
        alter_job.run_window, alter_job.atomic, alter_job.on_lost, alter_job.missed, alter_job.overlap,
        alter_job.lock_group, alter_job.priority)
    RETURNING o.* INTO done;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF done.statement IS NOT NULL THEN
        EXECUTE done.statement USING done.config;
    END IF;
    RETURN NEXT ROW(done.job_id, done.schedule_interval, done.max_runtime, done.max_retries, done.retry_period,
                    done.scheduled, done.config, done.next_start, done.check_name, done.fixed_schedule,
                    done.initial_start, done.timezone, done.application_name::name)::headrace.altered_job;
END
$body$;
COMMENT ON FUNCTION headrace.alter_job IS
    'As in TimescaleDB 2, and our own settings; null keeps a value, timezone included (TimescaleDB loses it), an empty timezone, run_window or lock_group removes it, next_start infinity pauses (scheduled = false), any other needs a job that is neither paused nor queued nor running, and comes back null while the scheduler has yet to plan.';

CREATE FUNCTION headrace.delete_job(job_id integer) RETURNS void LANGUAGE plpgsql AS $body$
BEGIN
    INSERT INTO headrace.job_order (action, job_id) VALUES ('delete', delete_job.job_id);
END
$body$;
COMMENT ON FUNCTION headrace.delete_job IS
    'As in TimescaleDB 2: deletes a job and cancels what is queued or running of it; its history stays.';

CREATE FUNCTION headrace.start_job(job_id integer) RETURNS bigint LANGUAGE plpgsql AS $body$
DECLARE
    made bigint;
BEGIN
    INSERT INTO headrace.job_order AS o (action, job_id) VALUES ('start', start_job.job_id)
    RETURNING o.run_id INTO made;
    RETURN made;
END
$body$;
COMMENT ON FUNCTION headrace.start_job IS
    'Not in TimescaleDB: asks for a run by a worker soon, also of a paused job, with limits, history and statistics; returns the run''s number.';

CREATE FUNCTION headrace.cancel_run(run_id bigint) RETURNS text LANGUAGE plpgsql AS $body$
DECLARE
    state_before text;
BEGIN
    INSERT INTO headrace.job_order AS o (action, run_id) VALUES ('cancel', cancel_run.run_id)
    RETURNING o.state INTO state_before;
    RETURN state_before;
END
$body$;
COMMENT ON FUNCTION headrace.cancel_run IS
    'Not in TimescaleDB: cancels a run that is queued or running, leaves one that is over, and returns the state that it had.';

CREATE PROCEDURE headrace.run_job(job_id integer) LANGUAGE plpgsql AS $body$
DECLARE
    done headrace.job_order;
BEGIN
    INSERT INTO headrace.job_order AS o (action, job_id) VALUES ('run', run_job.job_id) RETURNING o.* INTO done;
    EXECUTE done.statement;
    IF done.state = 'p' THEN
        -- A CALL by EXECUTE could not commit; one that is written out can.
        CALL pg_temp.headrace_run_job();
        DROP PROCEDURE IF EXISTS pg_temp.headrace_run_job();
    END IF;
END
$body$;
COMMENT ON PROCEDURE headrace.run_job IS
    'As in TimescaleDB 2: runs a job here and now with the caller''s rights, without max_runtime, history and statistics; a procedure may COMMIT unless this CALL is inside a transaction block, and the caller needs TEMPORARY on the database for one.';

-- What people read. A row of postprocessing_jobs shows the routine and the config of its newest run.

CREATE VIEW headrace.jobs AS
SELECT j.job_id::integer AS job_id,
       j.name::name AS application_name,
       j.schedule_interval,
       j.max_runtime,
       j.max_retries,
       j.retry_period,
       coalesce(j.proc_schema, latest.proc_schema)::name AS proc_schema,
       coalesce(j.proc_name, latest.proc_name)::name AS proc_name,
       j.owner,
       j.scheduled,
       j.fixed_schedule,
       coalesce(j.config, latest.config) AS config,
       s.next_start,
       j.initial_start,
       NULL::name AS hypertable_schema,
       NULL::name AS hypertable_name,
       j.check_schema::name AS check_schema,
       j.check_name::name AS check_name,
       j.timezone,
       j.cron,
       j.run_at,
       j.after_job::integer AS after_job,
       s.problem,
       s.waits_for
  FROM headrace.job AS j
  JOIN headrace.job_state AS s USING (job_id)
  LEFT JOIN LATERAL (
       SELECT r.proc_schema, r.proc_name, r.config
         FROM headrace.job_run AS r
        WHERE j.origin = 'hdbpp' AND r.job_id = j.job_id AND r.proc_name IS NOT NULL
        ORDER BY r.run_id DESC
        LIMIT 1) AS latest ON true
 WHERE j.gone_at IS NULL;
COMMENT ON VIEW headrace.jobs IS
    'As timescaledb_information.jobs, then our own columns; schedule_interval is null for a job with cron, run_at or after_job.';

CREATE VIEW headrace.job_stats AS
SELECT NULL::name AS hypertable_schema,
       NULL::name AS hypertable_name,
       j.job_id::integer AS job_id,
       s.last_run_started_at,
       s.last_successful_finish,
       CASE s.last_run_success WHEN true THEN 'Success' WHEN false THEN 'Failed' END AS last_run_status,
       CASE WHEN EXISTS (SELECT FROM headrace.job_run AS r WHERE r.job_id = j.job_id AND r.state = 'running')
            THEN 'Running'
            WHEN j.scheduled THEN 'Scheduled'
            ELSE 'Paused' END AS job_status,
       s.last_run_duration,
       CASE WHEN j.scheduled THEN s.next_start END AS next_start,
       s.total_runs,
       s.total_successes,
       s.total_failures
  FROM headrace.job AS j
  JOIN headrace.job_state AS s USING (job_id)
 WHERE j.gone_at IS NULL;
COMMENT ON VIEW headrace.job_stats IS
    'As timescaledb_information.job_stats, of every job, also one that never ran; what has not happened is null, not -infinity.';

CREATE VIEW headrace.job_history AS
SELECT r.run_id AS id,
       r.job_id::integer AS job_id,
       r.state = 'succeeded' AS succeeded,
       coalesce(r.proc_schema, j.proc_schema)::name AS proc_schema,
       coalesce(r.proc_name, j.proc_name)::name AS proc_name,
       r.backend_pid AS pid,
       r.started_at AS start_time,
       r.finished_at AS finish_time,
       r.config,
       r.sqlstate AS sqlerrcode,
       nullif(concat_ws('. ', rtrim(r.message, '.'), rtrim(r.detail, '.'), r.hint), '') AS err_message,
       r.state,
       r.scheduled_for,
       r.attempt,
       r.reason,
       r.notices
  FROM headrace.job_run AS r
  LEFT JOIN headrace.job AS j USING (job_id)
 WHERE r.state NOT IN ('queued', 'running');
COMMENT ON VIEW headrace.job_history IS
    'As timescaledb_information.job_history, then our own columns: every run that is over, also successes, skipped ones, and those of deleted jobs.';

CREATE VIEW headrace.job_errors AS
SELECT h.job_id, h.proc_schema, h.proc_name, h.pid, h.start_time, h.finish_time, h.sqlerrcode,
       coalesce(h.err_message, CASE h.state WHEN 'lost' THEN 'the run was lost: its worker or its backend is gone' END)
           AS err_message
  FROM headrace.job_history AS h
 WHERE h.state IN ('failed', 'timeout', 'lost');
COMMENT ON VIEW headrace.job_errors IS
    'As timescaledb_information.job_errors: the runs that failed, ran out of time or were lost; shown to whom SELECT is granted, not by job.';

REVOKE ALL ON FUNCTION
    headrace.find_action, headrace.find_check, headrace.check_statement, headrace.job_title, headrace.check_time_zone,
    headrace.check_schedule, headrace.job_to_manage, headrace.check_manager, headrace.write_job, headrace.change_job,
    headrace.stop_run, headrace.remove_job, headrace.request_run, headrace.cancel_one, headrace.compose_call,
    headrace.note_caller, headrace.obey_order,
    headrace.add_job, headrace.alter_job, headrace.delete_job, headrace.start_job, headrace.cancel_run FROM PUBLIC;
REVOKE ALL ON PROCEDURE headrace.run_job FROM PUBLIC;
