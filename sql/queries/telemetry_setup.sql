-- name: create_telem
-- Telemetry records. A record seen twice is one row; two different ones in one microsecond are two.
CREATE TABLE public.telem (
    ts timestamptz NOT NULL,
    device text NOT NULL,
    msg jsonb,
    prio text,
    ec text,
    ts_ns smallint NOT NULL DEFAULT 0 CHECK (ts_ns BETWEEN 0 AND 999),
    digest bigint NOT NULL GENERATED ALWAYS AS
        (hashtextextended(coalesce(ec, '') || E'\x1f' || coalesce(msg::text, ''), 0)) STORED,
    PRIMARY KEY (device, ts, ts_ns, digest)
)

-- name: create_telem_ts
-- Time ranges over all devices: tiny, because rows arrive in order of time.
CREATE INDEX IF NOT EXISTS telem_ts_brin ON public.telem USING brin (ts)

-- name: create_observation_spans
-- The observers' marks, for the view of observations.
CREATE INDEX IF NOT EXISTS observation_spans_fixup ON public.telem (ts, (msg ->> 'obsName'))
 WHERE device = 'observers' AND msg ->> 'obsName' <> ''

-- name: create_file_origins
-- Every file of every host.
CREATE TABLE IF NOT EXISTS public.file_origins (
    origin_host text NOT NULL,
    origin_path text COLLATE "C" NOT NULL,
    modification_time timestamptz,
    creation_time timestamptz,
    size_bytes bigint,
    path_bytes bytea,
    missing_sights smallint NOT NULL DEFAULT 0,
    PRIMARY KEY (origin_host, origin_path)
)

-- name: create_file_ingest_times
-- When each telemetry file was last read to its end.
CREATE TABLE IF NOT EXISTS public.file_ingest_times (
    ts timestamptz,
    device text,
    ingested_at timestamptz,
    origin_host text,
    origin_path text,
    UNIQUE (ts, device),
    FOREIGN KEY (origin_host, origin_path) REFERENCES public.file_origins (origin_host, origin_path)
        ON UPDATE CASCADE
)

-- name: create_file_replicas
-- Copies of files on other hosts.
CREATE TABLE IF NOT EXISTS public.file_replicas (
    hostname text,
    replica_path text,
    origin_modification_time timestamptz,
    size_bytes bigint,
    origin_host text,
    origin_path text,
    FOREIGN KEY (origin_host, origin_path) REFERENCES public.file_origins (origin_host, origin_path)
        ON UPDATE CASCADE
)

-- name: create_observations
-- Spans in which an observer had "observing" switched on; the end is null while it still is.
CREATE OR REPLACE VIEW public.observations AS
WITH marks AS (
    SELECT ts, msg ->> 'email' AS email, msg ->> 'obsName' AS obsname,
           (msg ->> 'observing')::boolean AS observing,
           lag((msg ->> 'observing')::boolean) OVER (ORDER BY ts) AS before
      FROM public.telem
     WHERE device = 'observers' AND msg ->> 'obsName' <> ''
), edges AS (
    SELECT ts, email, obsname, observing, lead(ts) OVER (ORDER BY ts) AS next_ts
      FROM marks
     WHERE observing IS DISTINCT FROM coalesce(before, false)
)
SELECT ts AS start_ts, next_ts AS end_ts, email, obsname FROM edges WHERE observing

-- name: widen_telem
-- An xtelemdb table becomes ours: wider columns, the nanoseconds, the digest. Rewrites the table once.
ALTER TABLE public.telem
    ALTER COLUMN device TYPE text,
    ALTER COLUMN prio TYPE text,
    ALTER COLUMN ec TYPE text,
    ADD COLUMN ts_ns smallint NOT NULL DEFAULT 0 CHECK (ts_ns BETWEEN 0 AND 999),
    ADD COLUMN digest bigint NOT NULL GENERATED ALWAYS AS
        (hashtextextended(coalesce(ec, '') || E'\x1f' || coalesce(msg::text, ''), 0)) STORED,
    DROP CONSTRAINT telem_pkey,
    ADD CONSTRAINT telem_pkey PRIMARY KEY (device, ts, ts_ns, digest)

-- name: drop_old_index
-- The old index on device and time: the new primary key serves its queries.
DROP INDEX IF EXISTS public.telem_device_ts

-- name: drop_observations
-- The view stands in the way of wider columns; it is made again in the same transaction.
DROP VIEW public.observations

-- name: restore_observations
-- The view as it was before.
-- slots: definition
CREATE VIEW public.observations AS {definition}

-- name: widen_file_origins
-- An xtelemdb table becomes ours: longer paths, the bytes of names that are not UTF-8, sights without the file.
ALTER TABLE public.file_origins
    ALTER COLUMN origin_host TYPE text,
    ALTER COLUMN origin_path TYPE text COLLATE "C",
    ADD COLUMN IF NOT EXISTS path_bytes bytea,
    ADD COLUMN IF NOT EXISTS missing_sights smallint NOT NULL DEFAULT 0

-- name: widen_file_ingest_times
-- The same widths here; a moved file takes its row along.
ALTER TABLE public.file_ingest_times
    ALTER COLUMN device TYPE text,
    ALTER COLUMN origin_host TYPE text,
    ALTER COLUMN origin_path TYPE text,
    DROP CONSTRAINT IF EXISTS file_ingest_times_origin_host_origin_path_fkey,
    ADD CONSTRAINT file_ingest_times_origin_host_origin_path_fkey FOREIGN KEY (origin_host, origin_path)
        REFERENCES public.file_origins (origin_host, origin_path) ON UPDATE CASCADE

-- name: widen_file_replicas
-- The same widths here; a moved file takes its replicas along.
ALTER TABLE public.file_replicas
    ALTER COLUMN hostname TYPE text,
    ALTER COLUMN replica_path TYPE text,
    ALTER COLUMN origin_host TYPE text,
    ALTER COLUMN origin_path TYPE text,
    DROP CONSTRAINT IF EXISTS file_replicas_origin_host_origin_path_fkey,
    ADD CONSTRAINT file_replicas_origin_host_origin_path_fkey FOREIGN KEY (origin_host, origin_path)
        REFERENCES public.file_origins (origin_host, origin_path) ON UPDATE CASCADE

-- name: grant_reader
-- The site's read-only role keeps seeing everything.
-- slots: role
GRANT SELECT ON public.telem, public.file_origins, public.file_ingest_times, public.file_replicas,
    public.observations TO {role}

-- name: facts
-- What stands in schema public already.
SELECT to_regclass('public.telem') IS NOT NULL AS telem,
       EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('public.telem') AND attname = 'digest'
                  AND NOT attisdropped) AS telem_is_ours,
       to_regclass('public.file_origins') IS NOT NULL AS file_origins,
       EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('public.file_origins')
                  AND attname = 'path_bytes' AND NOT attisdropped) AS origins_are_ours,
       to_regclass('public.file_ingest_times') IS NOT NULL AS file_ingest_times,
       to_regclass('public.file_replicas') IS NOT NULL AS file_replicas,
       to_regclass('public.telem_ts_brin') IS NOT NULL AS telem_ts,
       to_regclass('public.observation_spans_fixup') IS NOT NULL AS observation_spans,
       pg_get_viewdef(to_regclass('public.observations')) AS observations,
       EXISTS (SELECT FROM pg_roles WHERE rolname = 'xsup') AS has_reader,
       coalesce(has_table_privilege((SELECT oid FROM pg_roles WHERE rolname = 'xsup'),
                                    to_regclass('public.telem'), 'SELECT'), false) AS reader_may_read
