-- Bloat: what the catalogs and statistics say of tables, what was decided on it, and what was gained.

-- name: bloat_tables
-- Ordinary tables and leaf partitions that may be rewritten, and the partitioned tables that each belongs to.
SELECT c.oid, n.nspname AS schema, c.relname AS name,
       CASE WHEN c.relispartition
            THEN ARRAY(SELECT upper_n.nspname || '.' || u.relname
                         FROM pg_partition_ancestors(c.oid) AS above (oid)
                         JOIN pg_class u ON u.oid = above.oid
                         JOIN pg_namespace upper_n ON upper_n.oid = u.relnamespace
                        WHERE u.oid <> c.oid)
            ELSE '{}' END AS above
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence <> 't'
   AND n.nspname !~ '^(pg_|information_schema$|headrace$|headrace_(new|old|log)_)'
 ORDER BY n.nspname, c.relname;

-- name: bloat_facts
-- Sizes in bytes, rows and settings of tables; heap_bytes is null where asking for it would wait for a lock, and
-- the other sizes are as the last VACUUM or ANALYZE noted them.
WITH taken AS MATERIALIZED (
    SELECT coalesce(i.indrelid, k.relation) AS oid
      FROM pg_locks k
      LEFT JOIN pg_index i ON i.indexrelid = k.relation
     WHERE k.locktype = 'relation' AND k.mode = 'AccessExclusiveLock' AND k.pid IS DISTINCT FROM pg_backend_pid()
       AND k.database = (SELECT oid FROM pg_database WHERE datname = current_database())
), counted AS (
    SELECT c.oid, c.relname, c.relnamespace, c.relam, c.reltoastrelid, c.reltuples, c.relpages, c.reloptions,
           current_setting('block_size')::bigint AS page,
           EXISTS (SELECT FROM taken WHERE taken.oid IN (c.oid, c.reltoastrelid)) AS is_locked,
           greatest(pg_stat_get_last_analyze_time(c.oid), pg_stat_get_last_autoanalyze_time(c.oid)) AS last_analyze,
           greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)) AS last_vacuum
      FROM pg_class c
     WHERE c.oid = ANY (%(tables)s::oid[])
)
SELECT c.oid, n.nspname AS schema, c.relname AS "table", c.reltoastrelid AS toast, c.is_locked, c.last_analyze,
       m.amname AS method,
       c.page::integer AS page,
       has_table_privilege(c.oid, 'SELECT') AND NOT row_security_active(c.oid) AS is_visible,
       coalesce((SELECT option_value::integer FROM pg_options_to_table(c.reloptions)
                  WHERE option_name = 'fillfactor'), 100) AS fillfactor,
       (SELECT option_value::integer FROM pg_options_to_table(c.reloptions)
         WHERE option_name = 'toast_tuple_target') AS toast_target,
       -- The counters begin at zero after a crash or a reset; an ANALYZE or VACUUM since then has put them right.
       coalesce(c.last_analyze, c.last_vacuum) IS NOT NULL AS is_counted,
       pg_stat_get_live_tuples(c.oid) AS live_rows,
       pg_stat_get_dead_tuples(c.oid) AS dead_rows,
       c.reltuples::bigint AS noted_rows, c.relpages AS noted_pages,
       pg_stat_get_mod_since_analyze(c.oid) AS changed_rows,
       CASE WHEN NOT c.is_locked THEN pg_relation_size(c.oid) END AS heap_bytes,
       CASE WHEN c.is_locked THEN c.relpages * c.page
            ELSE pg_table_size(c.oid) - coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0)
            END AS table_bytes,
       CASE WHEN c.is_locked
            THEN (SELECT coalesce(sum(x.relpages), 0)::bigint * c.page
                    FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = c.oid)
            ELSE pg_indexes_size(c.oid) END AS index_bytes,
       CASE WHEN c.is_locked THEN coalesce(t.relpages, 0) * c.page
            ELSE coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0) END AS toast_bytes,
       CASE WHEN NOT c.is_locked THEN coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0) END AS chunk_bytes,
       CASE WHEN NOT c.is_locked THEN coalesce(pg_indexes_size(nullif(c.reltoastrelid, 0)), 0)
            END AS chunk_index_bytes,
       t.reltuples::bigint AS noted_chunks, t.relpages AS noted_chunk_pages,
       pg_stat_get_live_tuples(t.oid) AS live_chunks,
       pg_stat_get_tuples_inserted(t.oid) AS inserted_chunks,
       coalesce(pg_stat_get_last_vacuum_time(t.oid), pg_stat_get_last_autovacuum_time(t.oid)) IS NOT NULL
           AS is_toast_counted
  FROM counted c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_am m ON m.oid = c.relam
  LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
 ORDER BY n.nspname, c.relname;

