-- name: facts
-- A table by its oid: names as they are written in statements, kind, owner, sizes.
SELECT n.nspname AS schema_name,
       c.relname AS table_name,
       format('%%I.%%I', n.nspname, c.relname) AS qualified,
       quote_ident(c.relname) AS quoted,
       quote_ident(r.rolname) AS owner,
       r.rolname = current_user AS is_own,
       c.relkind = 'r' AND c.relispartition AS is_partition,
       NOT c.relispartition AND EXISTS (
           SELECT FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND NOT a.attislocal) AS has_inherited_columns,
       greatest(c.reltuples, 0)::bigint AS rows_estimated,
       pg_total_relation_size(c.oid) AS bytes,
       pg_table_size(c.oid) AS table_bytes,
       pg_indexes_size(c.oid) AS index_bytes,
       coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0) AS toast_bytes
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_roles r ON r.oid = c.relowner
 WHERE c.oid = %(oid)s

-- name: columns
-- What is copied: every column that is not generated, in order, quoted, with its type.
SELECT quote_ident(a.attname) AS quoted, a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type
  FROM pg_attribute a
 WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
 ORDER BY a.attnum

-- name: places
-- Where columns stand among all those of a table, from 1.
SELECT array_agg(n.place ORDER BY array_position(%(columns)s::text[], n.quoted))
  FROM (SELECT quote_ident(a.attname) AS quoted, row_number() OVER (ORDER BY a.attnum)::integer AS place
          FROM pg_attribute a WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped) n
 WHERE n.quoted = ANY (%(columns)s::text[])

-- name: role_for_rows
-- The owner, quoted, if it is somebody else whom row-level security does not hinder; else null.
SELECT quote_ident(r.rolname)
  FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
 WHERE c.oid = %(oid)s AND r.rolname <> current_user
   AND (NOT (c.relrowsecurity AND c.relforcerowsecurity) OR r.rolbypassrls OR r.rolsuper)

-- name: type_schemas
-- The schemas of a table's column types, for a search path.
SELECT coalesce(string_agg(DISTINCT quote_ident(n.nspname) || ', ', ''), '')
  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = t.typnamespace
 WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped AND n.nspname <> 'pg_catalog'

-- name: order_columns
-- The columns of an index in its order, quoted, if it is a plain ascending btree on columns that are never null.
SELECT bool_and(k.attnum > 0 AND a.attnotnull AND k.option = 0 AND am.amname = 'btree') AND i.indpred IS NULL AS in_chunks,
       array_agg(pg_get_indexdef(i.indexrelid, k.place::int, false)
                 || CASE WHEN k.option & 1 = 1 THEN ' DESC' ELSE '' END
                 || CASE WHEN (k.option & 2 = 2) <> (k.option & 1 = 1) THEN
                        CASE WHEN k.option & 2 = 2 THEN ' NULLS FIRST' ELSE ' NULLS LAST' END ELSE '' END
                 ORDER BY k.place) AS columns,
       array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY k.place) AS types
  FROM pg_index i
  JOIN pg_class ic ON ic.oid = i.indexrelid
  JOIN pg_am am ON am.oid = ic.relam
 CROSS JOIN LATERAL (
       SELECT u.attnum, u.place, i.indoption[u.place - 1] AS option
         FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS u (attnum, place)) k
  LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
 WHERE i.indrelid = %(oid)s AND ic.relname = %(index)s
 GROUP BY i.indexrelid, i.indpred

-- name: named_columns
-- Columns by name: quoted, with their types, whether they are never null, and whether a btree leads with them in this order.
SELECT array_agg(quote_ident(a.attname) ORDER BY u.place) AS columns,
       array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY u.place) AS types,
       bool_and(a.attnotnull) AND EXISTS (
           SELECT FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid JOIN pg_am am ON am.oid = ic.relam
            WHERE i.indrelid = %(oid)s AND i.indisvalid AND i.indpred IS NULL AND am.amname = 'btree'
              AND (i.indkey::smallint[])[0:cardinality(%(names)s::text[]) - 1] = array_agg(a.attnum ORDER BY u.place)
              AND 0 = ALL ((i.indoption::smallint[])[0:cardinality(%(names)s::text[]) - 1])) AS in_chunks
  FROM unnest(%(names)s::text[]) WITH ORDINALITY AS u (name, place)
  JOIN pg_attribute a ON a.attrelid = %(oid)s AND a.attname = u.name AND a.attnum > 0

-- name: twin_parents
-- Stand-ins for the parents of an inheriting table: with them its inherited columns stay inherited.
SELECT format('CREATE TABLE %%I.headrace_parent_%%s (LIKE %%s INCLUDING CONSTRAINTS INCLUDING GENERATED INCLUDING STORAGE'
              ' INCLUDING COMPRESSION)', %(new_schema)s::text, i.inhseqno, i.inhparent::regclass) AS text,
       'ACCESS SHARE on ' || i.inhparent::regclass AS lock,
       'a stand-in for the parent, so that inherited columns stay inherited' AS why
  FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent
 WHERE i.inhrelid = %(oid)s AND p.relkind = 'r'
 ORDER BY i.inhseqno

-- name: twin_create
-- The empty copy: the same columns in the same order.
SELECT format('CREATE %%sTABLE %%s %%s USING %%I%%s',
              CASE c.relpersistence WHEN 'u' THEN 'UNLOGGED ' ELSE '' END,
              %(new)s::text,
              CASE WHEN x.columns IS NULL THEN
                  format('(LIKE %%s INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING STORAGE INCLUDING COMPRESSION)', %(src)s::text)
              ELSE format('(%%s) INHERITS (%%s)', concat_ws(', ', nullif(x.columns, ''), x.never_null), x.parents) END,
              am.amname,
              coalesce(' TABLESPACE ' || quote_ident(coalesce(%(tablespace)s::text, t.spcname)), '')) AS text,
       'ACCESS SHARE on ' || %(src)s::text AS lock,
       'the copy' AS why
  FROM pg_class c
  JOIN pg_am am ON am.oid = c.relam
  LEFT JOIN pg_tablespace t ON t.oid = c.reltablespace
 CROSS JOIN LATERAL (
       SELECT CASE WHEN %(inherits)s::boolean THEN coalesce(string_agg(
                  format('%%I %%s', a.attname, format_type(a.atttypid, a.atttypmod))
                  || CASE WHEN a.attcollation <> ty.typcollation THEN ' COLLATE ' || a.attcollation::regcollation ELSE '' END
                  || CASE a.attgenerated WHEN 's' THEN ' GENERATED ALWAYS AS (' || pg_get_expr(d.adbin, d.adrelid) || ') STORED'
                                         WHEN 'v' THEN ' GENERATED ALWAYS AS (' || pg_get_expr(d.adbin, d.adrelid) || ') VIRTUAL'
                                         ELSE '' END,
                  ', ' ORDER BY a.attnum), '')
              -- Never null by constraints of its own names, also on a column that a parent has, too (PostgreSQL 18).
              END AS columns,
              (SELECT string_agg(format('CONSTRAINT %%I %%s', k.conname, pg_get_constraintdef(k.oid)), ', ' ORDER BY k.conkey)
                 FROM pg_constraint k
                WHERE k.conrelid = c.oid AND k.contype = 'n' AND k.conislocal AND k.convalidated) AS never_null,
              (SELECT string_agg(format('%%I.headrace_parent_%%s', %(new_schema)s::text, i.inhseqno), ', ' ORDER BY i.inhseqno)
                 FROM pg_inherits i WHERE i.inhrelid = c.oid) AS parents
         FROM pg_attribute a
         JOIN pg_type ty ON ty.oid = a.atttypid
         LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attislocal) x
 WHERE c.oid = %(oid)s

