-- Repack pacing: how far the server's standbys are, how much WAL it has written, and what disk our schemas take.

-- name: replication
-- Whether the login may see how far the standbys are (it needs pg_read_all_stats, a part of pg_monitor).
SELECT pg_has_role('pg_read_all_stats', 'USAGE') AS may_see, quote_ident(current_user) AS login;

-- name: wal_position
-- How many bytes of WAL the server has written, ever.
SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint;

-- name: standbys
-- How far each standby is, in bytes of WAL; state, position and lag are NULL where the login may not know.
-- Whoever never replays is none: base backups, archivers, logical subscribers that confirm when they like.
SELECT r.application_name AS name,
       (r.replay_lsn - '0/0'::pg_lsn)::bigint AS position,
       extract(epoch FROM r.replay_lag)::double precision AS lag_seconds
  FROM pg_stat_replication r
  LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
 WHERE (r.replay_lsn IS NOT NULL OR r.state IS NULL)
   AND s.slot_type IS DISTINCT FROM 'logical';

-- name: used_bytes
-- What the copies, logs and old tables of all requests take in this database.
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
  FROM pg_namespace n
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind = 'r'
 WHERE n.nspname ~ '^headrace_(new|old|log)_[0-9]+$';
