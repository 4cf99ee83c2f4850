-- Postprocessing: jobs, when they are due, and every run of them. Lives in each database whose procedures are run.

CREATE SEQUENCE headrace.job_number START WITH 1000000 MAXVALUE 2147483647;
COMMENT ON SEQUENCE headrace.job_number IS
    'Numbers of our own jobs; those of postprocessing_jobs keep theirs, which start at 1. All fit an int4 parameter.';

CREATE TABLE headrace.job (
    job_id bigint PRIMARY KEY DEFAULT nextval('headrace.job_number'),
    origin text NOT NULL DEFAULT 'headrace' CHECK (origin IN ('headrace', 'hdbpp')),
    imported_from text UNIQUE,
    name text,
    owner name NOT NULL DEFAULT session_user,
    run_as name,
    proc_schema text,
    proc_name text,
    config jsonb,
    check_schema text,
    check_name text,
    scheduled boolean NOT NULL DEFAULT true,
    schedule_interval interval CHECK (schedule_interval > interval '0' AND schedule_interval < interval '1000 years'),
    cron text,
    run_at timestamptz CHECK (run_at BETWEEN '1900-01-01 UTC' AND '9000-01-01 UTC'),
    after_job bigint CHECK (after_job <> job_id),
    fixed_schedule boolean NOT NULL DEFAULT true,
    timezone text,
    initial_start timestamptz CHECK (initial_start BETWEEN '1900-01-01 UTC' AND '9000-01-01 UTC'),
    run_window text,
    after_failure text NOT NULL DEFAULT 'stop' CHECK (after_failure IN ('stop', 'run')),
    max_runtime interval NOT NULL DEFAULT interval '0' CHECK (max_runtime BETWEEN '0' AND '1000 years'),
    max_retries integer NOT NULL DEFAULT -1 CHECK (max_retries >= -1),
    retry_period interval NOT NULL DEFAULT interval '5 minutes' CHECK (retry_period BETWEEN '0' AND '1000 years'),
    atomic boolean NOT NULL DEFAULT false,
    on_lost text NOT NULL DEFAULT 'rerun' CHECK (on_lost IN ('rerun', 'skip')),
    missed text NOT NULL DEFAULT 'once' CHECK (missed IN ('once', 'skip', 'all')),
    missed_cap integer NOT NULL DEFAULT 10 CHECK (missed_cap BETWEEN 1 AND 10000),
    start_deadline interval CHECK (start_deadline > '0' AND start_deadline < '1000 years'),
    overlap text NOT NULL DEFAULT 'skip' CHECK (overlap IN ('skip', 'queue')),
    lock_group text,
    priority integer NOT NULL DEFAULT 0,
    alert_after interval CHECK (alert_after > '0' AND alert_after < '1000 years'),
    created_at timestamptz NOT NULL DEFAULT now() CHECK (created_at BETWEEN '1900-01-01 UTC' AND '9000-01-01 UTC'),
    gone_at timestamptz,
    CHECK (num_nonnulls(schedule_interval, cron, run_at, after_job) <= 1),
    CHECK (origin = 'hdbpp' OR proc_name IS NOT NULL)
);
COMMENT ON TABLE headrace.job IS
    'One row per job. A row of origin hdbpp adds a schedule to the row of postprocessing_jobs with the same job_id, which has its procedure and config.';
COMMENT ON COLUMN headrace.job.imported_from IS 'The source, its number there and a digest of what it ran: ''pg_cron 7 1f0c5a9be214''. Taken over once.';
COMMENT ON COLUMN headrace.job.name IS 'For people; the same as TimescaleDB''s application_name.';
COMMENT ON COLUMN headrace.job.run_as IS 'The role that the procedure runs as; null: the login of the settings.';
COMMENT ON COLUMN headrace.job.after_job IS 'Runs after each success of this job (with after_failure = run: after each end).';
COMMENT ON COLUMN headrace.job.run_window IS 'Starts only then, in its time zone: ''22:00-06:00'', ''Mon-Fri 20:00-04:00, Sun 00:00-24:00''.';
COMMENT ON COLUMN headrace.job.max_runtime IS 'Cancelled after this long; 0: no limit.';
COMMENT ON COLUMN headrace.job.max_retries IS 'Failures in a row after which the job is disabled; 0: no retry, but the schedule goes on only if the first run ends well; -1: no limit.';
COMMENT ON COLUMN headrace.job.atomic IS 'The call and its mark commit in one transaction: exactly once, for routines that do not commit.';
COMMENT ON COLUMN headrace.job.start_deadline IS 'A slot that could not start for so long is skipped.';
COMMENT ON COLUMN headrace.job.alert_after IS 'Alert when the last success is older than this.';
COMMENT ON COLUMN headrace.job.gone_at IS 'Since when postprocessing_jobs has no such row; its schedule is kept for when it comes back.';

