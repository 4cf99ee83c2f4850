-- name: relation
-- What stands under a name, whose it is, and by what it is partitioned.
SELECT c.oid, c.relkind::text AS kind, c.relispartition AS is_partition, p.partstrat::text AS strategy,
       p.partnatts AS key_columns, a.attname AS column,
       format_type(COALESCE(NULLIF(t.typbasetype, 0), t.oid), NULL) AS type
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0] AND a.attnum > 0
  LEFT JOIN pg_type t ON t.oid = a.atttypid
 WHERE n.nspname = %(schema)s AND c.relname = %(name)s;

-- name: children
-- Partitions with their bounds: UTC where the column is timestamptz; no bound, infinity and other calendars are cut.
WITH bound AS MATERIALIZED (
    SELECT n.nspname, c.relname, pg_get_expr(c.relpartbound, c.oid) AS text
      FROM pg_inherits i
      JOIN pg_class c ON c.oid = i.inhrelid
      JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE i.inhparent = %(parent)s::oid
), ends AS MATERIALIZED (
    -- FOR VALUES FROM ('2026-11-21 00:00:00+00') TO (MAXVALUE)
    SELECT nspname, relname, text = 'DEFAULT' AS is_default,
           CASE WHEN text <> 'DEFAULT'
                THEN COALESCE(NULLIF(split_part(split_part(text, ') TO (', 1), '''', 2), ''), '-infinity') END AS lower,
           CASE WHEN text <> 'DEFAULT'
                THEN COALESCE(NULLIF(split_part(split_part(text, ') TO (', 2), '''', 2), ''), 'infinity') END AS upper
      FROM bound
), clocks AS MATERIALIZED (
    SELECT nspname, relname, is_default,
           CASE WHEN %(is_instant)s::boolean THEN lower::timestamptz AT TIME ZONE 'UTC' ELSE lower::timestamp END AS lower,
           CASE WHEN %(is_instant)s::boolean THEN upper::timestamptz AT TIME ZONE 'UTC' ELSE upper::timestamp END AS upper
      FROM ends
)
SELECT nspname, relname, is_default,
       CASE WHEN NOT is_default THEN LEAST(GREATEST(lower, '0001-01-01'), '9999-12-31 23:59:59.999999') END AS lower,
       CASE WHEN NOT is_default THEN LEAST(GREATEST(upper, '0001-01-01'), '9999-12-31 23:59:59.999999') END AS upper
  FROM clocks
 ORDER BY lower NULLS LAST;

-- name: details
-- What a new partition takes over that LIKE does not: tablespace, columns by name, and an owner if this login may.
SELECT s.spcname AS tablespace,
       CASE WHEN c.relowner <> r.oid AND pg_has_role(c.relowner, 'USAGE')
             AND pg_has_role(c.relowner,
                             CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'SET' ELSE 'MEMBER' END)
             AND has_schema_privilege(c.relowner, c.relnamespace, 'CREATE')
            THEN pg_get_userbyid(c.relowner) END AS owner,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
              ORDER BY a.attnum) AS columns
  FROM pg_class c
  JOIN pg_roles r ON r.rolname = current_user
  LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace
 WHERE c.oid = %(parent)s::oid;

-- name: names_taken
-- Which of these names something in the schema has already.
SELECT c.relname
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %(schema)s AND c.relname = ANY (%(names)s::text[]::name[]);

-- name: quoted
-- Names as they stand in SQL, quoted only where they must be: people's templates have them in string literals, too.
SELECT format('%%I.%%I', %(schema)s::text, %(name)s::text) AS destination,
       format('%%I.%%I', %(parent_schema)s::text, %(parent_name)s::text) AS parent,
       (SELECT string_agg(quote_ident(k.name), ', ' ORDER BY k.place)
          FROM unnest(%(key)s::text[]) WITH ORDINALITY AS k (name, place)) AS key;

-- name: own_locks
-- Whether this transaction holds a lock that another session would wait for when it makes a partition here.
SELECT EXISTS (
    SELECT FROM pg_locks l
     WHERE l.pid = pg_backend_pid() AND l.granted
       AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
       AND (l.locktype = 'advisory' AND l.objsubid = 1
            AND l.classid::bigint << 32 | l.objid::bigint = %(key)s::bigint
            OR l.relation = %(parent)s::oid AND l.mode = ANY (%(modes)s::text[])
            OR l.relation IN (SELECT t.relid
                                FROM pg_partitioned_table p, pg_partition_tree(p.partdefid) t
                               WHERE p.partrelid = %(parent)s::oid AND p.partdefid <> 0)));

-- name: settings
-- What a template may change of this transaction's settings, and so must be put back.
SELECT current_setting('lock_timeout') AS lock_timeout, current_setting('search_path') AS search_path;

-- name: restore_settings
-- Put them back, in this order: the session's own path, which a template may have set for good and the session's next
-- borrower relies on (workers.database), and the one of this transaction.
SELECT set_config('lock_timeout', %(lock_timeout)s, true), set_config('search_path', 'pg_catalog, pg_temp', false),
       set_config('search_path', %(search_path)s, true);

-- name: people_path
-- The search path that this login has by itself: where people's templates expect their functions and types.
SET LOCAL search_path TO DEFAULT;

-- name: run_template
-- Through EXECUTE, which refuses to commit: a template must not end the transaction that has a batch's rows.
-- slots: body
DO LANGUAGE plpgsql {body};

-- name: savepoint
-- What follows can be undone without the rows that this transaction has loaded.
SAVEPOINT dispatch_partition;

-- name: undo
-- As if it had not been tried; its locks are free again.
ROLLBACK TO SAVEPOINT dispatch_partition; RELEASE SAVEPOINT dispatch_partition;

-- name: release
-- It is done.
RELEASE SAVEPOINT dispatch_partition;

-- name: wait_little
-- How long each lock is waited for.
-- slots: milliseconds
SET LOCAL lock_timeout = {milliseconds};

-- name: one_at_a_time
-- Those who make or take away partitions of one parent do it one after the other.
-- slots: key
SELECT pg_advisory_xact_lock({key});

-- name: lock_with_default
-- In the order of ATTACH: the parent, then its default partition, into which nobody writes meanwhile.
-- slots: parent, default_partition
LOCK TABLE ONLY {parent} IN SHARE UPDATE EXCLUSIVE MODE; LOCK TABLE {default_partition} IN ACCESS EXCLUSIVE MODE;

-- name: create_partition
-- Stands alone at first: to attach it does not keep readers out of the parent, as PARTITION OF would.
-- slots: partition, parent, tablespace
CREATE TABLE {partition} (LIKE {parent} INCLUDING ALL EXCLUDING IDENTITY) {tablespace};

-- name: give
-- Whoever owns the parent owns its partitions.
-- slots: partition, owner
ALTER TABLE {partition} OWNER TO {owner};

-- name: move_rows
-- What the default partition has of this period.
-- slots: default_partition, partition, column, columns, lower, upper
WITH moved AS (DELETE FROM {default_partition} WHERE {column} >= {lower} AND {column} < {upper} RETURNING {columns})
INSERT INTO {partition} ({columns}) SELECT {columns} FROM moved;

-- name: attach
-- From now on the parent has it.
-- slots: parent, partition, lower, upper
ALTER TABLE ONLY {parent} ATTACH PARTITION {partition} FOR VALUES FROM ({lower}) TO ({upper});

-- name: register
-- Remember that it is ours; what a person dropped and we made again begins anew.
-- slots: schema, name, parent_schema, parent_name, kind, covers_from, covers_until
INSERT INTO headrace.dispatch_partition AS p
       (table_schema, table_name, parent_schema, parent_name, kind, covers_from, covers_until)
VALUES ({schema}, {name}, {parent_schema}, {parent_name}, {kind}, {covers_from}, {covers_until})
ON CONFLICT (table_schema, table_name) DO UPDATE
   SET parent_schema = EXCLUDED.parent_schema, parent_name = EXCLUDED.parent_name, kind = EXCLUDED.kind,
       covers_from = EXCLUDED.covers_from, covers_until = EXCLUDED.covers_until,
       made_at = clock_timestamp(), detached_at = NULL;

-- name: registered
-- Ours of one parent that have not left it, with their ends: a like table ends before the next one begins.
SELECT d.table_schema, d.table_name, d.kind, c.oid IS NOT NULL AS is_there,
       EXISTS (SELECT FROM pg_inherits i
                 JOIN pg_class p ON p.oid = i.inhparent
                 JOIN pg_namespace m ON m.oid = p.relnamespace
                WHERE i.inhrelid = c.oid AND m.nspname = d.parent_schema AND p.relname = d.parent_name) AS is_attached,
       CASE d.kind WHEN 'native' THEN d.covers_until
            ELSE lead(d.covers_from) OVER (PARTITION BY d.kind ORDER BY d.covers_from, d.table_name) END AS ends,
       row_number() OVER (PARTITION BY d.kind ORDER BY d.covers_from DESC, d.table_name DESC) = 1 AS is_newest
  FROM headrace.dispatch_partition d
  LEFT JOIN pg_namespace n ON n.nspname = d.table_schema
  LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = d.table_name
 WHERE d.parent_schema = %(schema)s AND d.parent_name = %(name)s AND d.detached_at IS NULL
 ORDER BY d.covers_from, d.table_name;

-- name: is_registered
-- Whether a table is one of ours that has not left its parent.
SELECT EXISTS (SELECT FROM headrace.dispatch_partition d
                WHERE d.table_schema = %(schema)s AND d.table_name = %(name)s AND d.detached_at IS NULL);

-- name: detach
-- The table stays, on its own. CONCURRENTLY would neither take a default partition nor a transaction.
-- slots: parent, partition
ALTER TABLE ONLY {parent} DETACH PARTITION {partition};

-- name: mark_detached
-- It has left its parent; retention never looks at it again.
-- slots: schema, name
UPDATE headrace.dispatch_partition SET detached_at = clock_timestamp()
 WHERE table_schema = {schema} AND table_name = {name};

-- name: drop_table
-- The rows are gone.
-- slots: partition
DROP TABLE {partition};

-- name: forget
-- A table that is no more.
-- slots: schema, name
DELETE FROM headrace.dispatch_partition WHERE table_schema = {schema} AND table_name = {name};

-- name: list_partitions
-- A parent's partitions and the tables that we made like it; sizes with indexes and partitions' partitions.
SELECT COALESCE(n.nspname, d.table_schema) AS schema, COALESCE(c.relname, d.table_name) AS name,
       CASE WHEN i.inhrelid IS NOT NULL THEN 'native' ELSE d.kind END AS kind,
       i.inhrelid IS NOT NULL AS is_attached,
       CASE WHEN i.inhrelid IS NOT NULL THEN pg_get_expr(c.relpartbound, c.oid) END AS bound,
       d.covers_from, d.covers_until, d.table_name IS NOT NULL AS is_registered, d.detached_at, c.oid IS NOT NULL AS is_there,
       COALESCE((SELECT NULLIF(sum(GREATEST(l.reltuples, 0)), 0)
                   FROM pg_partition_tree(c.oid) t JOIN pg_class l ON l.oid = t.relid WHERE t.isleaf),
                NULLIF(GREATEST(c.reltuples, 0), 0), 0)::bigint AS rows,
       COALESCE((SELECT sum(pg_total_relation_size(t.relid)) FROM pg_partition_tree(c.oid) t),
                pg_total_relation_size(c.oid), 0)::bigint AS bytes
  FROM (SELECT h.inhrelid
          FROM pg_inherits h
          JOIN pg_class p ON p.oid = h.inhparent AND p.relkind = 'p'
          JOIN pg_namespace m ON m.oid = p.relnamespace
         WHERE m.nspname = %(schema)s AND p.relname = %(name)s) i
  JOIN pg_class ic ON ic.oid = i.inhrelid
  JOIN pg_namespace inn ON inn.oid = ic.relnamespace
  FULL JOIN (SELECT * FROM headrace.dispatch_partition r
              WHERE r.parent_schema = %(schema)s AND r.parent_name = %(name)s) d
       ON d.table_schema = inn.nspname AND d.table_name = ic.relname
  LEFT JOIN pg_namespace n ON n.nspname = COALESCE(inn.nspname, d.table_schema)
  LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = COALESCE(ic.relname, d.table_name)
 ORDER BY d.covers_from NULLS LAST, bound, name;

-- name: has_rows
-- Whether a table has any row.
-- slots: partition
SELECT EXISTS (SELECT FROM {partition});
