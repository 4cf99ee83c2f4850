-- A job that does what hdbpp-reorder-chunks did by cron: rewrite each chunk of the HDB++ tables once, in index order.
--
-- Only for databases with TimescaleDB, whose licence for reorder_chunk is TSL. Every config key may be left out:
--   tables      names of hypertables (the 28 of HDB++, those that exist)
--   schema      where they are (the search_path)
--   older_than  chunks that ended so long ago, an interval ('0')
--
-- Compressed chunks are left alone, as TimescaleDB's own reorder policy does.
--
-- What is done stands in headrace.reordered_chunk, one row per chunk: the old script's file, but one per database and
-- written after each chunk.
--
-- TimescaleDB refuses reorder_chunk in a transaction block and in a subtransaction, so in PL/pgSQL no handler can hold
-- its errors. A table that cannot be looked at does not stop the others; a chunk that cannot be rewritten ends the run.
-- Its row says that it was tried, and the next run leaves it to the end: it keeps no other chunk waiting for ever.
--
-- What is below the check for the extension was written from TimescaleDB's source and has not yet met a TimescaleDB:
-- the tests have the refusal alone.
-- The caller owns the hypertables, and writes headrace.reordered_chunk. It commits: not for jobs with `atomic`.
CREATE TABLE IF NOT EXISTS headrace.reordered_chunk (
    chunk text PRIMARY KEY,
    table_name text NOT NULL,
    tried_at timestamptz NOT NULL,
    reordered_at timestamptz
);
COMMENT ON TABLE headrace.reordered_chunk IS
    'Chunks that hdbpp_reorder_chunks has rewritten; those without reordered_at it tried in vain.';

CREATE OR REPLACE PROCEDURE headrace.hdbpp_reorder_chunks(job_id integer, config jsonb) LANGUAGE plpgsql AS $body$
DECLARE
    kinds CONSTANT text[] :=
        '{boolean,double,encoded,enum,float,long,long64,short,state,string,uchar,ulong,ulong64,ushort}';
    given jsonb := CASE WHEN pg_catalog.jsonb_typeof(config) <> 'null' THEN config ELSE '{}' END;
    timescale text;
    older_than timestamptz;
    names text[];
    name text;
    target regclass;
    index_name text;
    found_chunks text[];
    chunks text[] := '{}';
    indexes text[] := '{}';
    tables text[] := '{}';
    work record;
    done bigint := 0;
    failures text[] := '{}';