-- name: twin_dress
-- What the copy needs before its first row, so that it is like the table; nothing here refers to anybody else.
SELECT s.text, 'none' AS lock, s.why
  FROM (
    SELECT 1 AS place, 0 AS number, format('ALTER TABLE %%s ALTER COLUMN %%I SET DEFAULT %%s', %(new)s::text, a.attname,
                              pg_get_expr(d.adbin, d.adrelid)) AS text, 'default' AS why
      FROM pg_attribute a JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE %(inherits)s::boolean AND a.attrelid = %(oid)s AND a.attgenerated = '' AND NOT a.attisdropped
    UNION ALL
    SELECT 2, a.attnum, format('ALTER TABLE %%s ALTER COLUMN %%I SET NOT NULL', %(new)s::text, a.attname), 'never null'
      FROM pg_attribute a
     WHERE %(inherits)s::boolean AND a.attrelid = %(oid)s AND a.attnum > 0 AND a.attnotnull AND NOT a.attisdropped
       AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = a.attrelid AND k.contype = 'n')
    UNION ALL
    SELECT 2, k.conkey[1], format('ALTER TABLE %%s DROP CONSTRAINT %%I', %(new)s::text, k.conname), 'nulls may be there: not valid'
      FROM pg_constraint k
     WHERE k.conrelid = %(oid)s AND k.contype = 'n' AND NOT k.convalidated AND NOT %(inherits)s::boolean
    UNION ALL
    SELECT 3, a.attnum, format('ALTER TABLE %%s ALTER COLUMN %%I SET STORAGE %%s', %(new)s::text, a.attname,
                               CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END),
           'storage'
      FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
     WHERE %(inherits)s::boolean AND a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped AND a.attstorage <> t.typstorage
    UNION ALL
    SELECT 4, a.attnum, format('ALTER TABLE %%s ALTER COLUMN %%I SET STATISTICS %%s', %(new)s::text, a.attname, a.attstattarget),
           'statistics target'
      FROM pg_attribute a
     WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped AND a.attstattarget >= 0
    UNION ALL
    SELECT 5, a.attnum, format('ALTER TABLE %%s ALTER COLUMN %%I SET (%%s)', %(new)s::text, a.attname,
                               (SELECT string_agg(format('%%I=%%L', o.option_name, o.option_value), ', ')
                                  FROM pg_options_to_table(a.attoptions) o WHERE o.option_name <> 'pg_attver')),
           'column options'
      FROM pg_attribute a
     WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
       AND EXISTS (SELECT FROM pg_options_to_table(a.attoptions) o WHERE o.option_name <> 'pg_attver')
    UNION ALL
    SELECT 6, 0, format('ALTER TABLE %%s SET (%%s)', %(new)s::text, o.options), 'storage options, in the order in which they were set'
      FROM (SELECT string_agg(format('%%s=%%L', w.name, w.value), ', ' ORDER BY w.place) AS options
              FROM (SELECT quote_ident(o.option_name) AS name,
                           CASE o.option_name WHEN 'fillfactor' THEN coalesce((%(fillfactor)s::integer)::text, o.option_value)
                                              ELSE o.option_value END AS value,
                           o.place
                      FROM pg_class c, pg_options_to_table(c.reloptions) WITH ORDINALITY AS o (option_name, option_value, place)
                     WHERE c.oid = %(oid)s
                     UNION ALL
                    SELECT 'toast.' || quote_ident(o.option_name), o.option_value, 2000 + o.place
                      FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid,
                           pg_options_to_table(t.reloptions) WITH ORDINALITY AS o (option_name, option_value, place)
                     WHERE c.oid = %(oid)s
                     UNION ALL
                    SELECT 'fillfactor', (%(fillfactor)s::integer)::text, 1000
                      FROM pg_class c
                     WHERE c.oid = %(oid)s AND %(fillfactor)s::integer IS NOT NULL
                       AND NOT EXISTS (SELECT FROM pg_options_to_table(c.reloptions) o WHERE o.option_name = 'fillfactor')) w) o
     WHERE o.options IS NOT NULL
    UNION ALL
    SELECT 7, 0, format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', %(new)s::text, k.conname, pg_get_constraintdef(k.oid)), 'check'
      FROM pg_constraint k
     WHERE k.conrelid = %(oid)s AND k.contype = 'c' AND k.convalidated AND (k.conislocal OR NOT %(inherits)s::boolean)
    UNION ALL
    SELECT 8, 0, format('ALTER TABLE %%s ADD CONSTRAINT headrace_repack_bound CHECK (%%s)', %(new)s::text,
                        pg_get_partition_constraintdef(c.oid)),
           'what the partition may hold, checked row by row now, so that attaching it need not read it'
      FROM pg_class c
     WHERE c.oid = %(oid)s AND c.relispartition AND pg_get_partition_constraintdef(c.oid) IS NOT NULL
    UNION ALL
    SELECT 9, a.attnum, format('ALTER TABLE %%s ALTER COLUMN %%I ADD GENERATED %%s AS IDENTITY (SEQUENCE NAME %%I.%%I START WITH %%s'
                               ' INCREMENT BY %%s MINVALUE %%s MAXVALUE %%s CACHE %%s %%sCYCLE)',
                               %(new)s::text, a.attname, CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END,
                               %(new_schema)s::text, q.relname, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache,
                               CASE WHEN s.seqcycle THEN '' ELSE 'NO ' END),
           'identity, with a sequence like the old one'
      FROM pg_attribute a
      JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum
                      AND d.classid = 'pg_class'::regclass AND d.deptype = 'i'
      JOIN pg_sequence s ON s.seqrelid = d.objid
      JOIN pg_class q ON q.oid = s.seqrelid
     WHERE a.attrelid = %(oid)s AND a.attidentity <> '' AND NOT a.attisdropped
    UNION ALL
    SELECT 10, 0, format('ALTER TABLE %%s OF %%s', %(new)s::text, c.reloftype::regtype), 'typed table'
      FROM pg_class c WHERE c.oid = %(oid)s AND c.reloftype <> 0
    UNION ALL
    SELECT 11, 0, format('COMMENT ON TABLE %%s IS %%L', %(new)s::text, obj_description(%(oid)s, 'pg_class')), 'comment'
     WHERE obj_description(%(oid)s, 'pg_class') IS NOT NULL
    UNION ALL
    SELECT 12, a.attnum, format('COMMENT ON COLUMN %%s.%%I IS %%L', %(new)s::text, a.attname, col_description(a.attrelid, a.attnum)),
           'comment'
      FROM pg_attribute a
     WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped AND col_description(a.attrelid, a.attnum) IS NOT NULL
    UNION ALL
    SELECT 13, 0, format('COMMENT ON CONSTRAINT %%I ON %%s IS %%L', k.conname, %(new)s::text, obj_description(k.oid, 'pg_constraint')),
           'comment'
      FROM pg_constraint k
     WHERE k.conrelid = %(oid)s AND obj_description(k.oid, 'pg_constraint') IS NOT NULL
       AND k.contype IN ('c', 'n') AND k.convalidated
    UNION ALL
    SELECT 14, row_number() OVER (ORDER BY x.oid)::int, w.text, 'extended statistics'
      FROM pg_statistic_ext x
      JOIN pg_namespace n ON n.oid = x.stxnamespace
      JOIN pg_class c ON c.oid = x.stxrelid
      JOIN pg_namespace cn ON cn.oid = c.relnamespace
     CROSS JOIN LATERAL (
           SELECT pg_get_statisticsobjdef(x.oid) AS def,
                  format('CREATE STATISTICS %%I.%%I', n.nspname, x.stxname) AS head,
                  format(' FROM %%I.%%I', cn.nspname, c.relname) AS tail) d
     CROSS JOIN LATERAL (
           VALUES (format('CREATE STATISTICS %%I.%%I', %(new_schema)s::text, x.stxname)
                   || substr(d.def, length(d.head) + 1, length(d.def) - length(d.head) - length(d.tail))
                   || ' FROM ' || %(new)s::text),
                  (format('ALTER STATISTICS %%I.%%I SET STATISTICS %%s', %(new_schema)s::text, x.stxname,
                          nullif(x.stxstattarget, -1))),
                  (format('COMMENT ON STATISTICS %%I.%%I IS %%L', %(new_schema)s::text, x.stxname,
                          obj_description(x.oid, 'pg_statistic_ext')))) w (text)
     WHERE x.stxrelid = %(oid)s AND starts_with(d.def, d.head) AND right(d.def, length(d.tail)) = d.tail
       AND w.text NOT LIKE '%% SET STATISTICS ' AND w.text NOT LIKE '%% IS NULL'
    UNION ALL
    SELECT 15, 0, format('GRANT USAGE, CREATE ON SCHEMA %%I TO %%I', %(new_schema)s::text, r.rolname), 'the owner must be able to own it'
      FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
     WHERE c.oid = %(oid)s AND r.rolname <> current_user
    UNION ALL
    SELECT DISTINCT 15, 1, format('GRANT USAGE, CREATE ON SCHEMA %%I TO %%I', %(new_schema)s::text, r.rolname),
           'the owner of statistics must be able to own them'
      FROM pg_statistic_ext x JOIN pg_roles r ON r.oid = x.stxowner
     WHERE x.stxrelid = %(oid)s AND r.rolname <> current_user
    UNION ALL
    SELECT 16, 0, format('ALTER TABLE %%s OWNER TO %%I', %(new)s::text, r.rolname), 'owner'
      FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
     WHERE c.oid = %(oid)s AND r.rolname <> current_user
    UNION ALL
    SELECT 17, row_number() OVER (ORDER BY x.oid)::int,
           format('ALTER STATISTICS %%I.%%I OWNER TO %%I', %(new_schema)s::text, x.stxname, r.rolname), 'owner'
      FROM pg_statistic_ext x JOIN pg_roles r ON r.oid = x.stxowner
     WHERE x.stxrelid = %(oid)s AND r.rolname <> current_user
    UNION ALL
    SELECT 18, 0, format('GRANT ALL ON TABLE %%s TO %%I', %(new)s::text, r.rolname), 'whatever ALTER DEFAULT PRIVILEGES took away'
      FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
     WHERE c.oid = %(oid)s) s
 ORDER BY s.place, s.number

