-- Repack: everything that belongs to a table or refers to it, as text without a number of the server's own.

-- name: lines
-- Each fact of a table, of its parts and of what refers to it, one line each; a true twin has the same lines.
-- A column of a newer PostgreSQL is taken from `newer` where the catalog has none of that name.
WITH newer AS (
    SELECT NULL::int2vector AS prattrs, NULL::pg_node_tree AS prqual
), it AS MATERIALIZED (
    SELECT c.oid, c.relname, c.relnamespace, c.reltype, c.reloftype, c.relowner, c.relam, c.reltablespace,
           c.reltoastrelid, c.relpersistence, c.relkind, c.relrowsecurity, c.relforcerowsecurity, c.relreplident,
           c.relispartition, c.relpartbound, c.reloptions, c.relacl
      FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %(schema)s AND c.relname = %(table)s
), used AS MATERIALIZED (
    SELECT DISTINCT d.classid, d.objid
      FROM it
      JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = it.oid
     WHERE d.classid IN ('pg_rewrite'::regclass, 'pg_policy'::regclass, 'pg_proc'::regclass)
), part (thing, class, id, sub, acl, facts, is_ours) AS MATERIALIZED (
    SELECT 'table', 'pg_class'::regclass::oid, it.oid, 0, coalesce(it.relacl, acldefault('r', it.relowner)),
           ARRAY['kind ' || it.relkind::text, 'persistence ' || it.relpersistence::text,
                 'owner ' || quote_ident(pg_get_userbyid(it.relowner)),
                 'access method ' || (SELECT am.amname FROM pg_am am WHERE am.oid = it.relam),
                 'tablespace ' || (SELECT s.spcname FROM pg_tablespace s WHERE s.oid = it.reltablespace),
                 CASE WHEN it.relrowsecurity THEN 'row level security' END,
                 CASE WHEN it.relforcerowsecurity THEN 'row level security also for the owner' END,
                 'replica identity ' || it.relreplident::text,
                 CASE WHEN it.reloftype <> 0 THEN 'of type ' || it.reloftype::regtype END,
                 'partitioned by ' || CASE WHEN it.relkind = 'p' THEN pg_get_partkeydef(it.oid) END,
                 'bound ' || pg_get_expr(it.relpartbound, it.oid)]
           || ARRAY(SELECT 'option ' || o FROM unnest(it.reloptions) o)
           || ARRAY(SELECT 'toast option ' || o
                      FROM pg_class t CROSS JOIN unnest(t.reloptions) o WHERE t.oid = it.reltoastrelid)
           || ARRAY(SELECT format('parent %%s: %%s%%s', row_number() OVER (ORDER BY i.inhseqno), i.inhparent::regclass,
                                  CASE WHEN i.inhdetachpending THEN ', being detached' END)
                      FROM pg_inherits i WHERE i.inhrelid = it.oid)
           || ARRAY(SELECT format('parent %%s of %%s', (SELECT count(*) FROM pg_inherits o
                                                        WHERE o.inhrelid = i.inhrelid AND o.inhseqno <= i.inhseqno),
                                  i.inhrelid::regclass)
                      FROM pg_inherits i WHERE i.inhparent = it.oid),
           true
      FROM it
    UNION ALL
    SELECT 'row type', 'pg_type'::regclass, y.oid, 0, coalesce(y.typacl, acldefault('T', y.typowner)), '{}', true
      FROM it JOIN pg_type y ON y.oid = it.reltype
    UNION ALL
    SELECT 'array type', 'pg_type'::regclass, y.typarray, 0, NULL, '{}', true
      FROM it JOIN pg_type y ON y.oid = it.reltype
    UNION ALL
    SELECT format('column %%s %%I', row_number() OVER (ORDER BY a.attnum), a.attname),
           'pg_class'::regclass, it.oid, a.attnum, a.attacl,
           ARRAY['type ' || format_type(a.atttypid, a.atttypmod),
                 CASE WHEN a.attcollation <> 0 THEN 'collation ' || a.attcollation::regcollation END,
                 CASE WHEN a.attnotnull THEN 'not null' END,
                 CASE a.attgenerated WHEN 's' THEN 'generated, stored, ' WHEN 'v' THEN 'generated, virtual, ' ELSE '' END
                 || 'default '
                 -- Only a generated column refers to columns; to look up all their names for each default takes long.
                 || (SELECT pg_get_expr(f.adbin, CASE a.attgenerated WHEN '' THEN 0 ELSE it.oid END) FROM pg_attrdef f
                      WHERE f.adrelid = it.oid AND f.adnum = a.attnum),
                 'identity ' || nullif(a.attidentity::text, ''), 'storage ' || a.attstorage::text,
                 'compression ' || nullif(a.attcompression::text, ''), 'statistics target ' || nullif(a.attstattarget, -1),
                 CASE WHEN NOT a.attislocal THEN 'not defined here' END,
                 'inherited from ' || nullif(a.attinhcount, 0)]
           -- Some releases keep a number of its own among a column's options, which nobody can set.
           || ARRAY(SELECT 'option ' || o FROM unnest(a.attoptions) o WHERE NOT starts_with(o, 'pg_attver=')),
           true
      FROM it JOIN pg_attribute a ON a.attrelid = it.oid AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT format('constraint %%I', k.conname), 'pg_constraint'::regclass, k.oid, 0, NULL,
           ARRAY[regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', ''),
                 CASE WHEN NOT k.convalidated THEN 'not valid' END,
                 CASE WHEN k.connoinherit AND k.contype IN ('c', 'n') THEN 'not inherited by children' END,
                 CASE WHEN NOT k.conislocal THEN 'not defined here' END,
                 'inherited from ' || nullif(k.coninhcount, 0),
                 'partition''s part of ' || (SELECT format('%%I', p.conname) FROM pg_constraint p
                                              WHERE p.oid = k.conparentid)]
           || ARRAY(SELECT format('trigger %%s on %%s enabled %%s', g.tgfoid::regproc, g.tgrelid::regclass, g.tgenabled)
                      FROM pg_trigger g WHERE g.tgconstraint = k.oid AND g.tgisinternal AND g.tgenabled <> 'O'),
           true
      FROM it JOIN pg_constraint k ON k.conrelid = it.oid
    UNION ALL
    SELECT format('foreign key %%I of %%s', k.conname, k.conrelid::regclass), 'pg_constraint'::regclass, k.oid, 0, NULL,
           ARRAY[regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', ''),
                 CASE WHEN NOT k.convalidated THEN 'not valid' END,
                 CASE WHEN NOT k.conislocal THEN 'not defined here' END,
                 'inherited from ' || nullif(k.coninhcount, 0),
                 'partition''s part of ' || (SELECT format('%%I', p.conname) FROM pg_constraint p
                                              WHERE p.oid = k.conparentid)]
           || ARRAY(SELECT format('trigger %%s on %%s enabled %%s', g.tgfoid::regproc, g.tgrelid::regclass, g.tgenabled)
                      FROM pg_trigger g WHERE g.tgconstraint = k.oid AND g.tgisinternal AND g.tgenabled <> 'O'),
           false
      FROM it
      JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = it.oid
                      AND d.classid = 'pg_constraint'::regclass
      JOIN pg_constraint k ON k.oid = d.objid AND k.confrelid = it.oid AND k.conrelid <> it.oid
     GROUP BY k.oid, k.conname, k.conrelid, k.convalidated, k.conislocal, k.coninhcount, k.conparentid
    UNION ALL
    SELECT format('index %%I', c.relname), 'pg_class'::regclass, c.oid, 0, NULL,
           ARRAY[pg_get_indexdef(c.oid),
                 'tablespace ' || (SELECT s.spcname FROM pg_tablespace s WHERE s.oid = c.reltablespace),
                 CASE WHEN NOT i.indisvalid THEN 'invalid' END, CASE WHEN NOT i.indisready THEN 'not ready' END,
                 CASE WHEN i.indisprimary THEN 'primary' END, CASE WHEN NOT i.indimmediate THEN 'deferrable' END,
                 CASE WHEN i.indisclustered THEN 'clustered' END,
                 CASE WHEN i.indisreplident THEN 'replica identity' END,
                 CASE WHEN c.relispartition
                      THEN 'part of ' || (SELECT h.inhparent::regclass FROM pg_inherits h WHERE h.inhrelid = c.oid) END]
           || ARRAY(SELECT format('statistics target of column %%s: %%s', a.attnum, a.attstattarget)
                      FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attstattarget <> -1),
           true
      FROM it JOIN pg_index i ON i.indrelid = it.oid JOIN pg_class c ON c.oid = i.indexrelid
    UNION ALL
    SELECT format('trigger %%I', g.tgname), 'pg_trigger'::regclass, g.oid, 0, NULL,
           ARRAY[pg_get_triggerdef(g.oid), 'enabled ' || g.tgenabled::text,
                 'part of ' || (SELECT format('%%I on %%s', p.tgname, p.tgrelid::regclass) FROM pg_trigger p
                                 WHERE p.oid = g.tgparentid)],
           true
      FROM it
      JOIN pg_trigger g ON g.tgrelid = it.oid
      LEFT JOIN pg_constraint k ON k.oid = g.tgconstraint
     WHERE (NOT g.tgisinternal OR g.tgparentid <> 0 AND coalesce(k.contype, 't') = 't')
       AND NOT starts_with(g.tgname::text, 'headrace_repack_')
    UNION ALL
    SELECT format('rule %%I', r.rulename), 'pg_rewrite'::regclass, r.oid, 0, NULL,
           ARRAY[pg_get_ruledef(r.oid), 'enabled ' || r.ev_enabled::text], true
      FROM it JOIN pg_rewrite r ON r.ev_class = it.oid
    UNION ALL
    SELECT format('rule %%I on %%s', r.rulename, r.ev_class::regclass), 'pg_rewrite'::regclass, r.oid, 0, NULL,
           CASE WHEN r.rulename <> '_RETURN' THEN ARRAY[pg_get_ruledef(r.oid), 'enabled ' || r.ev_enabled::text] END, false
      FROM it, used u JOIN pg_rewrite r ON r.oid = u.objid
     WHERE u.classid = 'pg_rewrite'::regclass AND r.ev_class <> it.oid
    UNION ALL
    SELECT format('view %%s', v.oid::regclass), 'pg_class'::regclass, v.oid, 0,
           coalesce(v.relacl, acldefault('r', v.relowner)),
           ARRAY['kind ' || v.relkind::text, pg_get_viewdef(v.oid), 'owner ' || quote_ident(pg_get_userbyid(v.relowner))]
           || ARRAY(SELECT 'option ' || o FROM unnest(v.reloptions) o), false
      FROM used u JOIN pg_rewrite r ON r.oid = u.objid AND r.rulename = '_RETURN' JOIN pg_class v ON v.oid = r.ev_class
     WHERE u.classid = 'pg_rewrite'::regclass
    UNION ALL
    SELECT format('policy %%I%%s', p.polname, CASE WHEN p.polrelid <> it.oid THEN ' on ' || p.polrelid::regclass END),
           'pg_policy'::regclass, p.oid, 0, NULL,
           ARRAY['command ' || p.polcmd::text, CASE WHEN p.polpermissive THEN 'permissive' ELSE 'restrictive' END,
                 'roles ' || array_to_string(ARRAY(
                     SELECT CASE role WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(role)) END COLLATE "C" AS name
                       FROM unnest(p.polroles) role ORDER BY name), ', '),
                 'using ' || pg_get_expr(p.polqual, p.polrelid), 'check ' || pg_get_expr(p.polwithcheck, p.polrelid)],
           p.polrelid = it.oid
      FROM it JOIN pg_policy p ON p.polrelid = it.oid
                               OR p.oid IN (SELECT u.objid FROM used u WHERE u.classid = 'pg_policy'::regclass)
    UNION ALL
    SELECT format('statistics %%s.%%I', x.stxnamespace::regnamespace, x.stxname), 'pg_statistic_ext'::regclass, x.oid, 0,
           NULL,
           ARRAY[pg_get_statisticsobjdef(x.oid), 'owner ' || quote_ident(pg_get_userbyid(x.stxowner)),
                 'target ' || nullif(x.stxstattarget, -1)],
           true
      FROM it JOIN pg_statistic_ext x ON x.stxrelid = it.oid
    UNION ALL
    SELECT format('sequence %%s', c.oid::regclass), 'pg_class'::regclass, c.oid, 0,
           coalesce(c.relacl, acldefault('s', c.relowner)),
           ARRAY[format('%%s of column %%I', CASE d.deptype WHEN 'i' THEN 'identity' ELSE 'serial' END, a.attname),
                 'owner ' || quote_ident(pg_get_userbyid(c.relowner)), 'persistence ' || c.relpersistence::text,
                 'type ' || format_type(s.seqtypid, NULL), 'start ' || s.seqstart, 'increment ' || s.seqincrement,
                 'maximum ' || s.seqmax, 'minimum ' || s.seqmin, 'cache ' || s.seqcache,
                 CASE WHEN s.seqcycle THEN 'cycle' END],
           true
      FROM it
      JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = it.oid AND d.refobjsubid > 0
                      AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
      JOIN pg_sequence s ON s.seqrelid = d.objid
      JOIN pg_class c ON c.oid = d.objid
      JOIN pg_attribute a ON a.attrelid = it.oid AND a.attnum = d.refobjsubid
    UNION ALL
    SELECT format('function %%s', f.oid::regprocedure), 'pg_proc'::regclass, f.oid, 0,
           coalesce(f.proacl, acldefault('f', f.proowner)),
           ARRAY[CASE WHEN f.prokind <> 'a' THEN pg_get_functiondef(f.oid) END,
                 'owner ' || quote_ident(pg_get_userbyid(f.proowner))],
           false
      FROM used u JOIN pg_proc f ON f.oid = u.objid
     WHERE u.classid = 'pg_proc'::regclass
    UNION ALL
    SELECT format('publication %%I', p.pubname), 'pg_publication_rel'::regclass, r.oid, 0, NULL,
           ARRAY['columns ' || (
                     SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attname) FROM pg_attribute a
                      WHERE a.attrelid = it.oid AND a.attnum = ANY (f.attrs)),
                 'where ' || pg_get_expr(f.qual, it.oid)],
           true
      FROM it
      JOIN pg_publication_rel r ON r.prrelid = it.oid
      JOIN pg_publication p ON p.oid = r.prpubid
     CROSS JOIN newer
     CROSS JOIN LATERAL (SELECT prattrs::int2[] AS attrs, prqual AS qual
                           FROM pg_publication_rel s WHERE s.oid = r.oid) f
    UNION ALL
    SELECT format('publication %%I', p.pubname), NULL, NULL, 0, NULL,
           ARRAY[CASE WHEN p.puballtables THEN 'of every table' ELSE 'of the schema' END], true
      FROM it
      JOIN pg_publication p
        ON p.puballtables OR EXISTS (
               SELECT FROM pg_depend d JOIN pg_depend n ON n.classid = d.classid AND n.objid = d.objid
                WHERE d.refclassid = 'pg_publication'::regclass AND d.refobjid = p.oid
                  AND d.classid = to_regclass('pg_catalog.pg_publication_namespace')
                  AND n.refclassid = 'pg_namespace'::regclass AND n.refobjid = it.relnamespace)
), other AS MATERIALIZED (
    -- Whatever else PostgreSQL knows to depend on it; log triggers and what is in our own schemas are our doing.
    SELECT d.classid, d.objid
      FROM part p JOIN pg_depend d ON d.refclassid = p.class AND d.refobjid = p.id
     WHERE p.is_ours AND p.sub = 0
    EXCEPT SELECT p.class, p.id FROM part p
    EXCEPT SELECT 'pg_attrdef'::regclass, f.oid FROM it JOIN pg_attrdef f ON f.adrelid = it.oid
    EXCEPT SELECT 'pg_trigger'::regclass, g.oid FROM it JOIN pg_trigger g ON g.tgrelid = it.oid
    EXCEPT SELECT 'pg_class'::regclass, it.reltoastrelid FROM it
)
SELECT p.thing || ': ' || f.fact FROM part p CROSS JOIN unnest(p.facts) f (fact) WHERE f.fact IS NOT NULL
UNION ALL
SELECT p.thing || ': comment ' || d.description
  FROM part p JOIN pg_description d ON d.classoid = p.class AND d.objoid = p.id AND d.objsubid = p.sub
