-- The control database: hosts, runs, pauses. Lives wherever `control.dsn` points.

CREATE TABLE headrace.host (
    name text PRIMARY KEY,
    version text NOT NULL,
    first_seen timestamptz NOT NULL DEFAULT now(),
    last_seen timestamptz NOT NULL DEFAULT now(),
    draining boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE headrace.host IS 'Instrument hosts whose workers or watchers have ever announced themselves.';

CREATE TABLE headrace.worker (
    host text NOT NULL REFERENCES headrace.host ON DELETE CASCADE,
    name text NOT NULL,
    queues text[] NOT NULL,
    last_seen timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (host, name)
);
COMMENT ON TABLE headrace.worker IS 'What each worker of a host consumes; a watcher consumes nothing.';

CREATE TABLE headrace.pause (
    room text NOT NULL,
    host text NOT NULL,
    paused_at timestamptz NOT NULL DEFAULT now(),
    paused_by text NOT NULL,
    reason text,
    PRIMARY KEY (room, host)
);
COMMENT ON TABLE headrace.pause IS 'What is paused; an asterisk stands for every room or every host.';

CREATE TABLE headrace.run (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    room text NOT NULL,
    key text NOT NULL,
    attempt integer NOT NULL DEFAULT 1,
    state text NOT NULL CHECK (state IN
        ('queued', 'running', 'succeeded', 'failed', 'timeout', 'cancelled', 'lost', 'skipped')),
    host text,
    worker text,
    database text,
    backend_pid integer,
    backend_start timestamptz,
    requested_by text,
    task text NOT NULL,
    message jsonb NOT NULL,
    sent_at timestamptz,
    queued_at timestamptz,
    started_at timestamptz,
    heartbeat timestamptz,
    finished_at timestamptz,
    cancel_requested_at timestamptz,
    cancel_requested_by text,
    error jsonb,
    counters jsonb NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE headrace.run IS 'The log for people; whether something was done is asked of the effect, never of this table.';

CREATE INDEX run_live ON headrace.run (room, key) WHERE state IN ('queued', 'running');
CREATE INDEX run_latest ON headrace.run (room, key, id DESC);
CREATE INDEX run_trouble ON headrace.run (finished_at) WHERE state IN ('failed', 'lost', 'timeout');
CREATE INDEX run_finished ON headrace.run (finished_at) WHERE finished_at IS NOT NULL;