-- name: twin_indexes
-- The indexes of a table and the statements that build each on the copy, constraints, comments and marks included.
SELECT ic.relname AS name,
       i.indisunique OR i.indisexclusion AS is_unique,
       d.def IS NULL OR starts_with(d.def, d.head) AS is_understood,
       array_remove(ARRAY[
           format('SET LOCAL default_tablespace = %%L', coalesce(%(tablespace)s::text, t.spcname, '')),
           CASE WHEN d.def IS NOT NULL THEN
               format('CREATE %%sINDEX %%I ON %%s USING ', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, ic.relname, %(new)s::text)
               || substr(d.def, length(d.head) + 1) END,
           CASE WHEN k.oid IS NOT NULL AND d.def IS NOT NULL THEN
               format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s USING INDEX %%I%%s%%s', %(new)s::text, k.conname,
                      CASE k.contype WHEN 'p' THEN 'PRIMARY KEY' ELSE 'UNIQUE' END, ic.relname,
                      CASE WHEN k.condeferrable THEN ' DEFERRABLE' ELSE '' END,
                      CASE WHEN k.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END)
           WHEN k.oid IS NOT NULL THEN
               format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', %(new)s::text, k.conname, pg_get_constraintdef(k.oid)) END,
           (SELECT string_agg(format('ALTER INDEX %%I.%%I ALTER COLUMN %%s SET STATISTICS %%s', %(new_schema)s::text, ic.relname,
                                     a.attnum, a.attstattarget), '; ' ORDER BY a.attnum)
              FROM pg_attribute a WHERE a.attrelid = ic.oid AND a.attstattarget >= 0),
           CASE WHEN obj_description(ic.oid, 'pg_class') IS NOT NULL THEN
               format('COMMENT ON INDEX %%I.%%I IS %%L', %(new_schema)s::text, ic.relname, obj_description(ic.oid, 'pg_class')) END,
           CASE WHEN obj_description(k.oid, 'pg_constraint') IS NOT NULL THEN
               format('COMMENT ON CONSTRAINT %%I ON %%s IS %%L', k.conname, %(new)s::text, obj_description(k.oid, 'pg_constraint')) END,
           CASE WHEN i.indisclustered THEN format('ALTER TABLE %%s CLUSTER ON %%I', %(new)s::text, ic.relname) END,
           CASE WHEN i.indisreplident THEN format('ALTER TABLE %%s REPLICA IDENTITY USING INDEX %%I', %(new)s::text, ic.relname) END
       ], NULL) AS statements
  FROM pg_index i
  JOIN pg_class ic ON ic.oid = i.indexrelid
  JOIN pg_class c ON c.oid = i.indrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_tablespace t ON t.oid = ic.reltablespace
  LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x')
 CROSS JOIN LATERAL (
       -- An exclusion constraint, and a key WITHOUT OVERLAPS, cannot take an index that is there: it makes its own.
       SELECT CASE WHEN NOT i.indisexclusion THEN pg_get_indexdef(i.indexrelid) END AS def,
              format('CREATE %%sINDEX %%I ON %%I.%%I USING ', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END,
                     ic.relname, n.nspname, c.relname) AS head) d
 WHERE i.indrelid = %(oid)s
 ORDER BY ic.relname <> %(key)s::text, i.indisunique OR i.indisexclusion DESC, pg_relation_size(ic.oid) DESC, ic.relname

