-- Dispatch verify: source and target read side by side, and what is still on its way between them.

-- name: one_snapshot
-- Everything that this transaction reads is of one moment, and it writes nothing.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY

-- name: pin
-- Both sides print values alike, whole results are planned for, and a lock is not waited for without end.
SELECT set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO, YMD', true),
       set_config('IntervalStyle', 'postgres', true), set_config('bytea_output', 'hex', true),
       set_config('extra_float_digits', '1', true), set_config('lc_monetary', 'C', true),
       set_config('cursor_tuple_fraction', '1', true), set_config('lock_timeout', %(milliseconds)s, true)

-- name: trigger_arguments
-- What a table's triggers of this queue were given: zero bytes between them; the queue first.
SELECT t.tgargs
  FROM pg_trigger AS t
  JOIN pg_proc AS p ON p.oid = t.tgfoid
  JOIN pg_namespace AS pn ON pn.oid = p.pronamespace
  JOIN pg_class AS c ON c.oid = t.tgrelid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE pn.nspname = %(pgq)s AND p.proname IN ('logutriga', 'jsontriga')
   AND n.nspname = %(schema)s AND c.relname = %(name)s
   AND substr(t.tgargs, 1, length(convert_to(%(queue)s, getdatabaseencoding())) + 1)
       = convert_to(%(queue)s, getdatabaseencoding()) || '\x00'::bytea
 ORDER BY t.tgname

-- name: leaves
-- The tables that the rows of a partitioned table are in.
SELECT n.nspname, c.relname
  FROM pg_class AS r
  JOIN pg_namespace AS m ON m.oid = r.relnamespace
 CROSS JOIN pg_partition_tree(r.oid) AS t
  JOIN pg_class AS c ON c.oid = t.relid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE m.nspname = %(schema)s AND r.relname = %(name)s AND t.isleaf AND c.oid <> r.oid
 ORDER BY 1, 2

-- name: event_table
-- The table that the queue's event tables inherit from.
-- slots: pgq
SELECT queue_data_pfx FROM {pgq}.queue WHERE queue_name = %(queue)s

-- name: events_after
-- The events that a tick's batch did not see yet, in no order: type, table, key of the oldest form, data.
-- slots: pgq, events, queue, tick, limit
SELECT e.ev_type, e.ev_extra1, CASE WHEN position(':' IN e.ev_type) = 0 THEN e.ev_extra2 END, e.ev_data
  FROM {pgq}.queue AS q
  JOIN {pgq}.tick AS t ON t.tick_queue = q.queue_id AND t.tick_id = {tick}
  JOIN {events} AS e ON e.ev_txid >= txid_snapshot_xmin(t.tick_snapshot)
 WHERE q.queue_name = {queue} AND NOT txid_visible_in_snapshot(e.ev_txid, t.tick_snapshot) AND e.ev_owner IS NULL
 LIMIT {limit}

-- name: failed_kinds
-- How many failed events wait, by what says which table they are of.
SELECT ev_type, ev_extra1, ev_extra2, count(*)
  FROM headrace.failed_event
 WHERE consumer = %(consumer)s AND state = 'waiting'
 GROUP BY 1, 2, 3

-- name: branch
-- The rows of one relation: key, digest of what is compared, and what tells the newest version of a key.
-- slots: key, digest, gone, version, rank, at, table, window
SELECT {key} AS key, {digest} AS digest, {gone} AS gone, {version} AS version, {rank} AS rank, {at} AS at
  FROM {table} AS t WHERE {window}

-- name: versions
-- Every row by its key, keys in the order of their bytes.
-- slots: rows
SELECT key, digest FROM ({rows}) AS v WHERE NOT gone ORDER BY convert_to(key, 'UTF8')

-- name: kinds_of_versions
-- Each key once per different content, keys in the order of their bytes.
-- slots: rows
SELECT key, digest FROM ({rows}) AS v WHERE NOT gone GROUP BY key, digest ORDER BY convert_to(key, 'UTF8')

-- name: newest
-- The newest version of each key that is not gone, keys in the order of their bytes.
-- slots: rows
SELECT key, digest
  FROM (SELECT DISTINCT ON (convert_to(key, 'UTF8')) key, digest, gone
          FROM ({rows}) AS v
         ORDER BY convert_to(key, 'UTF8'), version DESC NULLS LAST, rank DESC, at DESC NULLS LAST) AS n
 WHERE NOT gone
 ORDER BY convert_to(key, 'UTF8')

-- name: count_rows
-- How many rows there are.
-- slots: rows
SELECT count(*) FROM ({rows}) AS v WHERE NOT gone

-- name: as_keys
-- Keys out of events in the words of the source itself: their text may depend on the session that wrote them.
-- slots: key, casts, arrays, names
SELECT {key} FROM (SELECT {casts} FROM unnest({arrays}) AS e ({names})) AS t

-- name: savepoint
-- What fails after this leaves the snapshot as it is.
SAVEPOINT headrace_verify

-- name: roll_back
-- It failed.
ROLLBACK TO SAVEPOINT headrace_verify
