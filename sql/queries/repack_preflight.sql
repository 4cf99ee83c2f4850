-- Repack preflight: what the catalog says of a table before anything is changed.
-- Names are printed as regclass, regprocedure and pg_describe_object do it: qualified, because our search_path is bare.

-- name: named
-- What a written name may mean: as SQL reads it, as it is stored, or in other letters; closest first.
WITH found AS (
    SELECT n.nspname::text AS schema_name, c.relname::text AS table_name,
           CASE WHEN n.nspname = %(schema)s::text AND c.relname = %(table)s::text THEN 1
                WHEN n.nspname || '.' || c.relname = %(text)s::text THEN 2
                WHEN %(is_loose)s::boolean AND lower(n.nspname || '.' || c.relname) = lower(%(text)s::text) THEN 3 END AS closeness
      FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind <> 'c'
)
SELECT schema_name, table_name, closeness
  FROM found
 WHERE closeness IS NOT NULL
 ORDER BY closeness, schema_name, table_name;

-- name: schemas_of
-- The schemas that have a table of this name, as one would write them.
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE lower(c.relname) = lower(%(name)s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
 ORDER BY 1
 LIMIT 3;

-- name: table_names
-- What a mistyped name can be compared with.
SELECT n.nspname || '.' || c.relname
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\_%%' AND n.nspname <> 'information_schema'
   AND n.nspname !~ '^headrace(_(new|old|log)_[0-9]+)?$'
 ORDER BY n.nspname = %(schema)s DESC, 1
 LIMIT 20000;

-- name: leaves
-- The leaf partitions with rows of their own, of the whole tree, in the tree's order.
SELECT n.nspname::text, c.relname::text
  FROM pg_class top
  JOIN pg_namespace above ON above.oid = top.relnamespace
 CROSS JOIN LATERAL pg_partition_tree(top.oid) WITH ORDINALITY AS tree (relid, parentrelid, isleaf, level, number)
  JOIN pg_class c ON c.oid = tree.relid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE above.nspname = %(schema)s AND top.relname = %(table)s AND top.relkind = 'p'
   AND c.relkind = 'r'
 ORDER BY tree.number;

-- name: subject
-- The table itself, and what this login may do with it.
SELECT c.oid::bigint AS oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS label,
       c.relkind::text AS kind, c.relpersistence::text AS persistence,
       n.oid = pg_my_temp_schema() AS is_own_temporary,
       c.oid < 16384 OR n.nspname IN ('pg_catalog', 'information_schema') AS is_catalog,
       n.nspname ~ '^headrace(_(new|old|log)_[0-9]+)?$' AS is_ours,
       quote_ident(current_user) AS login, quote_ident(pg_get_userbyid(c.relowner)) AS owner,
       quote_ident(current_database()) AS database, quote_ident(n.nspname) AS schema,
       c.relowner = r.oid AS is_owner, r.rolsuper AS is_superuser,
       pg_has_role(c.relowner, 'USAGE') AS owns, pg_has_role(c.relowner, 'MEMBER') AS is_member,
       -- The rest is about a table; on other kinds some of these functions fail.
       pg_has_role(c.relowner, CASE WHEN current_setting('server_version_num')::integer >= 160000
                                    THEN 'SET' ELSE 'MEMBER' END) AS may_become_owner,
       has_database_privilege(current_database(), 'CREATE') AS may_create_schemas,
       has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE') AS may_create_here,
       has_schema_privilege(c.relowner, n.oid, 'CREATE') AS owner_may_create_here,
       has_table_privilege(c.oid, 'SELECT')
           OR c.relkind = 'r' AND NOT EXISTS (
                  SELECT FROM pg_attribute a
                   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                     AND NOT has_column_privilege(c.oid, a.attnum, 'SELECT')) AS may_select,
       has_table_privilege(c.oid, 'TRIGGER') AS may_trigger,
       has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE') AS may_lock,
       c.relkind = 'r' AND row_security_active(c.oid) AS has_row_security,
       coalesce((SELECT has_language_privilege(l.oid, 'USAGE') FROM pg_language l WHERE l.lanname = 'plpgsql'),
                false) AS has_plpgsql,
       pg_is_in_recovery() AS is_standby
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_roles r ON r.rolname = current_user
 WHERE c.relname = %(table)s
   AND n.oid = CASE %(schema)s::text WHEN 'pg_temp' THEN pg_my_temp_schema()
                                     ELSE (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s) END;

-- name: columns
-- A table's columns; an order needs a btree operator class, a copy the right to use the type.
WITH RECURSIVE bases (attnum, oid) AS (
    SELECT a.attnum, a.atttypid FROM pg_attribute a
     WHERE a.attrelid = %(table)s::oid AND a.attnum > 0 AND NOT a.attisdropped
     UNION ALL
    SELECT b.attnum, t.typbasetype FROM bases b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype = 'd'
)
SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS type, a.attgenerated <> '' AS is_generated,
       has_type_privilege(a.atttypid, 'USAGE') AS may_use_type,
       EXISTS (SELECT FROM pg_opclass o
                 JOIN pg_am am ON am.oid = o.opcmethod AND am.amname = 'btree'
                WHERE o.opcdefault
                  AND (o.opcintype = t.oid
                       OR o.opcintype = 'anyarray'::regtype AND t.typcategory = 'A'
                       OR o.opcintype = 'anyenum'::regtype AND t.typtype = 'e'
                       OR o.opcintype = 'anyrange'::regtype AND t.typtype = 'r'
                       OR o.opcintype = 'anymultirange'::regtype AND t.typtype = 'm'
                       OR o.opcintype = 'record'::regtype AND t.typtype = 'c'
                       OR EXISTS (SELECT FROM pg_cast k WHERE k.castsource = t.oid AND k.casttarget = o.opcintype
                                     AND k.castmethod = 'b' AND k.castcontext = 'i'))) AS is_orderable
  FROM pg_attribute a
  JOIN bases b ON b.attnum = a.attnum
  JOIN pg_type t ON t.oid = b.oid AND t.typtype <> 'd'
 WHERE a.attrelid = %(table)s::oid
 ORDER BY a.attnum;

-- name: indexes
-- A table's indexes: what each is good for as the key of a copy, best first, and where it lies.
SELECT x.relname::text AS name, quote_ident(x.relname) AS quoted,
       i.indisvalid AND i.indisready AND i.indislive AS is_valid,
       i.indisunique AS is_unique, i.indisprimary AS is_primary, i.indimmediate AS is_immediate,
       am.amname = 'btree' AS is_btree, i.indpred IS NOT NULL AS is_partial, i.indexprs IS NOT NULL AS has_expressions,
       k.is_plain, k.columns, k.quoted_columns, k.types, k.equals, k.nullable,
       s.spcname::text AS tablespace,
       s.oid IS NULL OR has_tablespace_privilege(s.oid, 'CREATE') AS may_create_there
  FROM pg_index i
  JOIN pg_class x ON x.oid = i.indexrelid
  JOIN pg_am am ON am.oid = x.relam
  LEFT JOIN pg_tablespace s ON s.oid = x.reltablespace
 CROSS JOIN LATERAL (
    SELECT coalesce(bool_and(o.opcdefault AND i.indcollation[p.n] = a.attcollation), false) AS is_plain,
           coalesce(array_agg(a.attname::text ORDER BY p.n), '{}') AS columns,
           coalesce(array_agg(quote_ident(a.attname) ORDER BY p.n), '{}') AS quoted_columns,
           coalesce(array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY p.n), '{}') AS types,
           coalesce(array_agg('OPERATOR(' || quote_ident(e.nspname) || '.' || q.oprname || ')' ORDER BY p.n), '{}') AS equals,
           coalesce(array_agg(a.attname::text ORDER BY p.n)
                    -- A NOT NULL that was never validated (PostgreSQL 18) lets old nulls be.
                    FILTER (WHERE NOT a.attnotnull OR EXISTS (
                        SELECT FROM pg_constraint c WHERE c.conrelid = i.indrelid AND c.contype = 'n'
                           AND c.conkey = ARRAY[a.attnum] AND NOT c.convalidated)), '{}') AS nullable
      FROM generate_series(0, i.indnkeyatts - 1) AS p (n)
      JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[p.n]
      JOIN pg_opclass o ON o.oid = i.indclass[p.n]
      LEFT JOIN pg_amop m ON m.amopfamily = o.opcfamily AND m.amopstrategy = 3 AND o.opcmethod = m.amopmethod
           AND m.amoplefttype = o.opcintype AND m.amoprighttype = o.opcintype
      LEFT JOIN pg_operator q ON q.oid = m.amopopr
      LEFT JOIN pg_namespace e ON e.oid = q.oprnamespace
 ) k
 WHERE i.indrelid = %(table)s::oid
 ORDER BY i.indimmediate DESC, i.indisprimary DESC, i.indnkeyatts, x.relname;