-- name: give_way
-- Locks that make autovacuum give way, which it does only after deadlock_timeout: longer than we wait for other locks.
SELECT s.text, s.lock, s.why
  FROM (
    SELECT 0 AS place,
           format('SET LOCAL lock_timeout = %%s',
                  2000 + (SELECT setting::integer FROM pg_settings WHERE name = 'deadlock_timeout')) AS text,
           'none' AS lock, 'autovacuum gives way after deadlock_timeout' AS why
    UNION ALL
    SELECT 1, format('LOCK TABLE ONLY %%s IN SHARE UPDATE EXCLUSIVE MODE', t.name),
           'SHARE UPDATE EXCLUSIVE on ' || t.name, 'no vacuum at work; readers and writers go on'
      FROM unnest(%(names)s::text[]) AS t (name)
    UNION ALL
    SELECT 2, format('SET LOCAL lock_timeout = %%s', %(lock_milliseconds)s::integer), 'none',
           'from here on others wait behind us') s
 ORDER BY s.place

-- name: swap_locks
-- Whom the swap locks before anything else, in the order in which readers lock: what reads the table, the table, its partners.
SELECT s.text, s.lock, s.why
  FROM (
    SELECT 1 AS place, v.oid::bigint AS number,
           format('ALTER VIEW %%s OWNER TO %%I', v.oid::regclass, r.rolname) AS text,
           'ACCESS EXCLUSIVE on ' || v.oid::regclass AS lock,
           'locks the view, which is re-bound; its owner stays' AS why
      FROM pg_class v JOIN pg_roles r ON r.oid = v.relowner
     WHERE v.relkind = 'v' AND v.oid IN (
           SELECT w.ev_class FROM pg_depend d JOIN pg_rewrite w ON w.oid = d.objid
            WHERE d.classid = 'pg_rewrite'::regclass AND (d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s
               OR d.refclassid = 'pg_constraint'::regclass
                  AND d.refobjid IN (SELECT k.oid FROM pg_constraint k WHERE k.conrelid = %(oid)s)))
    UNION ALL
    SELECT 2, o.oid::bigint, format('LOCK TABLE ONLY %%s IN ACCESS EXCLUSIVE MODE', o.oid::regclass),
           'ACCESS EXCLUSIVE on ' || o.oid::regclass, 'it has a rule or a policy that refers to the table'
      FROM pg_class o
     WHERE o.oid <> %(oid)s AND o.relkind IN ('r', 'p') AND o.oid IN (
           SELECT w.ev_class FROM pg_depend d JOIN pg_rewrite w ON w.oid = d.objid
            WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s
            UNION ALL
           SELECT p.polrelid FROM pg_depend d JOIN pg_policy p ON p.oid = d.objid
            WHERE d.classid = 'pg_policy'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s)
    UNION ALL
    SELECT 3, -a.level::bigint, format('LOCK TABLE ONLY %%s IN ACCESS EXCLUSIVE MODE', a.relid),
           'ACCESS EXCLUSIVE on ' || a.relid, 'the partition leaves it and its copy enters'
      FROM (SELECT u.relid, u.level FROM pg_class c, pg_partition_ancestors(c.oid) WITH ORDINALITY AS u (relid, level)
             WHERE c.oid = %(oid)s AND c.relispartition AND u.relid <> c.oid) a
     WHERE a.level = 2
    UNION ALL
    -- A writer locks a table first and then what it refers to.
    SELECT 3, 1000000 + k.conrelid::bigint, format('LOCK TABLE ONLY %%s IN ACCESS EXCLUSIVE MODE', k.conrelid::regclass),
           'ACCESS EXCLUSIVE on ' || k.conrelid::regclass, 'it has a foreign key to the table'
      FROM pg_constraint k
     WHERE k.contype = 'f' AND k.confrelid = %(oid)s AND k.conrelid <> %(oid)s AND k.conparentid = 0
     GROUP BY k.conrelid
    UNION ALL
    SELECT 4, 0, format('LOCK TABLE ONLY %%s IN ACCESS EXCLUSIVE MODE', %(src)s::text),
           'ACCESS EXCLUSIVE on ' || %(src)s::text, 'nobody reads or writes from here to COMMIT'
    UNION ALL
    SELECT 5, 0, format('SET LOCAL lock_timeout = %%s', %(partner_milliseconds)s::integer), 'none',
           'from here on everybody waits for us: nobody is waited for any more'
    UNION ALL
    SELECT 6, p.oid::bigint, format('LOCK TABLE ONLY %%s IN ACCESS EXCLUSIVE MODE', p.oid::regclass),
           'ACCESS EXCLUSIVE on ' || p.oid::regclass, 'a foreign key, a partition or inheritance ties it to the table'
      FROM pg_class p
     WHERE p.oid <> %(oid)s AND p.oid IN (
           SELECT k.confrelid FROM pg_constraint k WHERE k.contype = 'f' AND k.conrelid = %(oid)s AND k.conparentid = 0
           UNION ALL
           SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = %(oid)s
           UNION ALL
           SELECT t.partdefid FROM pg_inherits i JOIN pg_partitioned_table t ON t.partrelid = i.inhparent
            WHERE i.inhrelid = %(oid)s)) s
 ORDER BY s.place, s.number