ALTER SEQUENCE headrace.job_number OWNED BY headrace.job.job_id;

CREATE TABLE headrace.job_state (
    job_id bigint PRIMARY KEY REFERENCES headrace.job ON DELETE CASCADE,
    replan boolean NOT NULL DEFAULT true,
    next_start timestamptz CHECK (next_start BETWEEN '1900-01-01 UTC' AND '9999-01-01 UTC'),
    slot timestamptz CHECK (slot BETWEEN '1900-01-01 UTC' AND '9999-01-01 UTC'),
    reason text NOT NULL DEFAULT 'schedule',
    attempt integer NOT NULL DEFAULT 1,
    priority integer NOT NULL DEFAULT 0,
    live_run bigint,
    catch_up_until timestamptz CHECK (catch_up_until BETWEEN '1900-01-01 UTC' AND '9999-01-01 UTC'),
    planned_at timestamptz,
    problem text,
    waits_for text,
    consecutive_failures integer NOT NULL DEFAULT 0,
    last_slot timestamptz CHECK (last_slot BETWEEN '1900-01-01 UTC' AND '9999-01-01 UTC'),
    last_run_started_at timestamptz,
    last_finish timestamptz CHECK (last_finish BETWEEN '1900-01-01 UTC' AND '9999-01-01 UTC'),
    last_successful_finish timestamptz,
    last_run_success boolean,
    last_run_duration interval,
    total_runs bigint NOT NULL DEFAULT 0,
    total_successes bigint NOT NULL DEFAULT 0,
    total_failures bigint NOT NULL DEFAULT 0,
    total_crashes bigint NOT NULL DEFAULT 0,
    late_alert_at timestamptz
);
COMMENT ON TABLE headrace.job_state IS 'When each job is due next, and what became of it; written by the scheduler and by the runs.';
COMMENT ON COLUMN headrace.job_state.replan IS 'The definition changed: the next look decides anew when it is due.';
COMMENT ON COLUMN headrace.job_state.next_start IS 'Not before this moment; null while it is live, paused, or has no further slot.';
COMMENT ON COLUMN headrace.job_state.slot IS 'The slot of its schedule that next_start is about; a retry and a shut window are later than their slot.';
COMMENT ON COLUMN headrace.job_state.live_run IS 'The queued or running run of its schedule; a job has one at a time.';
COMMENT ON COLUMN headrace.job_state.catch_up_until IS 'Slots up to here were missed and are being made up for, one by one.';
COMMENT ON COLUMN headrace.job_state.problem IS 'Why it cannot be scheduled, for people.';
COMMENT ON COLUMN headrace.job_state.waits_for IS 'What holds a due job back: a window, a limit, a lock group.';

-- The scheduler's one frequent question, answered from the index alone.
CREATE INDEX job_due ON headrace.job_state (next_start, priority, job_id) WHERE next_start IS NOT NULL;
CREATE INDEX job_replan ON headrace.job_state (job_id) WHERE replan;
CREATE INDEX job_live ON headrace.job_state (live_run) WHERE live_run IS NOT NULL;
CREATE INDEX job_after ON headrace.job (after_job) WHERE after_job IS NOT NULL;

CREATE TABLE headrace.job_run (
    run_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id bigint NOT NULL,
    scheduled_for timestamptz NOT NULL CHECK (scheduled_for BETWEEN '1900-01-01 UTC' AND '9999-01-01 UTC'),
    attempt integer NOT NULL DEFAULT 1,
    reason text NOT NULL CHECK (reason IN ('schedule', 'retry', 'catch-up', 'after', 'request', 'drop-in', 'back-fill')),
    requested_by text,
    state text NOT NULL DEFAULT 'queued' CHECK (state IN
        ('queued', 'running', 'succeeded', 'failed', 'timeout', 'cancelled', 'lost', 'skipped')),
    queued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    sent_at timestamptz,
    started_at timestamptz,
    heartbeat timestamptz,
    finished_at timestamptz,
    cancel_requested_at timestamptz,
    cancel_requested_by text,
    host text,
    worker text,
    backend_pid integer,
    backend_start timestamptz,
    control_run bigint,
    job_name text,
    lock_group text,
    priority integer NOT NULL DEFAULT 0,
    proc_schema text,
    proc_name text,
    run_as text,
    config jsonb,
    body_hash text,
    inner_transactions integer,
    status_message text,
    sqlstate text,
    message text,
    detail text,
    hint text,
    context text,
    notices jsonb,
    UNIQUE (job_id, scheduled_for)
);
COMMENT ON TABLE headrace.job_run IS
    'Every run of every job, the skipped and the lost included. A row stands before its message is sent; its slot can have no second one.';