-- name: tablespaces
-- Every tablespace, and whether this login may make tables there.
SELECT s.spcname::text AS name, s.spcname = 'pg_global' AS is_global,
       has_tablespace_privilege(s.oid, 'CREATE')
           OR s.oid = (SELECT dattablespace FROM pg_database WHERE datname = current_database()) AS may_create_there
  FROM pg_tablespace s;

-- name: obstacles
-- Everything that is in the way of a table's twin taking its place: the kind of trouble, what it is, more about it.
WITH family AS (
    SELECT a.relid::oid AS oid FROM pg_partition_ancestors(%(table)s::oid::regclass) AS a
     UNION
    SELECT %(table)s::oid
), me AS (
    SELECT c.oid, c.relowner, c.reltype, t.typarray, c.reltoastrelid, c.reltablespace, c.relacl, c.relpersistence
      FROM pg_class c JOIN pg_type t ON t.oid = c.reltype
     WHERE c.oid = %(table)s::oid
), owned_sequences AS (
    -- A serial's sequence (a) goes on; an identity's (i) is made anew.
    SELECT d.objid AS oid, d.deptype = 'i' AS is_identity FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
     WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = %(table)s::oid
       AND d.deptype IN ('a', 'i')
), keys AS (
    -- Foreign keys as they were declared: what partitions have of them is PostgreSQL's own.
    SELECT k.oid, k.conname, k.conrelid, k.confrelid, k.confkey,
           k.conrelid = me.oid OR k.confrelid = me.oid AS is_direct
      FROM pg_constraint k, me
     WHERE k.contype = 'f' AND k.conparentid = 0
       AND (k.conrelid IN (SELECT oid FROM family) OR k.confrelid IN (SELECT oid FROM family))
), users AS (
    -- What the catalog says refers to the table, itself as a whole or a column.
    SELECT DISTINCT d.classid, d.objid
      FROM pg_depend d, me
     WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = me.oid
), bound AS (
    -- What is bound to the new table by a statement of its own; `creates_in`: that needs CREATE there.
    SELECT CASE WHEN v.relkind = 'm' THEN 'materialized view' WHEN w.rulename = '_RETURN' THEN 'view'
                ELSE 'rule ' || quote_ident(w.rulename) || ' on' END || ' ' || v.oid::regclass AS object,
           v.relkind = 'm' AS is_matview, v.relpersistence = 't' AS is_temporary, v.relowner AS owner,
           CASE WHEN v.relkind = 'v' AND w.rulename = '_RETURN' THEN v.relnamespace END AS creates_in
      FROM users u
      JOIN pg_rewrite w ON u.classid = 'pg_rewrite'::regclass AND w.oid = u.objid
      JOIN pg_class v ON v.oid = w.ev_class
      JOIN me ON me.oid <> v.oid
     UNION ALL
    SELECT 'function ' || p.oid::regprocedure, false,
           p.pronamespace = pg_my_temp_schema() OR pg_is_other_temp_schema(p.pronamespace), p.proowner, p.pronamespace
      FROM users u
      JOIN pg_proc p ON u.classid = 'pg_proc'::regclass AND p.oid = u.objid
     WHERE p.prokind <> 'a'
     UNION ALL
    SELECT 'policy ' || quote_ident(p.polname) || ' on ' || c.oid::regclass, false, c.relpersistence = 't',
           c.relowner, NULL
      FROM users u
      JOIN pg_policy p ON u.classid = 'pg_policy'::regclass AND p.oid = u.objid
      JOIN pg_class c ON c.oid = p.polrelid
      JOIN me ON me.oid <> c.oid
     UNION ALL
    SELECT 'foreign key ' || quote_ident(k.conname) || ' of ' || c.oid::regclass, false, false, c.relowner, NULL
      FROM keys k
      JOIN me ON me.oid = k.confrelid AND me.oid <> k.conrelid
      JOIN pg_class c ON c.oid = k.conrelid
     UNION ALL
    SELECT 'publication ' || quote_ident(p.pubname), false, false, p.pubowner, NULL
      FROM pg_publication_rel r
      JOIN me ON me.oid = r.prrelid
      JOIN pg_publication p ON p.oid = r.prpubid
     UNION ALL
    SELECT 'statistics ' || quote_ident(n.nspname) || '.' || quote_ident(s.stxname), false, false, s.stxowner, n.oid
      FROM pg_statistic_ext s
      JOIN me ON me.oid = s.stxrelid
      JOIN pg_namespace n ON n.oid = s.stxnamespace
     UNION ALL
    SELECT CASE WHEN h.inhparent = me.oid THEN 'child ' ELSE 'parent ' END || c.oid::regclass, false,
           c.relpersistence = 't', c.relowner, NULL
      FROM pg_inherits h
      JOIN me ON me.oid IN (h.inhrelid, h.inhparent)
      JOIN pg_class c ON c.oid IN (h.inhrelid, h.inhparent) AND c.oid <> me.oid
), user_functions AS (
    -- Functions that run as this login when rows come into the copy, or that its triggers name.
    SELECT t.tgfoid AS oid, 'trigger ' || quote_ident(t.tgname) AS used_by
      FROM pg_trigger t JOIN me ON me.oid = t.tgrelid
     WHERE NOT t.tgisinternal OR t.tgparentid <> 0
     UNION
    SELECT d.refobjid, CASE WHEN k.oid IS NULL THEN 'a generated column' ELSE 'check ' || quote_ident(k.conname) END
      FROM pg_depend d
      CROSS JOIN me
      LEFT JOIN pg_constraint k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid AND k.conrelid = me.oid
      LEFT JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid AND f.adrelid = me.oid
      LEFT JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum AND a.attgenerated <> ''
     WHERE d.refclassid = 'pg_proc'::regclass AND (k.oid IS NOT NULL OR a.attnum IS NOT NULL)
), grants AS (
    SELECT 'the table' AS object, relacl AS acl FROM me
     UNION ALL
    SELECT 'column ' || quote_ident(a.attname), a.attacl
      FROM pg_attribute a JOIN me ON me.oid = a.attrelid
     WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attacl IS NOT NULL
     UNION ALL
    SELECT 'sequence ' || s.oid::regclass, c.relacl
      FROM owned_sequences s JOIN pg_class c ON c.oid = s.oid
     WHERE s.is_identity
)
SELECT 'foreign_owner' AS kind, object, quote_ident(pg_get_userbyid(owner)) AS detail
  FROM bound WHERE NOT pg_has_role(owner, 'USAGE')
 UNION