-- name: bloat_columns
-- The columns of tables in order, with what ANALYZE has found and this login may see; a length below 0 varies.
SELECT a.attrelid AS relation, a.attnum::integer AS number, a.attname AS name, a.attlen::integer AS length,
       CASE a.attalign WHEN 'c' THEN 1 WHEN 's' THEN 2 WHEN 'i' THEN 4 ELSE 8 END AS align,
       a.attstorage AS storage, a.attisdropped AS is_dropped, a.attgenerated = 'v' AS is_virtual,
       s.avg_width AS width, s.null_frac::double precision AS null_part,
       s.n_distinct::double precision AS distinct_values
  FROM pg_attribute a
  JOIN pg_class c ON c.oid = a.attrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_stats s ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = a.attname
                      AND NOT s.inherited
 WHERE a.attrelid = ANY (%(tables)s::oid[]) AND a.attnum > 0
 ORDER BY a.attrelid, a.attnum;

-- name: bloat_indexes
-- The valid indexes of tables; those that are not btree are listed only. Expressions have statistics of their own.
SELECT i.indrelid AS "table", i.indexrelid AS oid, x.relname AS name, m.amname AS method,
       pg_relation_size(i.indexrelid) AS bytes,
       coalesce((SELECT option_value::integer FROM pg_options_to_table(x.reloptions)
                  WHERE option_name = 'fillfactor'), 90) AS fillfactor,
       -- How many entries a partial index has, only its own count tells; it is as old as the table's.
       CASE WHEN i.indpred IS NULL THEN 1.0::double precision
            WHEN c.reltuples > 0 AND x.reltuples >= 0 THEN least(x.reltuples / c.reltuples, 1)::double precision END AS rows_part,
       i.indnatts = i.indnkeyatts
           AND NOT EXISTS (SELECT FROM pg_options_to_table(x.reloptions)
                            WHERE option_name = 'deduplicate_items' AND NOT option_value::boolean)
           AND NOT EXISTS (SELECT FROM unnest(i.indclass::oid[]) AS class (oid)
                             JOIN pg_opclass o ON o.oid = class.oid
                            WHERE NOT EXISTS (SELECT FROM pg_amproc p
                                               WHERE p.amprocfamily = o.opcfamily AND p.amprocnum = 4
                                                 AND p.amproclefttype = o.opcintype
                                                 AND p.amprocrighttype = o.opcintype))
           AND NOT EXISTS (SELECT FROM unnest(i.indcollation::oid[]) AS collation_ (oid)
                             JOIN pg_collation o ON o.oid = collation_.oid AND NOT o.collisdeterministic)
           AS merges_equal,
       i.indkey::int2[]::integer[] AS columns
  FROM pg_index i
  JOIN pg_class x ON x.oid = i.indexrelid
  JOIN pg_am m ON m.oid = x.relam
  JOIN pg_class c ON c.oid = i.indrelid
 WHERE i.indrelid = ANY (%(tables)s::oid[]) AND i.indisvalid
 ORDER BY i.indrelid, x.relname;

-- name: bloat_extension
-- The schema of pgstattuple, if it is installed and this login may execute both functions.
SELECT n.nspname
  FROM pg_extension e
  JOIN pg_namespace n ON n.oid = e.extnamespace
 WHERE e.extname = 'pgstattuple' AND has_schema_privilege(n.oid, 'USAGE')
   AND 2 = (SELECT count(*) FROM pg_proc p
             WHERE p.pronamespace = n.oid AND p.proname IN ('pgstattuple_approx', 'pgstatindex')
               AND p.pronargs = 1 AND p.proargtypes[0] = 'regclass'::regtype
               AND has_function_privilege(p.oid, 'EXECUTE'));