-- name: swap_leave
-- The old table lets go of everything that the copy takes over, and leaves its schema.
SELECT s.text, s.lock, s.why
  FROM (
    SELECT 1 AS place, '' AS name, format('ALTER SEQUENCE %%s OWNED BY NONE', q.oid::regclass) AS text,
           'SHARE ROW EXCLUSIVE on ' || q.oid::regclass AS lock, 'the same sequence goes on with the copy' AS why
      FROM pg_depend d JOIN pg_class q ON q.oid = d.objid
     WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s
       AND d.refobjsubid > 0 AND d.deptype = 'a' AND q.relkind = 'S'
    UNION ALL
    SELECT 2, k.conname, format('ALTER TABLE %%s DROP CONSTRAINT %%I', k.conrelid::regclass, k.conname),
           'ACCESS EXCLUSIVE on ' || k.conrelid::regclass || ' and ' || k.confrelid::regclass, 'it refers to the old table'
      FROM pg_constraint k
     WHERE k.contype = 'f' AND k.confrelid = %(oid)s AND k.conrelid <> %(oid)s AND k.conparentid = 0
    UNION ALL
    SELECT 3, k.conname, format('ALTER TABLE %%s DROP CONSTRAINT %%I', %(src)s::text, k.conname),
           'ACCESS EXCLUSIVE on ' || k.confrelid::regclass, 'a table that waits to be dropped must not hinder others'
      FROM pg_constraint k
     WHERE k.contype = 'f' AND k.conrelid = %(oid)s AND k.conparentid = 0
    UNION ALL
    SELECT 4, p.pubname, format('ALTER PUBLICATION %%I DROP TABLE ONLY %%s', p.pubname, %(src)s::text), 'SHARE UPDATE EXCLUSIVE',
           'the copy is published instead'
      FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
     WHERE r.prrelid = %(oid)s
    UNION ALL
    SELECT 5, '', format('ALTER TABLE %%s DETACH PARTITION %%s', i.inhparent::regclass, %(src)s::text),
           'ACCESS EXCLUSIVE on ' || i.inhparent::regclass, 'the copy becomes the partition'
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhrelid = %(oid)s AND c.relispartition
    UNION ALL
    SELECT 6, i.inhseqno::text, format('ALTER TABLE %%s NO INHERIT %%s', %(src)s::text, i.inhparent::regclass),
           'SHARE UPDATE EXCLUSIVE on ' || i.inhparent::regclass, 'the copy inherits instead'
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhrelid = %(oid)s AND NOT c.relispartition
    UNION ALL
    SELECT 7, x.stxname::text, format('ALTER STATISTICS %%I.%%I SET SCHEMA %%I', n.nspname, x.stxname, %(old_schema)s::text), 'none',
           'the old statistics object leaves'
      FROM pg_statistic_ext x JOIN pg_namespace n ON n.oid = x.stxnamespace WHERE x.stxrelid = %(oid)s
    UNION ALL
    SELECT 8, '', format('ALTER TABLE %%s SET SCHEMA %%I', %(src)s::text, %(old_schema)s::text), 'ACCESS EXCLUSIVE on ' || %(src)s::text,
           'the old table leaves, with its indexes') s
 ORDER BY s.place, s.name

