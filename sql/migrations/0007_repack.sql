-- Repack: which tables are being rewritten, how far each has come, and what it gained.
-- Lives in each database whose tables are rewritten: a step's mark commits with its effect.

CREATE TABLE headrace.repack (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    table_oid oid NOT NULL,
    new_oid oid,
    engine text NOT NULL CHECK (engine IN ('shadow', 'reindex')),
    goal text NOT NULL CHECK (goal IN ('swap', 'ready', 'abort')),
    step text NOT NULL DEFAULT 'prepare'
        CHECK (step IN ('prepare', 'copy', 'index', 'replay', 'swap', 'verify', 'drop')),
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'done', 'failed', 'aborted')),
    reason text,
    problem text,
    options jsonb NOT NULL,
    plan text,
    requested_by text,
    run bigint,
    shape jsonb,
    fingerprint jsonb,
    trigger_marks text,
    position text[],
    verify_position text[],
    rows_estimated bigint NOT NULL DEFAULT 0,
    rows_copied bigint NOT NULL DEFAULT 0,
    chunks bigint NOT NULL DEFAULT 0,
    chunk_rows integer,
    keys_replayed bigint NOT NULL DEFAULT 0,
    replay_rounds bigint NOT NULL DEFAULT 0,
    backlog_rows bigint,
    behind_since timestamptz,
    behind_rows bigint,
    behind_at timestamptz,
    rows_verified bigint NOT NULL DEFAULT 0,
    lock_attempts integer NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0,
    hold_seconds double precision,
    bytes_before bigint,
    bytes_after bigint,
    estimated_gain_bytes bigint,
    due_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    sent_at timestamptz,
    paused_at timestamptz,
    paused_by text,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    step_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    prepared_at timestamptz,
    swapped_at timestamptz,
    keep_until timestamptz,
    finished_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX repack_one_per_table ON headrace.repack (schema_name, table_name) WHERE state = 'active';
CREATE INDEX repack_history ON headrace.repack (schema_name, table_name, id DESC);
COMMENT ON TABLE headrace.repack IS
    'One row per request. While it is active, schemas headrace_new_<id> and headrace_old_<id> may hold its tables.';
COMMENT ON COLUMN headrace.repack.goal IS 'ready: the copy is kept in step until a person says swap. abort: what it made is being taken away.';
COMMENT ON COLUMN headrace.repack.options IS 'What the settings and the request said when it began.';
COMMENT ON COLUMN headrace.repack.shape IS 'What is copied, by which key, in which order.';
COMMENT ON COLUMN headrace.repack.fingerprint IS 'How the table looked when the copy was made; an array of lines.';
COMMENT ON COLUMN headrace.repack.trigger_marks IS 'The log triggers as they were made: one that was switched off meanwhile shows here.';
COMMENT ON COLUMN headrace.repack.position IS 'Key (or order columns and key) of the last row copied, as text.';
COMMENT ON COLUMN headrace.repack.behind_since IS 'Since when the log has not become shorter; behind_rows and behind_at: its length when that was last looked at.';
COMMENT ON COLUMN headrace.repack.hold_seconds IS 'How long the swap held its ACCESS EXCLUSIVE lock.';

CREATE TABLE headrace.repack_index (
    repack bigint NOT NULL REFERENCES headrace.repack ON DELETE CASCADE,
    number integer NOT NULL,
    name text NOT NULL,
    statements text[] NOT NULL,
    is_key boolean NOT NULL DEFAULT false,
    is_unique boolean NOT NULL DEFAULT false,
    sent_at timestamptz,
    built_at timestamptz,
    seconds double precision,
    problem text,
    PRIMARY KEY (repack, number)
);
COMMENT ON TABLE headrace.repack_index IS 'The indexes of a copy; each is built and marked in one transaction.';

CREATE TABLE headrace.repack_constraint (
    repack bigint NOT NULL REFERENCES headrace.repack ON DELETE CASCADE,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    constraint_name text NOT NULL,
    validated_at timestamptz,
    problem text,
    PRIMARY KEY (repack, schema_name, table_name, constraint_name)
);
COMMENT ON TABLE headrace.repack_constraint IS
    'Constraints that the swap made NOT VALID although they were valid: they are validated after it.';

CREATE TABLE headrace.repack_candidate (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    looked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    schema_name text NOT NULL,
    table_name text NOT NULL,
    method text NOT NULL CHECK (method IN ('statistics', 'pgstattuple')),
    table_bytes bigint NOT NULL,
    index_bytes bigint NOT NULL,
    toast_bytes bigint NOT NULL,
    table_bloat_bytes bigint NOT NULL,
    index_bloat_bytes bigint NOT NULL,
    toast_bloat_bytes bigint NOT NULL,
    verdict text NOT NULL,
    repack bigint REFERENCES headrace.repack ON DELETE SET NULL,
    gained_bytes bigint
);
CREATE INDEX repack_candidate_latest ON headrace.repack_candidate (schema_name, table_name, id DESC);
CREATE INDEX repack_candidate_age ON headrace.repack_candidate (looked_at);
COMMENT ON TABLE headrace.repack_candidate IS 'Estimates of bloat, what was decided on them, and what was gained in the end.';

CREATE TABLE headrace.repack_choice (
    plan text PRIMARY KEY,
    asked_at timestamptz NOT NULL,
    looked_at timestamptz,
    waiting integer NOT NULL DEFAULT 0
);
COMMENT ON TABLE headrace.repack_choice IS 'When each plan''s tables were last to be looked at, and when they were; how many wait for their turn.';
