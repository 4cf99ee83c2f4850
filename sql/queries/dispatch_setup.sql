-- Dispatch setup: what a source database has of PgQ, and what its tables lack.

-- name: pgq_facts
-- What is there of PgQ here, which of the parts that we call are missing, and what the login may.
WITH parts (part, oid) AS (
    SELECT 'table pgq.' || name, to_regclass('pgq.' || name)::oid
      FROM unnest(ARRAY['queue', 'consumer', 'subscription', 'tick', 'event_template', 'retry_queue']) AS name
     UNION ALL
    SELECT 'function pgq.' || signature, to_regprocedure('pgq.' || signature)::oid
      FROM unnest(ARRAY['create_queue(text)', 'insert_event(text,text,text,text,text,text,text)',
                        'ticker(text)', 'force_tick(text)', 'maint_rotate_tables_step1(text)',
                        'register_consumer(text,text)', 'next_batch_custom(text,text,interval,integer,interval)',
                        'get_batch_cursor(bigint,text,integer,text)', 'finish_batch(bigint)',
                        'get_consumer_info(text)', 'logutriga()', 'jsontriga()', 'version()']) AS signature
)
SELECT current_database() AS database,
       current_user AS login,
       to_regnamespace('pgq') IS NOT NULL AS has_schema,
       (SELECT array_agg(part ORDER BY part) FROM parts WHERE oid IS NULL) AS missing,
       (SELECT count(*) FROM parts WHERE oid IS NOT NULL) AS present,
       (SELECT extversion FROM pg_extension WHERE extname = 'pgq') AS installed,
       v.version AS available,
       v.superuser AND NOT v.trusted AS needs_superuser,
       r.rolsuper AS is_superuser,
       r.rolsuper OR r.rolcreaterole AS may_create_roles,
       has_database_privilege(current_database(), 'CREATE') AS may_create_schema,
       ARRAY(SELECT name FROM unnest(ARRAY['pgq_reader', 'pgq_writer', 'pgq_admin']) AS name
              WHERE to_regrole(name) IS NULL) AS missing_roles
  FROM pg_roles r
  LEFT JOIN (SELECT v.* FROM pg_available_extension_versions v
               JOIN pg_available_extensions e ON e.name = v.name AND e.default_version = v.version
              WHERE v.name = 'pgq') v ON true
 WHERE r.rolname = current_user;

-- name: lock_pgq_install
-- One installer of PgQ per database at a time; until the transaction ends.
SELECT pg_advisory_xact_lock(hashtext('headrace'), hashtext('install-pgq'));

-- name: trigger_function
-- A trigger function of PgQ: its settings, whether the login may alter it, and the function that producers need.
SELECT p.oid, coalesce(p.proconfig, '{}') AS config,
       pg_has_role(p.proowner, 'USAGE') AS is_ours,
       pg_get_userbyid(p.proowner) AS owner,
       i.oid AS insert_event
  FROM pg_namespace n
  JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = %(kind)s AND p.pronargs = 0
  LEFT JOIN pg_proc i ON i.pronamespace = n.oid AND i.proname = 'insert_event' AND i.pronargs = 7
 WHERE n.nspname = %(schema)s;

-- name: source_table
-- A table that is to be logged, and the logins that may change it but may not put an event into a queue.
SELECT c.oid, c.relkind AS kind,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) AS has_key,
       ARRAY(SELECT r.rolname::text FROM pg_roles r
              WHERE r.rolcanlogin
                AND (has_table_privilege(r.oid, c.oid, 'INSERT') OR has_table_privilege(r.oid, c.oid, 'UPDATE')
                     OR has_table_privilege(r.oid, c.oid, 'DELETE') OR has_table_privilege(r.oid, c.oid, 'TRUNCATE'))
                AND NOT has_function_privilege(r.oid, %(insert_event)s::oid, 'EXECUTE')
              ORDER BY r.rolname) AS unable
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %(schema)s AND c.relname = %(name)s;

-- name: table_triggers
-- A table's triggers, and how each is to the one wanted: the same function and arguments, or of the same queue.
WITH wanted AS (
    SELECT (SELECT string_agg(convert_to(argument, getdatabaseencoding()) || '\x00'::bytea, '' ORDER BY number)
              FROM unnest(%(arguments)s::text[]) WITH ORDINALITY AS a (argument, number)) AS arguments,
           convert_to(%(queue)s, getdatabaseencoding()) || '\x00'::bytea AS queue
)
SELECT t.tgname AS name, t.tgtype::integer AS type,
       t.tgenabled <> 'D' AND t.tgqual IS NULL AND cardinality(t.tgattr::int2[]) = 0 AS is_unconditional,
       t.tgfoid = %(function)s::oid AND t.tgargs = wanted.arguments AS is_same,
       n.nspname = %(schema)s AND p.proname IN ('logutriga', 'jsontriga', 'sqltriga', 'logtriga')
           AND substring(t.tgargs FROM 1 FOR length(wanted.queue)) = wanted.queue AS is_of_queue
  FROM pg_trigger t
  JOIN pg_proc p ON p.oid = t.tgfoid
  JOIN pg_namespace n ON n.oid = p.pronamespace
 CROSS JOIN wanted
 WHERE t.tgrelid = %(table)s::oid
 ORDER BY t.tgname;

-- name: create_trigger
-- Log what happens to a table; it waits for those who write into it, and they for it.
-- slots: trigger, events, table, each, function, arguments
CREATE TRIGGER {trigger} AFTER {events} ON {table} FOR EACH {each} EXECUTE FUNCTION {function}({arguments});

-- name: pin_function
-- Fix how a trigger function writes values, whatever the session of the application has set.
-- slots: function, settings
ALTER FUNCTION {function}() {settings};

-- name: lock_timeout
-- How long the statements after this wait for a lock, until the transaction ends.
-- slots: milliseconds
SET LOCAL lock_timeout = {milliseconds};