-- name: swap_enter
-- The copy takes the old table's name and place, and everything that belongs to it or refers to it.
SELECT s.text, s.lock, s.why
  FROM (
    SELECT 1 AS place, 0::bigint AS number, '' AS name,
           format('ALTER TABLE %%s SET SCHEMA %%s', %(new)s::text, n.nspname::regnamespace) AS text,
           'none' AS lock, 'the copy takes its place' AS why
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %(oid)s
    UNION ALL
    SELECT 2, 0, x.stxname, format('ALTER STATISTICS %%I.%%I SET SCHEMA %%I', %(new_schema)s::text, x.stxname, n.nspname), 'none',
           'extended statistics'
      FROM pg_statistic_ext x JOIN pg_namespace n ON n.oid = x.stxnamespace WHERE x.stxrelid = %(oid)s
    UNION ALL
    SELECT 3, 0, q.relname, format('ALTER SEQUENCE %%s OWNED BY %%s.%%I', q.oid::regclass, %(src)s::text, a.attname),
           'SHARE ROW EXCLUSIVE on ' || q.oid::regclass, 'the same sequence, now of the copy'
      FROM pg_depend d
      JOIN pg_class q ON q.oid = d.objid
      JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
     WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s
       AND d.refobjsubid > 0 AND d.deptype = 'a' AND q.relkind = 'S'
    UNION ALL
    SELECT 4, 0, q.relname, format('SELECT setval(%%L, s.last_value, s.is_called) FROM %%I.%%I s',
                                format('%%s', q.oid::regclass), %(old_schema)s::text, q.relname),
           'none', 'identity goes on where it stood'
      FROM pg_depend d JOIN pg_class q ON q.oid = d.objid
     WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s
       AND d.refobjsubid > 0 AND d.deptype = 'i' AND q.relkind = 'S'
    UNION ALL
    SELECT 5, 0, q.relname, format('COMMENT ON SEQUENCE %%s IS %%L', q.oid::regclass, obj_description(q.oid, 'pg_class')),
           'none', 'comment'
      FROM pg_depend d JOIN pg_class q ON q.oid = d.objid
     WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s
       AND d.refobjsubid > 0 AND d.deptype = 'i' AND q.relkind = 'S' AND obj_description(q.oid, 'pg_class') IS NOT NULL
    UNION ALL
    SELECT 6, i.inhseqno, '', format('ALTER TABLE %%s INHERIT %%s', %(src)s::text, i.inhparent::regclass),
           'SHARE UPDATE EXCLUSIVE on ' || i.inhparent::regclass, 'the copy inherits'
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhrelid = %(oid)s AND NOT c.relispartition
    UNION ALL
    SELECT 7, i.inhseqno, '', format('ALTER TABLE %%s NO INHERIT %%I.headrace_parent_%%s', %(src)s::text, %(new_schema)s::text, i.inhseqno),
           'none', 'the stand-in has done its work'
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhrelid = %(oid)s AND NOT c.relispartition AND %(inherits)s
    UNION ALL
    SELECT 8, i.inhrelid::bigint * 2, '', format('ALTER TABLE %%s INHERIT %%s', i.inhrelid::regclass, %(src)s::text),
           'ACCESS EXCLUSIVE on ' || i.inhrelid::regclass, 'a child gets its new parent'
      FROM pg_inherits i WHERE i.inhparent = %(oid)s
    UNION ALL
    SELECT 8, i.inhrelid::bigint * 2 + 1, '', format('ALTER TABLE %%s NO INHERIT %%I.%%s', i.inhrelid::regclass, %(old_schema)s::text, %(name)s::text),
           'ACCESS EXCLUSIVE on ' || i.inhrelid::regclass, 'and leaves the old one'
      FROM pg_inherits i WHERE i.inhparent = %(oid)s
    UNION ALL
    SELECT 9, 0, '', format('ALTER TABLE %%s ATTACH PARTITION %%s %%s', i.inhparent::regclass, %(src)s::text,
                         pg_get_expr(c.relpartbound, c.oid)),
           'SHARE UPDATE EXCLUSIVE on ' || i.inhparent::regclass, 'the copy becomes the partition'
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhrelid = %(oid)s AND c.relispartition
    UNION ALL
    SELECT 10, 0, '', format('ALTER TABLE %%s DROP CONSTRAINT headrace_repack_bound', %(src)s::text), 'none', 'it was for attaching only'
      FROM pg_class c
     WHERE c.oid = %(oid)s AND c.relispartition AND pg_get_partition_constraintdef(c.oid) IS NOT NULL
    UNION ALL
    SELECT 11, 0, k.conname, format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', %(src)s::text, k.conname, pg_get_constraintdef(k.oid)),
           'none', 'what was not valid stays so'
      FROM pg_constraint k WHERE k.conrelid = %(oid)s AND k.contype IN ('c', 'n') AND NOT k.convalidated
    UNION ALL
    SELECT 12, 0, k.conname, format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s%%s', k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid),
                                 CASE WHEN k.convalidated THEN ' NOT VALID' ELSE '' END),
           'SHARE ROW EXCLUSIVE on ' || k.conrelid::regclass || ' and ' || k.confrelid::regclass,
           CASE WHEN k.convalidated THEN 'foreign key; validated after the swap' ELSE 'foreign key; not valid before, so not now' END
      FROM pg_constraint k
     WHERE k.contype = 'f' AND (k.conrelid = %(oid)s OR k.confrelid = %(oid)s) AND k.conparentid = 0
    UNION ALL
    SELECT 13, 0, k.conname, format('COMMENT ON CONSTRAINT %%I ON %%s IS %%L', k.conname, k.conrelid::regclass,
                                 obj_description(k.oid, 'pg_constraint')), 'none', 'comment'
      FROM pg_constraint k
     WHERE obj_description(k.oid, 'pg_constraint') IS NOT NULL AND k.conparentid = 0
       AND (k.contype = 'f' AND (k.conrelid = %(oid)s OR k.confrelid = %(oid)s)
            OR k.contype IN ('c', 'n') AND k.conrelid = %(oid)s AND NOT k.convalidated)
    UNION ALL
    SELECT 14, w.oid::bigint, w.rulename, pg_get_ruledef(w.oid), 'none', 'rule'
      FROM pg_rewrite w WHERE w.ev_class = %(oid)s
    UNION ALL
    SELECT 15, w.oid::bigint, w.rulename, format('ALTER TABLE %%s %%s RULE %%I', %(src)s::text,
                               CASE w.ev_enabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END,
                               w.rulename), 'none', 'rule'
      FROM pg_rewrite w WHERE w.ev_class = %(oid)s AND w.ev_enabled <> 'O'
    UNION ALL
    SELECT 16, w.oid::bigint, w.rulename, format('COMMENT ON RULE %%I ON %%s IS %%L', w.rulename, %(src)s::text,
                                              obj_description(w.oid, 'pg_rewrite')), 'none', 'comment'
      FROM pg_rewrite w WHERE w.ev_class = %(oid)s AND obj_description(w.oid, 'pg_rewrite') IS NOT NULL
    UNION ALL
    SELECT 17, t.oid::bigint, t.tgname, pg_get_triggerdef(t.oid), 'none', 'trigger'
      FROM pg_trigger t
     WHERE t.tgrelid = %(oid)s AND NOT t.tgisinternal AND t.tgparentid = 0 AND NOT starts_with(t.tgname, 'headrace_repack_')
    UNION ALL
    SELECT 18, t.oid::bigint, t.tgname, format('ALTER TABLE %%s %%s TRIGGER %%I', %(src)s::text,
                               CASE t.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' WHEN 'A' THEN 'ENABLE ALWAYS'
                                                ELSE 'ENABLE' END, t.tgname), 'none', 'trigger'
      FROM pg_trigger t LEFT JOIN pg_trigger p ON p.oid = t.tgparentid
     WHERE t.tgrelid = %(oid)s AND NOT t.tgisinternal AND t.tgenabled <> coalesce(p.tgenabled, 'O')
       AND NOT starts_with(t.tgname, 'headrace_repack_')
    UNION ALL
    SELECT 19, t.oid::bigint, t.tgname, format('COMMENT ON TRIGGER %%I ON %%s IS %%L', t.tgname, %(src)s::text,
                                            obj_description(t.oid, 'pg_trigger')), 'none', 'comment'
      FROM pg_trigger t
     WHERE t.tgrelid = %(oid)s AND NOT t.tgisinternal AND obj_description(t.oid, 'pg_trigger') IS NOT NULL
    UNION ALL
    SELECT 20, p.oid::bigint, p.polname,
           format('CREATE POLICY %%I ON %%s AS %%s FOR %%s TO %%s%%s%%s', p.polname, %(src)s::text,
                  CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
                  CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
                  (SELECT string_agg(coalesce(quote_ident(r.rolname), 'PUBLIC'), ', ' ORDER BY u.place)
                     FROM unnest(p.polroles) WITH ORDINALITY AS u (role, place) LEFT JOIN pg_roles r ON r.oid = u.role),
                  ' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')',
                  ' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')'),
           'none', 'policy'
      FROM pg_policy p WHERE p.polrelid = %(oid)s
    UNION ALL
    SELECT 21, p.oid::bigint, p.polname, format('COMMENT ON POLICY %%I ON %%s IS %%L', p.polname, %(src)s::text,
                                             obj_description(p.oid, 'pg_policy')), 'none', 'comment'
      FROM pg_policy p WHERE p.polrelid = %(oid)s AND obj_description(p.oid, 'pg_policy') IS NOT NULL
    UNION ALL
    SELECT 22, 0, '', format('ALTER TABLE %%s ENABLE ROW LEVEL SECURITY', %(src)s::text), 'none', 'row-level security'
      FROM pg_class c WHERE c.oid = %(oid)s AND c.relrowsecurity
    UNION ALL
    SELECT 23, 0, '', format('ALTER TABLE %%s FORCE ROW LEVEL SECURITY', %(src)s::text), 'none', 'row-level security'
      FROM pg_class c WHERE c.oid = %(oid)s AND c.relforcerowsecurity
    UNION ALL
    SELECT 24, 0, '', format('ALTER TABLE %%s REPLICA IDENTITY %%s', %(src)s::text,
                          CASE c.relreplident WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END), 'none', 'replica identity'
      FROM pg_class c WHERE c.oid = %(oid)s AND c.relreplident IN ('f', 'n')
    UNION ALL
    SELECT 25, v.oid::bigint, '', format('CREATE OR REPLACE VIEW %%s%%s AS %%s', v.oid::regclass,
                  (SELECT ' WITH (' || string_agg(format('%%I=%%L', o.option_name, o.option_value), ', ') || ')'
                     FROM pg_options_to_table(v.reloptions) o),
                  rtrim(pg_get_viewdef(v.oid), ';')),
           'ACCESS EXCLUSIVE on ' || v.oid::regclass, 'the view reads the copy from now on; its oid, grants and comments stay'
      FROM pg_class v
     WHERE v.relkind = 'v' AND v.oid IN (
           SELECT w.ev_class FROM pg_depend d JOIN pg_rewrite w ON w.oid = d.objid
            WHERE d.classid = 'pg_rewrite'::regclass AND w.rulename = '_RETURN'
              AND (d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s
                   OR d.refclassid = 'pg_constraint'::regclass
                      AND d.refobjid IN (SELECT k.oid FROM pg_constraint k WHERE k.conrelid = %(oid)s)))
    UNION ALL
    SELECT 26, w.oid::bigint, '', 'CREATE OR REPLACE' || substr(pg_get_ruledef(w.oid), length('CREATE') + 1),
           'ACCESS EXCLUSIVE on ' || w.ev_class::regclass, 'a rule of another relation refers to the table'
      FROM pg_rewrite w
     WHERE w.rulename <> '_RETURN' AND w.ev_class <> %(oid)s AND w.oid IN (
           SELECT d.objid FROM pg_depend d
            WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s)
    UNION ALL
    SELECT 27, p.oid::bigint, '', rtrim(pg_get_functiondef(p.oid)), 'none', 'its SQL body refers to the table'
      FROM pg_proc p
     WHERE p.oid IN (
           SELECT d.objid FROM pg_depend d
            WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s)
    UNION ALL
    SELECT 28, p.oid::bigint, '', format('ALTER POLICY %%I ON %%s%%s%%s', p.polname, p.polrelid::regclass,
                  ' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')',
                  ' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')'),
           'ACCESS EXCLUSIVE on ' || p.polrelid::regclass, 'a policy of another table refers to the table'
      FROM pg_policy p
     WHERE p.polrelid <> %(oid)s AND p.oid IN (
           SELECT d.objid FROM pg_depend d
            WHERE d.classid = 'pg_policy'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s)
    UNION ALL
    SELECT 29, 0, p.pubname, format('ALTER PUBLICATION %%I ADD TABLE ONLY %%s%%s%%s', p.pubname, %(src)s::text,
                  (SELECT ' (' || string_agg(quote_ident(a.attname), ', ' ORDER BY u.place) || ')'
                     FROM unnest(string_to_array(translate(to_jsonb(r) ->> 'prattrs', '[],', ''), ' ')::int[]) WITH ORDINALITY AS u (attnum, place)
                     JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = u.attnum),
                  (SELECT ' WHERE (' || (to_jsonb(t) ->> 'rowfilter') || ')'
                     FROM pg_publication_tables t
                    WHERE t.pubname = p.pubname AND t.schemaname = n.nspname AND t.tablename = c.relname
                      AND to_jsonb(t) ->> 'rowfilter' IS NOT NULL)),
           'SHARE UPDATE EXCLUSIVE', 'published as before'
      FROM pg_publication_rel r
      JOIN pg_publication p ON p.oid = r.prpubid
      JOIN pg_class c ON c.oid = r.prrelid
      JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE r.prrelid = %(oid)s) s
 ORDER BY s.place, s.number, s.name