SELECT 'no_create', object, quote_ident(n.nspname)
  FROM bound JOIN pg_namespace n ON n.oid = creates_in
 WHERE NOT is_temporary AND pg_has_role(owner, 'USAGE') AND NOT has_schema_privilege(n.oid, 'CREATE')
 UNION
SELECT 'matview', object, '' FROM bound WHERE is_matview
 UNION
SELECT 'temporary', object, '' FROM bound WHERE is_temporary
 UNION
SELECT 'row_type', pg_describe_object(d.classid, d.objid, d.objsubid), ''
  FROM pg_depend d
  JOIN me ON d.refclassid = 'pg_type'::regclass AND d.refobjid IN (me.reltype, me.typarray)
 WHERE NOT (d.classid = 'pg_type'::regclass AND d.objid = me.typarray)
 UNION
SELECT 'reference', pg_describe_object(u.classid, u.objid, 0), ''
  FROM users u
  CROSS JOIN me
 WHERE CASE u.classid
       WHEN 'pg_rewrite'::regclass THEN false
       WHEN 'pg_policy'::regclass THEN false
       WHEN 'pg_publication_rel'::regclass THEN false
       WHEN 'pg_type'::regclass THEN u.objid <> me.reltype
       WHEN 'pg_proc'::regclass THEN (SELECT prokind = 'a' FROM pg_proc WHERE oid = u.objid)
       WHEN 'pg_statistic_ext'::regclass THEN (SELECT stxrelid <> me.oid FROM pg_statistic_ext WHERE oid = u.objid)
       WHEN 'pg_trigger'::regclass
       THEN (SELECT tgrelid <> me.oid AND NOT tgisinternal FROM pg_trigger WHERE oid = u.objid)
       WHEN 'pg_attrdef'::regclass THEN (SELECT adrelid <> me.oid FROM pg_attrdef WHERE oid = u.objid)
       WHEN 'pg_constraint'::regclass
       THEN (SELECT conrelid <> me.oid AND contype <> 'f' FROM pg_constraint WHERE oid = u.objid)
       WHEN 'pg_class'::regclass
       THEN NOT EXISTS (SELECT FROM pg_index i WHERE i.indexrelid = u.objid AND i.indrelid = me.oid)
            AND NOT EXISTS (SELECT FROM owned_sequences s WHERE s.oid = u.objid)
            AND NOT EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = u.objid AND h.inhparent = me.oid)
            AND u.objid <> me.reltoastrelid
       ELSE true END
 UNION
