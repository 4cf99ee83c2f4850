-- The telemetry database: how far each file was read, what could not be read, and what the folders looked like.

CREATE TABLE headrace.telemetry_file (
    host text NOT NULL,
    path text COLLATE "C" NOT NULL,
    device text NOT NULL,
    stamp timestamptz,
    state text NOT NULL CHECK (state IN ('pending', 'open', 'done', 'damaged', 'failed', 'cancelled')),
    volume numeric,
    inode numeric,
    size_bytes bigint,
    mtime_ns bigint,
    seen_size_bytes bigint,
    seen_mtime_ns bigint,
    raw_offset bigint NOT NULL DEFAULT 0,
    skip_bytes bigint NOT NULL DEFAULT 0,
    stream_offset bigint NOT NULL DEFAULT 0,
    head_bytes integer NOT NULL DEFAULT 0,
    head_hash bytea,
    tail_bytes integer NOT NULL DEFAULT 0,
    tail_hash bytea,
    records bigint NOT NULL DEFAULT 0,
    dead_letters bigint NOT NULL DEFAULT 0,
    accepted_letters bigint NOT NULL DEFAULT 0,
    error text,
    due_at timestamptz,
    sent_at timestamptz,
    first_seen timestamptz NOT NULL DEFAULT now(),
    ingested_at timestamptz,
    PRIMARY KEY (host, path)
);
COMMENT ON TABLE headrace.telemetry_file IS
    'The checkpoint of each telemetry file; it commits together with the rows that it speaks of.';
CREATE INDEX telemetry_file_pending ON headrace.telemetry_file (host, seen_mtime_ns) WHERE state = 'pending';
CREATE INDEX telemetry_file_inode ON headrace.telemetry_file (host, inode);
CREATE INDEX telemetry_file_stamp ON headrace.telemetry_file (device, stamp);
CREATE INDEX telemetry_file_device ON headrace.telemetry_file (device, ingested_at DESC) WHERE ingested_at IS NOT NULL;
CREATE INDEX telemetry_file_trouble ON headrace.telemetry_file (host, path) WHERE state IN ('damaged', 'failed');

CREATE TABLE headrace.dead_letter (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    host text NOT NULL,
    path text COLLATE "C" NOT NULL,
    start_byte bigint NOT NULL,
    end_byte bigint NOT NULL,
    reason text NOT NULL,
    raw bytea NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (host, path, start_byte, reason)
);
COMMENT ON TABLE headrace.dead_letter IS
    'Stretches of files that are no record: where, why, and their first 64 KiB. Offsets of a .gz count decompressed bytes.';

CREATE TABLE headrace.inventory_folder (
    host text NOT NULL,
    folder text COLLATE "C" NOT NULL,
    digest bytea NOT NULL,
    files integer NOT NULL,
    scanned_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (host, folder)
);
COMMENT ON TABLE headrace.inventory_folder IS 'What each folder looked like; an unchanged one costs a rescan no SQL.';

CREATE TABLE headrace.inventory_host (
    host text PRIMARY KEY,
    sent_at timestamptz,
    taken_at timestamptz,
    files bigint,
    problems text[] NOT NULL DEFAULT '{}'
);

CREATE TABLE headrace.file_event (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    host text NOT NULL,
    path text NOT NULL,
    event text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE headrace.file_event IS 'What happened to files: moved, rewritten, conflict, missing, found.';
CREATE INDEX file_event_path ON headrace.file_event (host, path);