BEGIN
    SELECT space.nspname::text INTO timescale
      FROM pg_catalog.pg_extension AS extension
      JOIN pg_catalog.pg_namespace AS space ON space.oid = extension.extnamespace
     WHERE extension.extname = 'timescaledb';
    IF timescale IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = 'TimescaleDB is not installed in this database; hdbpp_reorder_chunks has nothing to reorder',
            HINT = pg_catalog.format('Remove job %s, or install the extension timescaledb.', job_id);
    END IF;
    older_than := pg_catalog.now() - coalesce(given ->> 'older_than', '0')::interval;
    IF given ? 'tables' THEN
        names := ARRAY(SELECT pg_catalog.jsonb_array_elements_text(given -> 'tables'));
    ELSE
        names := ARRAY(SELECT pg_catalog.format('att_%s_dev%s', shape, kind)
                         FROM pg_catalog.unnest('{scalar,array}'::text[]) AS shape, pg_catalog.unnest(kinds) AS kind);
    END IF;
    -- Inside somebody's transaction this fails, before anything is rewritten.
    COMMIT;

    FOREACH name IN ARRAY names LOOP
        BEGIN
            target := pg_catalog.to_regclass(
                CASE WHEN given ? 'schema' THEN pg_catalog.format('%I.%I', given ->> 'schema', name)
                     ELSE pg_catalog.quote_ident(name) END);
            -- Of the 28, those that the site does not have.
            CONTINUE WHEN target IS NULL AND NOT given ? 'tables';
            SELECT pg_catalog.format('%I.%I', space.nspname, class.relname || '_att_conf_id_data_time_idx')
              INTO index_name
              FROM pg_catalog.pg_class AS class JOIN pg_catalog.pg_namespace AS space ON space.oid = class.relnamespace
             WHERE class.oid = target;
            IF target IS NULL OR pg_catalog.to_regclass(index_name) IS NULL THEN
                RAISE EXCEPTION 'there is no %', coalesce('index ' || index_name, 'such table');
            END IF;
            EXECUTE pg_catalog.format(
                'SELECT pg_catalog.array_agg(pg_catalog.format(''%%I.%%I'', space.nspname, class.relname))'
                '  FROM %I.show_chunks($1, older_than => $2) AS shown (chunk)'
                '  JOIN pg_catalog.pg_class AS class ON class.oid = shown.chunk'
                '  JOIN pg_catalog.pg_namespace AS space ON space.oid = class.relnamespace'
                ' WHERE NOT EXISTS (SELECT FROM timescaledb_information.chunks AS info WHERE info.is_compressed'
                '     AND info.chunk_schema = space.nspname AND info.chunk_name = class.relname)', timescale)
               INTO found_chunks USING target, older_than;
            found_chunks := coalesce(found_chunks, '{}');
            chunks := chunks || found_chunks;
            indexes := indexes || pg_catalog.array_fill(index_name, ARRAY[pg_catalog.cardinality(found_chunks)]);
            tables := tables || pg_catalog.array_fill(name, ARRAY[pg_catalog.cardinality(found_chunks)]);
        EXCEPTION WHEN OTHERS THEN
            failures := pg_catalog.array_append(failures, pg_catalog.format('%s (%s)', name, SQLERRM));
            RAISE WARNING 'hdbpp_reorder_chunks: %: %', name, SQLERRM;
        END;
    END LOOP;

    FOR work IN
        SELECT todo.chunk, todo.index_name, todo.table_name
          FROM ROWS FROM (pg_catalog.unnest(chunks), pg_catalog.unnest(indexes), pg_catalog.unnest(tables))
               AS todo (chunk, index_name, table_name)
          LEFT JOIN headrace.reordered_chunk AS known ON known.chunk = todo.chunk
         WHERE known.reordered_at IS NULL
         ORDER BY known.tried_at NULLS FIRST, todo.table_name, todo.chunk
    LOOP
        INSERT INTO headrace.reordered_chunk (chunk, table_name, tried_at)
        VALUES (work.chunk, work.table_name, pg_catalog.clock_timestamp())
        ON CONFLICT (chunk) DO UPDATE SET tried_at = excluded.tried_at;
        COMMIT;
        EXECUTE pg_catalog.format('SELECT %I.reorder_chunk($1::regclass, index => $2::regclass)', timescale)
          USING work.chunk, work.index_name;
        UPDATE headrace.reordered_chunk SET reordered_at = pg_catalog.clock_timestamp() WHERE chunk = work.chunk;
        COMMIT;
        done := done + 1;
    END LOOP;

    RAISE NOTICE 'hdbpp_reorder_chunks: % chunks reordered, % tables failed', done, pg_catalog.cardinality(failures);
    IF pg_catalog.cardinality(failures) > 0 THEN
        RAISE EXCEPTION USING
            MESSAGE = pg_catalog.format('hdbpp_reorder_chunks: %s tables failed: %s',
                pg_catalog.cardinality(failures), pg_catalog.array_to_string(failures, '; ')),
            HINT = 'The chunks of the others are reordered and recorded.';
    END IF;
END
$body$;

COMMENT ON PROCEDURE headrace.hdbpp_reorder_chunks(integer, jsonb) IS
    'Rewrites each chunk of the HDB++ hypertables once, in the order of its index; needs TimescaleDB.';