-- A constant such as 'app.t'::regclass in the table's own expressions would go on meaning the old one. The text is
-- asked: pg_depend has no row for it beside one for a column.
SELECT 'own_constant', x.object, ''
  FROM me
 CROSS JOIN LATERAL (
    SELECT pg_describe_object('pg_attrdef'::regclass, f.oid, 0), pg_get_expr(f.adbin, f.adrelid)
      FROM pg_attrdef f WHERE f.adrelid = me.oid
     UNION ALL
    SELECT pg_describe_object('pg_constraint'::regclass, k.oid, 0), pg_get_constraintdef(k.oid)
      FROM pg_constraint k WHERE k.conrelid = me.oid AND k.contype IN ('c', 'x')
     UNION ALL
    SELECT 'index ' || i.indexrelid::regclass, pg_get_indexdef(i.indexrelid)
      FROM pg_index i WHERE i.indrelid = me.oid AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)
     UNION ALL
    SELECT pg_describe_object('pg_statistic_ext'::regclass, s.oid, 0), pg_get_statisticsobjdef(s.oid)
      FROM pg_statistic_ext s WHERE s.stxrelid = me.oid
 ) AS x (object, text)
 WHERE strpos(x.text, quote_literal(me.oid::regclass::text) || '::regclass') > 0
 UNION
