-- Questions to PgQ at the source. Its schema is a slot: `pgq`, or `pgque` where PgQue is installed.

-- name: take_pump
-- One pump per consumer at a time: two next_batch calls at once would open the batch under two numbers.
SELECT pg_try_advisory_xact_lock(hashtextextended('headrace dispatch ' || %(queue)s || ' ' || %(consumer)s, 0))

-- name: next_batch
-- The open batch of a consumer, or the next one opened; null when there is no new tick.
-- slots: pgq
SELECT batch_id FROM {pgq}.next_batch_info(%(queue)s, %(consumer)s)

-- name: next_batch_custom
-- The same, ticks taken together until so many events have come.
-- slots: pgq
SELECT batch_id FROM {pgq}.next_batch_custom(%(queue)s, %(consumer)s, NULL, %(events)s::int4, NULL)

-- name: batch
-- An open batch: whose it is, and between which ticks.
-- slots: pgq
SELECT queue_name, consumer_name, prev_tick_id, tick_id, batch_start, batch_end, seq_end - seq_start
  FROM {pgq}.get_batch_info(%(batch)s)
 WHERE tick_id IS NOT NULL

-- name: finish_batch
-- The batch is done with; 0 when PgQ does not know it any more.
-- slots: pgq
SELECT {pgq}.finish_batch(%(batch)s)

-- name: batch_event_sql
-- The statement that gives a batch's events in the order of their numbers.
-- slots: pgq
SELECT {pgq}.batch_event_sql(%(batch)s)

-- name: copy_events
-- The events as COPY lines: number, type, data, table, the key of the oldest form, and time where it is wanted.
-- slots: events, time, slice
COPY (SELECT ev_id, ev_type, ev_data, ev_extra1, CASE WHEN ev_type NOT LIKE '%:%' THEN ev_extra2 END, {time}
        FROM ({events}) AS e WHERE {slice}) TO STDOUT (NULL '')

-- name: forms
-- Of a batch's events: the table, the column that slices go by (null: they are of slice 0), and whether some truncate.
-- slots: events, eligible
SELECT coalesce(ev_extra1, ''), CASE WHEN {eligible} THEN split_part(ev_data, '=', 1) END,
       coalesce(bool_or(ev_type = 'R' OR position('TRUNCATE' IN ev_type) > 0), false)
  FROM ({events}) AS e
 GROUP BY 1, 2

-- name: whole_events
-- Some events of a batch with every column, for those that could not be applied.
-- slots: events
SELECT ev_id, ev_time, ev_txid, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4
  FROM ({events}) AS e
 WHERE ev_id = ANY (%(ids)s)
 ORDER BY ev_id

-- name: registration
-- How a consumer stands: PgQ's own view of it.
-- slots: pgq
SELECT lag, last_seen, last_tick, current_batch, next_tick, pending_events
  FROM {pgq}.get_consumer_info(%(queue)s, %(consumer)s)

-- name: queue_facts
-- How a queue stands: its ticker, its rotation.
-- slots: pgq
SELECT i.queue_ntables AS tables, i.queue_rotation_period AS rotation_period, i.queue_switch_time AS switched_at,
       i.queue_ticker_paused AS ticker_paused, i.queue_ticker_max_lag AS ticker_max_lag,
       i.queue_ticker_idle_period AS ticker_idle_period, i.ticker_lag, i.ev_per_sec, i.ev_new, i.last_tick_id,
       clock_timestamp() - i.queue_switch_time > 2 * i.queue_rotation_period AS rotation_blocked,
       q.queue_external_ticker AS external_ticker
  FROM {pgq}.get_queue_info(%(queue)s) AS i
  JOIN {pgq}.queue AS q ON q.queue_name = %(queue)s

-- name: tick_time
-- When a tick was made; no row when it is gone or never was.
-- slots: pgq
SELECT t.tick_time
  FROM {pgq}.tick AS t JOIN {pgq}.queue AS q ON q.queue_id = t.tick_queue
 WHERE q.queue_name = %(queue)s AND t.tick_id = %(tick)s

-- name: queue_exists
-- Whether there is such a queue.
-- slots: pgq
SELECT EXISTS (SELECT FROM {pgq}.queue WHERE queue_name = %(queue)s)

-- name: create_queue
-- Make a queue; 0 when it is there already.
-- slots: pgq
SELECT {pgq}.create_queue(%(queue)s)

-- name: register_consumer
-- Register a consumer; it sees events from the newest tick on. 0 when it is known already.
-- slots: pgq
SELECT {pgq}.register_consumer(%(queue)s, %(consumer)s)

-- name: register_consumer_at
-- Move a consumer to a tick; its open batch is dropped.
-- slots: pgq
SELECT {pgq}.register_consumer_at(%(queue)s, %(consumer)s, %(tick)s)