-- name: swap_grants
-- The privileges of the table, its columns and its identity sequences, given to the copy's.
WITH objects AS (
    SELECT c.oid, c.relkind, c.relowner,
           CASE WHEN c.relkind = 'S' THEN 'SEQUENCE ' || c.oid::regclass ELSE 'TABLE ' || %(src)s::text END AS named,
           c.relacl, acldefault(CASE WHEN c.relkind = 'S' THEN 's' ELSE 'r' END::"char", c.relowner) AS usual
      FROM pg_class c
     WHERE c.oid = %(oid)s OR c.oid IN (
           SELECT d.objid FROM pg_depend d JOIN pg_class q ON q.oid = d.objid
            WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s
              AND d.refobjsubid > 0 AND d.deptype = 'i' AND q.relkind = 'S')),
strangers AS (
    -- To whom ALTER DEFAULT PRIVILEGES gave something on a table or sequence just made.
    SELECT DISTINCT d.defaclobjtype, a.grantee FROM pg_default_acl d, aclexplode(d.defaclacl) a),
due AS (
    SELECT o.*, coalesce(o.relacl, o.usual) AS wanted
      FROM objects o
     WHERE o.relacl IS NOT NULL AND o.relacl <> o.usual
        OR EXISTS (SELECT FROM pg_default_acl s WHERE s.defaclobjtype = CASE WHEN o.relkind = 'S' THEN 'S' ELSE 'r' END::"char"))
