-- Procedures that behave well, badly and oddly, for the tests of postprocessing; each tells what it did in `witness`.
CREATE TABLE witness (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tag text NOT NULL,
    job bigint,
    config text,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    app text DEFAULT current_setting('application_name'),
    pid integer DEFAULT pg_backend_pid(),
    role text DEFAULT current_user,
    zone text DEFAULT current_setting('TimeZone'),
    path text DEFAULT current_setting('search_path')
);
CREATE PROCEDURE t_ok(job_id integer, config jsonb) LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE 'working on %', config;
    INSERT INTO public.witness (tag, job, config) VALUES ('ok', job_id, config::text);
END $$;
CREATE PROCEDURE t_ok_big(job_id bigint, config json) LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.witness (tag, job, config) VALUES ('big', job_id, config::text); END $$;
CREATE SCHEMA "My Sch";
CREATE PROCEDURE "My Sch"."Do It"(job_id integer, config jsonb) LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.witness (tag, job, config) VALUES ('quoted', job_id, coalesce(config::text, 'SQL NULL')); END $$;
CREATE PROCEDURE t_one_arg(job_id integer) LANGUAGE plpgsql AS $$ BEGIN NULL; END $$;
CREATE FUNCTION t_func(job_id integer, config jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.witness (tag, job, config) VALUES ('func', job_id, config::text); END $$;
CREATE PROCEDURE t_fail(job_id integer, config jsonb) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.witness (tag, job) VALUES ('fail-before', job_id);
    RAISE EXCEPTION 'boom' USING ERRCODE = 'P7001', DETAIL = 'some detail', HINT = 'some hint';
END $$;
CREATE PROCEDURE t_commit_ok(job_id integer, config jsonb) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.witness (tag, job) VALUES ('c1', job_id); COMMIT;
    INSERT INTO public.witness (tag, job) VALUES ('c2', job_id); COMMIT;
END $$;
CREATE PROCEDURE t_commit_fail(job_id integer, config jsonb) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.witness (tag, job) VALUES ('c1', job_id); COMMIT;
    INSERT INTO public.witness (tag, job) VALUES ('c2', job_id); COMMIT;
    RAISE EXCEPTION 'after commit';
END $$;
CREATE PROCEDURE t_sleep(job_id integer, config jsonb) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.witness (tag, job) VALUES ('start', job_id); COMMIT;
    PERFORM pg_sleep((config ->> 's')::float8);
    INSERT INTO public.witness (tag, job) VALUES ('end', job_id);
END $$;
CREATE PROCEDURE t_sleep_whole(job_id integer, config jsonb) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep((config ->> 's')::float8);
    INSERT INTO public.witness (tag, job) VALUES ('whole', job_id);
END $$;
CREATE PROCEDURE t_sleep_commits(job_id integer, config jsonb) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. (config ->> 'n')::int LOOP
        PERFORM pg_sleep(0.3);
        INSERT INTO public.witness (tag, job) VALUES ('step', job_id); COMMIT;
    END LOOP;
END $$;
CREATE PROCEDURE t_stubborn(job_id integer, config jsonb) LANGUAGE plpgsql AS $$
DECLARE until timestamptz := clock_timestamp() + make_interval(secs => (config ->> 's')::float8);
BEGIN
    INSERT INTO public.witness (tag, job) VALUES ('start', job_id);
    WHILE clock_timestamp() < until LOOP
        BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END;
    END LOOP;
    INSERT INTO public.witness (tag, job) VALUES ('end', job_id);
END $$;
CREATE PROCEDURE t_die(job_id integer, config jsonb) LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(5); END $$;
CREATE PROCEDURE t_flaky(job_id integer, config jsonb) LANGUAGE plpgsql AS $$
DECLARE tries integer;
BEGIN
    INSERT INTO public.witness (tag, job) VALUES ('try', job_id); COMMIT;
    SELECT count(*) INTO tries FROM public.witness WHERE tag = 'try' AND job = t_flaky.job_id;
    IF tries < (config ->> 'n')::int THEN RAISE EXCEPTION 'try % failed', tries; END IF;
    INSERT INTO public.witness (tag, job) VALUES ('flaky-ok', job_id);
END $$;
CREATE PROCEDURE t_dirty(job_id integer, config jsonb) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('search_path', 'nowhere', false);
    PERFORM set_config('TimeZone', 'Asia/Tokyo', false);
    PERFORM set_config('statement_timeout', '1ms', false);
    PERFORM set_config('default_transaction_read_only', 'on', false);
    CREATE TEMP TABLE postprocessing_jobs_stats (x integer);
    PERFORM pg_catalog.pg_advisory_unlock_all();
    INSERT INTO public.witness (tag, job) VALUES ('dirty', job_id);
END $$;
CREATE PROCEDURE t_drop_me(job_id integer, config jsonb) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.witness (tag, job) VALUES ('drop-me', job_id);
    DELETE FROM public.postprocessing_jobs_stats s WHERE s.job_id = t_drop_me.job_id;
    DELETE FROM public.postprocessing_jobs j WHERE j.job_id = t_drop_me.job_id;
END $$;