-- name: unregister_consumer
-- Forget a consumer, so that the queue no longer keeps its events.
-- slots: pgq
SELECT {pgq}.unregister_consumer(%(queue)s, %(consumer)s)

-- name: schema_exists
-- Whether PgQ is in a schema.
SELECT to_regclass(quote_ident(%(schema)s) || '.queue') IS NOT NULL
       AND EXISTS (SELECT FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
                    WHERE n.nspname = %(schema)s AND p.proname = 'next_batch_info')

-- name: source_facts
-- What the source's sessions have by default: the time zone as cube_dispatcher saw it, and the encoding.
SELECT (SELECT reset_val FROM pg_settings WHERE name = 'TimeZone'), current_setting('server_encoding')

-- name: table_named
-- The tables that a name with dots may mean.
SELECT n.nspname, c.relname
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname || '.' || c.relname = %(name)s AND c.relkind IN ('r', 'p', 'f')

-- name: table_exists
-- Whether the source has a table of this name.
SELECT to_regclass(quote_ident(%(schema)s) || '.' || quote_ident(%(name)s)) IS NOT NULL

-- name: leaves_of_queue
-- The leaves of partitioned tables whose triggers write into a queue, each with its root.
SELECT n.nspname, c.relname, rn.nspname, r.relname
  FROM pg_trigger AS t
  JOIN pg_proc AS p ON p.oid = t.tgfoid
  JOIN pg_namespace AS pn ON pn.oid = p.pronamespace
  JOIN pg_class AS c ON c.oid = t.tgrelid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_class AS r ON r.oid = pg_partition_root(c.oid)
  JOIN pg_namespace AS rn ON rn.oid = r.relnamespace
 WHERE pn.nspname = %(schema)s AND p.proname IN ('logutriga', 'jsontriga') AND c.relispartition
   AND substr(t.tgargs, 1, length(convert_to(%(queue)s, getdatabaseencoding())) + 1)
       = convert_to(%(queue)s, getdatabaseencoding()) || '\x00'::bytea

-- name: root_of
-- The partitioned table that a leaf belongs to; no row for other tables.
SELECT n.nspname, c.relname
  FROM pg_class AS leaf
  JOIN pg_namespace AS m ON m.oid = leaf.relnamespace
  JOIN pg_class AS c ON c.oid = pg_partition_root(leaf.oid)
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE m.nspname = %(schema)s AND leaf.relname = %(name)s AND leaf.relispartition

-- name: column_type
-- A source column's type; no row where it is gone.
SELECT format_type(a.atttypid, a.atttypmod)
  FROM pg_attribute AS a
  JOIN pg_class AS c ON c.oid = a.attrelid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND a.attname = %(column)s AND a.attnum > 0
   AND NOT a.attisdropped

-- name: tables_of_queue
-- The tables whose triggers write into a queue, with their keys.
SELECT n.nspname, c.relname, c.relkind = 'p',
       (SELECT array_agg(a.attname::text ORDER BY k.place)
          FROM pg_index AS i, unnest(i.indkey) WITH ORDINALITY AS k(number, place), pg_attribute AS a
         WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid AND a.attnum = k.number)
  FROM pg_trigger AS t
  JOIN pg_proc AS p ON p.oid = t.tgfoid
  JOIN pg_namespace AS pn ON pn.oid = p.pronamespace
  JOIN pg_class AS c ON c.oid = t.tgrelid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE pn.nspname = %(schema)s AND p.proname IN ('logutriga', 'jsontriga') AND NOT c.relispartition
   AND substr(t.tgargs, 1, length(convert_to(%(queue)s, getdatabaseencoding())) + 1)
       = convert_to(%(queue)s, getdatabaseencoding()) || '\x00'::bytea
 GROUP BY n.nspname, c.relname, c.relkind, c.oid
 ORDER BY 1, 2

-- name: take_ticker
-- One ticker per queue at a time, held by the session while it ticks.
SELECT pg_try_advisory_xact_lock(hashtextextended('headrace ticker ' || %(queue)s, 0))

-- name: ticker
-- Make a tick if one is due; its number, null if none was.
-- slots: pgq
SELECT {pgq}.ticker(%(queue)s)

-- name: maintenance
-- What PgQ wants done now and then: functions and their arguments, each in a transaction of its own.
-- slots: pgq
SELECT func_name, func_arg FROM {pgq}.maint_operations()

-- name: maintain
-- One of them; its answer says how much is left to do.
-- slots: function
SELECT {function}(%(argument)s)

-- name: maintain_all
-- One of them that has no argument.
-- slots: function
SELECT {function}()

-- name: vacuum
-- A table that PgQ wants vacuumed.
-- slots: table
VACUUM {table}