SELECT 'partitioned_partner', 'foreign key ' || quote_ident(k.conname) || ' of ' || k.conrelid::regclass,
       c.oid::regclass::text
  FROM keys k
  JOIN pg_class c ON c.oid IN (k.conrelid, k.confrelid) AND c.relkind = 'p'
 WHERE k.is_direct
 UNION
SELECT 'parent_key', 'foreign key ' || quote_ident(k.conname) || ' of ' || k.conrelid::regclass,
       k.confrelid::regclass::text
  FROM keys k WHERE NOT k.is_direct
 UNION
SELECT 'no_references', 'foreign key ' || quote_ident(k.conname) || ' of ' || k.conrelid::regclass,
       k.confrelid::regclass::text
  FROM keys k
  JOIN pg_class c ON c.oid = k.confrelid
 WHERE k.is_direct
   AND (NOT has_schema_privilege(c.relnamespace, 'USAGE')
        OR NOT has_table_privilege(c.oid, 'REFERENCES')
           AND EXISTS (SELECT FROM unnest(k.confkey) AS a (attnum)
                        WHERE NOT has_column_privilege(c.oid, a.attnum, 'REFERENCES')))
 UNION
SELECT 'disabled_trigger', 'constraint ' || quote_ident(k.conname) || ' of ' || k.conrelid::regclass,
       t.tgrelid::regclass::text
  FROM pg_trigger t
  JOIN me ON me.oid IN (t.tgrelid, t.tgconstrrelid)
  JOIN pg_constraint k ON k.oid = t.tgconstraint AND k.contype <> 't'
 WHERE t.tgisinternal AND t.tgenabled <> 'O'
 UNION