UNION ALL
SELECT format('%%s: security label %%s for %%I', p.thing, l.label, l.provider)
  FROM part p JOIN pg_seclabel l ON l.classoid = p.class AND l.objoid = p.id AND l.objsubid = p.sub
UNION ALL
SELECT format('%%s: %%s granted to %%s by %%I%%s', p.thing, a.privilege_type,
              CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
              pg_get_userbyid(a.grantor), CASE WHEN a.is_grantable THEN ', with grant option' END)
  FROM part p CROSS JOIN aclexplode(p.acl) a
UNION ALL
SELECT format('%%s: of extension %%I (%%s)', p.thing, e.extname, d.deptype)
  FROM part p
  JOIN pg_depend d ON d.classid = p.class AND d.objid = p.id AND d.refclassid = 'pg_extension'::regclass
  JOIN pg_extension e ON e.oid = d.refobjid
 WHERE p.sub = 0
UNION ALL
SELECT DISTINCT format('%%s: used by %%s %%s', p.thing, o.type, o.identity)
  FROM other x
  JOIN pg_depend d ON d.classid = x.classid AND d.objid = x.objid
  JOIN part p ON p.class = d.refclassid AND p.id = d.refobjid AND p.is_ours AND p.sub = 0
 CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, d.objsubid) o
 WHERE NOT EXISTS (SELECT FROM pg_trigger g WHERE d.classid = 'pg_trigger'::regclass AND g.oid = d.objid AND g.tgisinternal)
   AND o.identity !~ '(^| )headrace_(new|old|log)_[0-9]+\.';

-- name: ready
-- Names in full, no compiling to machine code (it takes longer than the query), one plan for all times; is it made?
SELECT set_config('search_path', 'pg_catalog, pg_temp', true), set_config('jit', 'off', true),
       set_config('plan_cache_mode', 'force_generic_plan', true),
       EXISTS (SELECT FROM pg_prepared_statements WHERE name = 'headrace_fingerprint');

-- name: prepare
-- The query of the lines, to be planned once per session.
-- slots: lines
PREPARE headrace_fingerprint (name, name) AS {lines};

-- name: prepared_lines
-- Its lines.
-- slots: schema, table
EXECUTE headrace_fingerprint ({schema}, {table});