-- name: bloat_look
-- What pgstattuple sees in a table or its TOAST; it waits a second for a lock, and reads pages with dead rows.
-- slots: schema, relation
SELECT set_config('lock_timeout', '1000', true);
SELECT a.approx_tuple_count AS rows, a.approx_tuple_len AS bytes, a.dead_tuple_count AS dead_rows,
       a.scanned_percent / 100 AS scanned_part
  FROM pg_class c
 CROSS JOIN LATERAL {schema}.pgstattuple_approx(c.oid::regclass) a
 WHERE c.oid = {relation}::oid;

-- name: bloat_look_into_index
-- What pgstattuple sees in a btree index; it waits a second for a lock, and reads every page.
-- slots: schema, relation
SELECT set_config('lock_timeout', '1000', true);
SELECT s.leaf_pages, s.internal_pages, s.avg_leaf_density / 100 AS filled_part
  FROM pg_class c
 CROSS JOIN LATERAL {schema}.pgstatindex(c.oid::regclass) s
 WHERE c.oid = {relation}::oid;

-- name: bloat_sample
-- Bytes and chunks of the values in a sample of rows that are too wide to stay in them; it detoasts nothing.
-- slots: table, percent, sizes, target, chunk
SELECT set_config('lock_timeout', '1000', true);
SELECT coalesce(sum(size), 0)::double precision AS bytes,
       coalesce(sum(ceil(size / {chunk}::double precision)), 0)::double precision AS chunks
  FROM (SELECT v.size, sum(v.size) OVER (PARTITION BY t.ctid ORDER BY v.size, v.number) AS so_far
          FROM ONLY {table} AS t TABLESAMPLE SYSTEM ({percent})
         CROSS JOIN LATERAL (VALUES {sizes}) AS v (size, number)
         WHERE v.size IS NOT NULL) AS sampled
 -- A row's widest values leave it until the others fit.
 WHERE so_far > {target};

-- name: remember_candidate
-- Keep what was estimated of a table and decided on it.
INSERT INTO headrace.repack_candidate
       (schema_name, table_name, method, table_bytes, index_bytes, toast_bytes,
        table_bloat_bytes, index_bloat_bytes, toast_bloat_bytes, verdict, repack)
VALUES (%(schema)s, %(table)s, %(method)s, %(table_bytes)s, %(index_bytes)s, %(toast_bytes)s,
        %(table_bloat_bytes)s, %(index_bloat_bytes)s, %(toast_bloat_bytes)s, %(verdict)s, %(repack)s)
RETURNING id;

-- name: latest_candidates
-- The newest look at each table, the most wasteful first.
SELECT id, looked_at, schema_name AS schema, table_name AS "table", method, table_bytes, index_bytes, toast_bytes,
       table_bloat_bytes, index_bloat_bytes, toast_bloat_bytes, verdict, repack, gained_bytes
  FROM (SELECT DISTINCT ON (schema_name, table_name) c.*
          FROM headrace.repack_candidate c
         ORDER BY schema_name, table_name, id DESC) AS newest
 ORDER BY table_bloat_bytes + index_bloat_bytes + toast_bloat_bytes DESC, schema_name, table_name
 LIMIT %(limit)s;

-- name: gained_candidates
-- Looks that led to a rewrite that has ended, with what it gave back; the newest first.
SELECT id, looked_at, schema_name AS schema, table_name AS "table", method, table_bytes, index_bytes, toast_bytes,
       table_bloat_bytes, index_bloat_bytes, toast_bloat_bytes, verdict, repack, gained_bytes
  FROM headrace.repack_candidate
 WHERE gained_bytes IS NOT NULL
 ORDER BY id DESC
 LIMIT %(limit)s;

-- name: note_gain
-- What a rewrite gave back in the end.
UPDATE headrace.repack_candidate SET gained_bytes = %(bytes)s WHERE repack = %(repack)s;

-- name: forget_candidates
-- Drop looks that are older than so many seconds.
DELETE FROM headrace.repack_candidate WHERE looked_at < clock_timestamp() - %(seconds)s * interval '1 second';