SELECT s.text, 'none' AS lock, s.why
  FROM (
    SELECT 1 AS place, d.named AS number, 0::bigint AS turn, format('REVOKE ALL ON %%s FROM %%s', d.named, string_agg(DISTINCT g.name, ', ')) AS text,
           'privileges that came by default' AS why
      FROM due d
     CROSS JOIN LATERAL (
           SELECT CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END AS name
             FROM (SELECT d.relowner AS grantee UNION SELECT 0 UNION
                   SELECT t.grantee FROM strangers t WHERE t.defaclobjtype = CASE WHEN d.relkind = 'S' THEN 'S' ELSE 'r' END::"char") x
             LEFT JOIN pg_roles r ON r.oid = x.grantee) g
     GROUP BY d.named
    UNION ALL
    SELECT 2, d.named, min(a.turn), format('GRANT %%s ON %%s TO %%s%%s', string_agg(a.privilege_type, ', ' ORDER BY a.privilege_type), d.named,
                             CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END,
                             CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END), 'privileges'
      FROM due d
     CROSS JOIN LATERAL aclexplode(d.wanted) WITH ORDINALITY AS a (grantor, grantee, privilege_type, is_grantable, turn)
      LEFT JOIN pg_roles r ON r.oid = a.grantee
     GROUP BY d.named, a.grantee, d.relowner, r.rolname, a.is_grantable
    UNION ALL
    SELECT 3, t.attname, a.turn, format('GRANT %%s (%%I) ON TABLE %%s TO %%s%%s', a.privilege_type, t.attname, %(src)s::text,
                                CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END,
                                CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END), 'privileges on a column'
      FROM pg_attribute t
     CROSS JOIN LATERAL aclexplode(t.attacl) WITH ORDINALITY AS a (grantor, grantee, privilege_type, is_grantable, turn)
      LEFT JOIN pg_roles r ON r.oid = a.grantee
     WHERE t.attrelid = %(oid)s AND t.attnum > 0 AND NOT t.attisdropped) s
 ORDER BY s.place, s.number, s.turn, s.text

-- name: to_validate
-- Foreign keys that were valid: the swap makes them NOT VALID, and they are validated after it.
SELECT n.nspname AS schema_name, c.relname AS table_name, k.conname AS constraint_name,
       CASE WHEN k.conrelid = %(oid)s THEN format('constraint %%I: not valid', k.conname)
            ELSE format('foreign key %%I of %%s: not valid', k.conname, k.conrelid::regclass) END AS line
  FROM pg_constraint k
  JOIN pg_class c ON c.oid = k.conrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE k.contype = 'f' AND (k.conrelid = %(oid)s OR k.confrelid = %(oid)s) AND k.conparentid = 0 AND k.convalidated
 ORDER BY 1, 2, 3

-- name: still_refer
-- What still depends on a table that nobody should need any more.
SELECT DISTINCT pg_describe_object(d.classid, d.objid, 0)
  FROM pg_depend d
 WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s AND d.deptype IN ('n', 'a')
   AND NOT (d.classid = 'pg_class'::regclass AND d.objid IN (SELECT i.indexrelid FROM pg_index i WHERE i.indrelid = %(oid)s))
   AND NOT (d.classid = 'pg_attrdef'::regclass)
   AND NOT (d.classid = 'pg_constraint'::regclass AND d.objid IN (SELECT k.oid FROM pg_constraint k WHERE k.conrelid = %(oid)s))
   AND NOT (d.classid = 'pg_trigger'::regclass AND d.objid IN (SELECT t.oid FROM pg_trigger t WHERE t.tgrelid = %(oid)s))
   AND NOT (d.classid = 'pg_policy'::regclass AND d.objid IN (SELECT p.oid FROM pg_policy p WHERE p.polrelid = %(oid)s))
   AND NOT (d.classid = 'pg_rewrite'::regclass AND d.objid IN (SELECT w.oid FROM pg_rewrite w WHERE w.ev_class = %(oid)s))
   AND NOT (d.classid = 'pg_statistic_ext'::regclass AND d.objid IN (SELECT x.oid FROM pg_statistic_ext x WHERE x.stxrelid = %(oid)s))
 ORDER BY 1

-- name: trigger_marks
-- The log triggers of a request as they stand; one that was switched off and on again has another mark.
SELECT json_build_object('triggers', string_agg(format('%%s %%s %%s', t.tgname, t.xmin, t.tgenabled), ', ' ORDER BY t.tgname),
        'file', (SELECT c.relfilenode FROM pg_class c WHERE c.oid = %(oid)s),
        'columns', (SELECT json_object_agg(a.attnum, a.xmin::text ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped))::text
  FROM pg_trigger t
 WHERE t.tgrelid = %(oid)s AND starts_with(t.tgname, %(prefix)s)
HAVING count(*) > 0

-- name: wait_blockers
-- Who stands in the way of a session, with what each does.
SELECT a.pid, a.usename, a.application_name, a.state, now() - a.xact_start AS open_for, left(a.query, 80) AS query
  FROM pg_locks l
  JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'relation' AND l.relation = ANY (%(oids)s::oid[]) AND l.granted AND l.pid <> pg_backend_pid()
   AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
 ORDER BY a.xact_start NULLS LAST
 LIMIT 5

-- name: cancel_blockers
-- Cancel the statements of those who hold a lock that a session waits for.
SELECT b.pid FROM unnest(pg_blocking_pids(%(pid)s)) AS b (pid) WHERE pg_cancel_backend(b.pid)

-- name: end_blockers
-- End the sessions of those who hold a lock that a session waits for.
SELECT b.pid FROM unnest(pg_blocking_pids(%(pid)s)) AS b (pid) WHERE pg_terminate_backend(b.pid)

-- name: drop_index
-- The statement that drops an index of a copy, or the constraint that it belongs to; none if it is not there.
SELECT CASE WHEN k.oid IS NOT NULL THEN format('ALTER TABLE %%s DROP CONSTRAINT %%I', %(new)s::text, k.conname)
            ELSE format('DROP INDEX %%I.%%I', n.nspname, c.relname) END
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_constraint k ON k.conindid = c.oid AND k.contype IN ('p', 'u', 'x')
 WHERE n.nspname = %(new_schema)s::text AND c.relname = %(name)s::text AND c.relkind = 'i'

-- name: revokes
-- What takes the rights away that ALTER DEFAULT PRIVILEGES gave others on a schema just made.
SELECT format('REVOKE ALL ON SCHEMA %%I FROM %%s', %(schema)s::text,
              string_agg(DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END, ', ')) AS text,
       'none' AS lock, 'nobody else looks into it' AS why
  FROM pg_default_acl d
 CROSS JOIN LATERAL aclexplode(d.defaclacl) a
  LEFT JOIN pg_roles r ON r.oid = a.grantee
 WHERE d.defaclobjtype = 'n' AND r.rolname IS DISTINCT FROM current_user
HAVING count(*) > 0