COMMENT ON COLUMN headrace.job_run.inner_transactions IS
    'Transactions that the routine ended by itself; of a run that failed later their work is committed and stays.';
COMMENT ON COLUMN headrace.job_run.body_hash IS 'SHA-256 of the routine''s definition as it ran.';

-- The last guard against two backends in one job, whatever messages and people do.
CREATE UNIQUE INDEX job_run_one_at_a_time ON headrace.job_run (job_id) WHERE state = 'running';
CREATE INDEX job_run_live ON headrace.job_run (run_id) WHERE state IN ('queued', 'running');
CREATE INDEX job_run_latest ON headrace.job_run (job_id, run_id DESC);
CREATE INDEX job_run_finished ON headrace.job_run (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE headrace.quiet_period (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id bigint REFERENCES headrace.job ON DELETE CASCADE,
    starts_at timestamptz NOT NULL DEFAULT now() CHECK (starts_at BETWEEN '1900-01-01 UTC' AND '9000-01-01 UTC'),
    ends_at timestamptz NOT NULL DEFAULT 'infinity' CHECK (ends_at = 'infinity' OR ends_at < '9000-01-01 UTC'),
    made_by text NOT NULL DEFAULT session_user,
    reason text,
    CHECK (starts_at < ends_at)
);
COMMENT ON TABLE headrace.quiet_period IS
    'Spans in which nothing starts here: of one job, or of the whole database where job_id is null. What is due waits.';

CREATE TABLE headrace.job_limit (
    lock_group text PRIMARY KEY,
    max_running integer NOT NULL CHECK (max_running > 0)
);
COMMENT ON TABLE headrace.job_limit IS 'How many jobs of a lock group may run at once; a group without a row: one.';

-- Whoever changes a job, by whatever means, has the next look plan it anew.
CREATE FUNCTION headrace.job_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.job_id = OLD.job_id
        AND (OLD.scheduled, OLD.schedule_interval, OLD.cron, OLD.run_at, OLD.after_job, OLD.fixed_schedule, OLD.timezone,
             OLD.initial_start, OLD.run_window, OLD.gone_at)
            IS NOT DISTINCT FROM
            (NEW.scheduled, NEW.schedule_interval, NEW.cron, NEW.run_at, NEW.after_job, NEW.fixed_schedule, NEW.timezone,
             NEW.initial_start, NEW.run_window, NEW.gone_at) THEN
        UPDATE headrace.job_state SET priority = NEW.priority WHERE job_id = NEW.job_id;
        RETURN NULL;
    END IF;
    INSERT INTO headrace.job_state (job_id, priority)
    VALUES (NEW.job_id, NEW.priority)
    ON CONFLICT (job_id) DO UPDATE
       SET replan = true,
           priority = NEW.priority,
           problem = NULL,
           next_start = CASE WHEN NEW.scheduled AND NEW.gone_at IS NULL THEN job_state.next_start END,
           consecutive_failures = CASE WHEN NEW.scheduled AND TG_OP = 'UPDATE' AND NOT OLD.scheduled THEN 0
                                       ELSE job_state.consecutive_failures END;
    RETURN NULL;
END
$body$;
REVOKE ALL ON FUNCTION headrace.job_changed() FROM PUBLIC;

CREATE TRIGGER job_inserted AFTER INSERT ON headrace.job
    FOR EACH ROW EXECUTE FUNCTION headrace.job_changed();
CREATE TRIGGER job_updated AFTER UPDATE ON headrace.job FOR EACH ROW
    WHEN (OLD.job_id IS DISTINCT FROM NEW.job_id
          OR (OLD.scheduled, OLD.schedule_interval, OLD.cron, OLD.run_at, OLD.after_job, OLD.fixed_schedule, OLD.timezone,
              OLD.initial_start, OLD.run_window, OLD.priority, OLD.gone_at)
             IS DISTINCT FROM
             (NEW.scheduled, NEW.schedule_interval, NEW.cron, NEW.run_at, NEW.after_job, NEW.fixed_schedule, NEW.timezone,
              NEW.initial_start, NEW.run_window, NEW.priority, NEW.gone_at))
    EXECUTE FUNCTION headrace.job_changed();