SELECT 'no_execute', 'function ' || f.oid::regprocedure, f.used_by
  FROM user_functions f
  JOIN pg_proc p ON p.oid = f.oid
 WHERE NOT has_function_privilege(f.oid, 'EXECUTE') OR NOT has_schema_privilege(p.pronamespace, 'USAGE')
 UNION
SELECT 'several_parents', h.inhrelid::regclass::text, last.inhparent::regclass::text
  FROM pg_inherits h
  JOIN me ON me.oid = h.inhparent
  JOIN LATERAL (SELECT o.inhparent, o.inhseqno FROM pg_inherits o
                 WHERE o.inhrelid = h.inhrelid ORDER BY o.inhseqno DESC LIMIT 1) last ON last.inhseqno > h.inhseqno
 UNION
SELECT 'foreign_grant', g.object, quote_ident(pg_get_userbyid(x.grantor))
  FROM grants g
 CROSS JOIN LATERAL aclexplode(g.acl) AS x
 CROSS JOIN me
 WHERE x.grantor <> me.relowner
 UNION
SELECT 'all_tables', quote_ident(p.pubname), ''
  FROM pg_publication p CROSS JOIN me
 WHERE p.puballtables AND me.relpersistence = 'p'
 UNION
SELECT 'subscription', coalesce(quote_ident(s.subname), 'number ' || r.srsubid), ''
  FROM pg_subscription_rel r
  JOIN me ON me.oid = r.srrelid
  LEFT JOIN (SELECT oid, subname FROM pg_subscription) s ON s.oid = r.srsubid
 UNION
SELECT 'security_label', pg_describe_object(l.classoid, l.objoid, l.objsubid), l.provider
  FROM pg_seclabel l
 WHERE l.classoid = 'pg_class'::regclass
   AND (l.objoid = %(table)s::oid OR l.objoid IN (SELECT oid FROM owned_sequences WHERE is_identity))
 UNION
SELECT 'extension', e.extname, ''
  FROM pg_depend d
  JOIN me ON d.classid = 'pg_class'::regclass AND d.objid = me.oid
  JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid
 WHERE d.deptype = 'e'
 UNION
SELECT 'needs_extension', pg_describe_object(d.classid, d.objid, 0), e.extname
  FROM pg_depend d
  JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid
 CROSS JOIN me
  LEFT JOIN pg_index i ON d.classid = 'pg_class'::regclass AND i.indexrelid = d.objid AND i.indrelid = me.oid
  LEFT JOIN pg_trigger t ON d.classid = 'pg_trigger'::regclass AND t.oid = d.objid AND t.tgrelid = me.oid
  LEFT JOIN users u ON d.classid = 'pg_proc'::regclass AND u.classid = d.classid AND u.objid = d.objid
 WHERE d.deptype = 'x' AND (i.indexrelid IS NOT NULL OR t.oid IS NOT NULL OR u.objid IS NOT NULL)
 UNION
SELECT 'prepared', quote_literal(p.gid), p.owner::text
  FROM pg_locks l
  JOIN pg_locks x ON x.virtualtransaction = l.virtualtransaction AND x.locktype = 'transactionid' AND x.pid IS NULL
  JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
 WHERE l.locktype = 'relation' AND l.relation = %(table)s::oid AND l.pid IS NULL
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
 UNION
SELECT 'wraparound', 'pid ' || a.pid, a.query
  FROM pg_stat_activity a
  JOIN pg_locks l ON l.pid = a.pid AND l.locktype = 'relation'
  JOIN me ON l.relation IN (me.oid, me.reltoastrelid)
 WHERE a.query LIKE 'autovacuum: VACUUM%%(to prevent wraparound)'
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
 UNION
SELECT 'tablespace', 'tablespace ' || quote_ident(s.spcname), ''
  FROM me JOIN pg_tablespace s ON s.oid = me.reltablespace
 WHERE NOT has_tablespace_privilege(s.oid, 'CREATE')
 UNION
SELECT 'event_trigger', quote_ident(e.evtname), e.evtevent
  FROM pg_event_trigger e
 WHERE e.evtenabled IN ('O', 'A') AND e.evtevent IN ('ddl_command_start', 'ddl_command_end', 'sql_drop')
 ORDER BY 1, 2, 3;
