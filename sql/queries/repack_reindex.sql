-- Repack reindex: a table's indexes, rebuilt one by one beside their use, and what broken attempts left behind.

-- name: table_facts
-- What stands under a table's name, whether the login owns it, and the server's version.
SELECT c.oid, c.relkind AS kind, c.relpersistence = 't' AS is_temporary,
       pg_get_userbyid(c.relowner) AS owner, pg_has_role(c.relowner, 'USAGE') AS is_ours, current_user AS login,
       current_setting('server_version_num')::integer AS server_version
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %(schema)s AND c.relname = %(table)s;

-- name: tablespace
-- Whether the login may put an index into a tablespace: its own by a grant, the database's default in any case.
SELECT t.spcname <> 'pg_global'
       AND (has_tablespace_privilege(t.oid, 'CREATE')
            OR t.oid = (SELECT dattablespace FROM pg_database WHERE datname = current_database())) AS may_use
  FROM pg_tablespace t
 WHERE t.spcname = %(name)s;

-- name: table_indexes
-- A table's indexes, the largest first.
SELECT c.relname AS name, pg_total_relation_size(c.oid) AS bytes,
       i.indisvalid AS is_valid, i.indisexclusion AS is_exclusion
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
 WHERE i.indrelid = %(table)s::oid
 ORDER BY bytes DESC NULLS LAST, c.relname;

-- name: index_bytes
-- How large one index of a table is.
SELECT pg_total_relation_size(c.oid)
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
 WHERE i.indrelid = %(table)s::oid AND c.relname = %(name)s;

-- name: leftovers
-- Invalid twins that a broken REINDEX CONCURRENTLY left: named after a valid index of the table, and defined as it is.
-- Of a name that became too long with its ending, PostgreSQL cuts the front part: then it is only a prefix.
SELECT DISTINCT ON (c.relname) c.relname AS name, twin.relname AS index, part[2] = 'ccold' AS is_old
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_index t ON t.indrelid = i.indrelid AND t.indisvalid
   AND t.indkey::text = i.indkey::text AND t.indclass::text = i.indclass::text
   AND t.indcollation::text = i.indcollation::text AND t.indoption::text = i.indoption::text
   AND t.indisunique = i.indisunique
   AND pg_get_expr(t.indexprs, t.indrelid) IS NOT DISTINCT FROM pg_get_expr(i.indexprs, i.indrelid)
   AND pg_get_expr(t.indpred, t.indrelid) IS NOT DISTINCT FROM pg_get_expr(i.indpred, i.indrelid)
  JOIN pg_class twin ON twin.oid = t.indexrelid
 CROSS JOIN regexp_match(c.relname, '^(.+)_(ccnew|ccold)[0-9]*$') AS part
 WHERE i.indrelid = %(table)s::oid
   AND NOT i.indisvalid
   AND (twin.relname = part[1] OR octet_length(c.relname::text) >= 60 AND starts_with(twin.relname::text, part[1]))
 ORDER BY c.relname, twin.relname = part[1] DESC;

-- name: open_transactions
-- Whose transactions are open in this database; the first column tells two transactions of one session apart.
SELECT l.virtualxid AS id, l.pid, a.application_name AS application
  FROM pg_locks l
  JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock' AND l.granted
   AND l.pid <> pg_backend_pid() AND a.datname = current_database()
 ORDER BY l.pid;

-- name: table_users
-- Whose transactions hold a lock on a table; VACUUM's kind gives way to a rebuild, or is waited for by its lock.
SELECT DISTINCT l.virtualtransaction AS id, l.pid, coalesce(a.application_name, '') AS application
  FROM pg_locks l
  LEFT JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'relation' AND l.relation = %(table)s::oid AND l.granted
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.mode NOT IN ('ShareUpdateExclusiveLock', 'SIReadLock') -- the latter outlives its transaction
   AND l.pid IS DISTINCT FROM pg_backend_pid()
 ORDER BY l.pid;

-- name: timeouts
-- How long this session waits for a lock, and for a whole statement.
SELECT current_setting('lock_timeout'), current_setting('statement_timeout');

-- name: set_timeouts
-- Limit both for this session; a number without a unit is milliseconds.
SELECT set_config('lock_timeout', %(lock)s::text, false), set_config('statement_timeout', %(statement)s::text, false);

-- name: reindex
-- Rebuild an index beside its use.
-- slots: options, index
REINDEX ({options}) INDEX {index};

-- name: drop_leftover
-- Take away an index that nobody reads.
-- slots: index
DROP INDEX CONCURRENTLY IF EXISTS {index};
