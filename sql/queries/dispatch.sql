-- name: begin_batch
-- The transaction of a batch: dates of other styles are refused, the login's own triggers and defaults find what they
-- expect, constraints are checked chunk by chunk, and what is committed stays: PgQ forgets the batch then.
SET LOCAL search_path TO DEFAULT;
SET CONSTRAINTS ALL DEFERRED;
SELECT set_config('DateStyle', 'ISO, YMD', true), set_config('lock_timeout', %(milliseconds)s, true),
       set_config('synchronous_commit',
                  CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN 'on'
                       ELSE current_setting('synchronous_commit') END, true)

-- name: check_now
-- What is deferred is checked here, while an event can be blamed for it.
SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED

-- name: wait_for_locks
-- How long locks are waited for until the transaction ends.
SELECT set_config('lock_timeout', %(milliseconds)s, true)

-- name: lock_position
-- Where a consumer stands, for this transaction alone; no row when it was never registered here.
SELECT queue, registered_as, tick, tick_at, state, problem, sliced_tick, slices
  FROM headrace.dispatch_position
 WHERE consumer = %(consumer)s
   FOR UPDATE

-- name: share_position
-- The same for a slice: other slices may have it too, a whole batch may not.
SELECT queue, registered_as, tick, tick_at, state, problem, sliced_tick, slices
  FROM headrace.dispatch_position
 WHERE consumer = %(consumer)s
   FOR SHARE

-- name: position
-- Where a consumer stands, for people.
SELECT queue, registered_as, tick, tick_at, state, problem, parked_at, since AS late_since, sent_tick, sent_at, batches,
       events, failed, updated_at
  FROM headrace.dispatch_position LEFT JOIN headrace.dispatch_late USING (consumer)
 WHERE consumer = %(consumer)s

-- name: is_parked
-- Whether there is anything to look for at the source.
SELECT state = 'parked' FROM headrace.dispatch_position WHERE consumer = %(consumer)s

-- name: insert_position
-- The position of a consumer that was just registered; nothing when it has one.
INSERT INTO headrace.dispatch_position (consumer, queue, registered_as, tick, tick_at)
VALUES (%(consumer)s, %(queue)s, %(registered_as)s, %(tick)s, %(tick_at)s)
    ON CONFLICT (consumer) DO NOTHING

-- name: insert_parked
-- A consumer without a position: nobody knows which batches were applied here.
INSERT INTO headrace.dispatch_position (consumer, queue, registered_as, state, problem, parked_at)
VALUES (%(consumer)s, %(queue)s, %(registered_as)s, 'parked', %(problem)s, clock_timestamp())
    ON CONFLICT (consumer) DO NOTHING

-- name: move_position
-- A batch is applied: commits with its rows.
UPDATE headrace.dispatch_position
   SET tick = %(tick)s, tick_at = %(tick_at)s, batches = batches + 1, events = events + %(events)s,
       failed = failed + %(failed)s, problem = NULL, sliced_tick = NULL, slices = NULL, updated_at = clock_timestamp()
 WHERE consumer = %(consumer)s

-- name: set_position
-- A person repairs a position.
UPDATE headrace.dispatch_position
   SET queue = %(queue)s, registered_as = %(registered_as)s, tick = %(tick)s, tick_at = %(tick_at)s, state = 'active',
       problem = NULL, parked_at = NULL, sent_tick = NULL, sent_at = NULL, sliced_tick = NULL, slices = NULL,
       updated_at = clock_timestamp()
 WHERE consumer = %(consumer)s

-- name: park
-- Nothing more of this consumer until a person has looked.
UPDATE headrace.dispatch_position
   SET state = 'parked', problem = %(problem)s, parked_at = clock_timestamp()
 WHERE consumer = %(consumer)s AND state = 'active'

-- name: forget_position
-- A consumer that is given up.
DELETE FROM headrace.dispatch_position WHERE consumer = %(consumer)s

-- name: resume
-- A person has looked.
UPDATE headrace.dispatch_position
   SET state = 'active', problem = NULL, parked_at = NULL, sent_tick = NULL, sent_at = NULL
 WHERE consumer = %(consumer)s AND state = 'parked' AND tick IS NOT NULL

-- name: mark_sent
-- A batch's message goes out, unless it went out a moment ago or a worker is at it (the row is locked then).
UPDATE headrace.dispatch_position
   SET sent_tick = %(tick)s, sent_at = clock_timestamp()
 WHERE consumer = (SELECT consumer FROM headrace.dispatch_position
                    WHERE consumer = %(consumer)s AND state = 'active'
                      AND (sent_tick IS DISTINCT FROM %(tick)s
                           OR sent_at < clock_timestamp() - make_interval(secs => %(seconds)s))
                      FOR UPDATE SKIP LOCKED)

-- name: hold_back
-- An attempt failed for a reason that a person must mend: the next one waits a while.
UPDATE headrace.dispatch_position
   SET sent_at = clock_timestamp() + make_interval(secs => %(seconds)s), problem = %(problem)s
 WHERE consumer = %(consumer)s

-- name: was_told_lately
-- Whether people were told of this an hour ago or later: one alert is enough for all that fails in that time.
SELECT EXISTS (SELECT FROM headrace.alert
                WHERE room = 'dispatch' AND event = %(event)s AND subject = %(subject)s
                  AND at > clock_timestamp() - interval '1 hour')

-- name: position_exists
-- Whether a consumer was ever registered here.
SELECT EXISTS (SELECT FROM headrace.dispatch_position WHERE consumer = %(consumer)s)

-- name: late
-- A consumer is late from now on; nothing when that is known.
INSERT INTO headrace.dispatch_late (consumer) VALUES (%(consumer)s) ON CONFLICT DO NOTHING

-- name: in_time
-- A consumer is not late any more; nothing when it was not.
DELETE FROM headrace.dispatch_late WHERE consumer = %(consumer)s

-- name: plan_slices
-- The batch in hand is applied in so many slices, whatever the settings say later.
UPDATE headrace.dispatch_position SET sliced_tick = %(tick)s, slices = %(slices)s WHERE consumer = %(consumer)s

-- name: take_slice
-- A slice is this transaction's; 0 when it is applied already. A second worker waits here for the first one's end.
INSERT INTO headrace.dispatch_slice (consumer, tick, slice, events, failed)
VALUES (%(consumer)s, %(tick)s, %(slice)s, 0, 0)
    ON CONFLICT (consumer, tick, slice) DO NOTHING

-- name: count_slice
-- What a slice came to; commits with its rows.
UPDATE headrace.dispatch_slice SET events = %(events)s, failed = %(failed)s, committed_at = clock_timestamp()
 WHERE consumer = %(consumer)s AND tick = %(tick)s AND slice = %(slice)s

-- name: slices_done
-- Which slices of a batch are applied, with their counts.
SELECT slice, events, failed FROM headrace.dispatch_slice WHERE consumer = %(consumer)s AND tick = %(tick)s

-- name: forget_slices
-- The position has moved: its slices are history.
DELETE FROM headrace.dispatch_slice WHERE consumer = %(consumer)s AND tick <= %(tick)s

-- name: insert_failed
-- Events that could not be applied, whole; commits with the position, so that none is kept twice.
INSERT INTO headrace.failed_event (consumer, tick, batch_end, ev_id, ev_time, ev_txid, ev_retry, ev_type, ev_data,
                                   ev_extra1, ev_extra2, ev_extra3, ev_extra4, destination, key, sqlstate, error, state,
                                   settled_at)
VALUES (%(consumer)s, %(tick)s, %(batch_end)s, %(ev_id)s, %(ev_time)s, %(ev_txid)s, %(ev_retry)s, %(ev_type)s,
        %(ev_data)s, %(ev_extra1)s, %(ev_extra2)s, %(ev_extra3)s, %(ev_extra4)s, %(destination)s, %(key)s, %(sqlstate)s,
        %(error)s, %(state)s, CASE WHEN %(state)s <> 'waiting' THEN clock_timestamp() END)
    ON CONFLICT (consumer, tick, batch_end, ev_id) DO UPDATE
   SET destination = excluded.destination, key = excluded.key, sqlstate = excluded.sqlstate, error = excluded.error,
       failed_at = clock_timestamp(), state = excluded.state, settled_at = excluded.settled_at

-- name: waiting_keys
-- The rows that failed events are about, so that a later version of one supersedes it.
SELECT DISTINCT destination, key FROM headrace.failed_event
 WHERE consumer = %(consumer)s AND state = 'waiting' AND key IS NOT NULL

-- name: supersede
-- A later event of these rows was applied: the failed ones must not come back.
UPDATE headrace.failed_event SET state = 'superseded', settled_at = clock_timestamp()
 WHERE consumer = %(consumer)s AND state = 'waiting' AND destination = %(destination)s AND key = ANY (%(keys)s)
   AND (%(below)s::bigint IS NULL OR id < %(below)s)

-- name: supersede_all
-- A TRUNCATE of these tables was applied: no failed event of theirs must come back.
UPDATE headrace.failed_event SET state = 'superseded', settled_at = clock_timestamp()
 WHERE consumer = %(consumer)s AND state = 'waiting' AND destination = ANY (%(destinations)s)
   AND (%(below)s::bigint IS NULL OR id < %(below)s)

-- name: remember_leaf
-- Which partitioned table a source's leaf belongs to: its events may be read when it is gone.
INSERT INTO headrace.dispatch_leaf (consumer, leaf_schema, leaf_name, root_schema, root_name)
VALUES (%(consumer)s, %(leaf_schema)s, %(leaf_name)s, %(root_schema)s, %(root_name)s)
    ON CONFLICT (consumer, leaf_schema, leaf_name) DO UPDATE
   SET root_schema = excluded.root_schema, root_name = excluded.root_name
 WHERE (dispatch_leaf.root_schema, dispatch_leaf.root_name) <> (excluded.root_schema, excluded.root_name)

-- name: remembered_root
-- Where a leaf belonged that the source does not have any more.
SELECT root_schema, root_name FROM headrace.dispatch_leaf
 WHERE consumer = %(consumer)s AND leaf_schema = %(leaf_schema)s AND leaf_name = %(leaf_name)s

-- name: failed_to_replay
-- Failed events that wait, in their order, locked: those named, or all.
SELECT id, tick, batch_end, ev_id, ev_time, ev_type, ev_data, ev_extra1, ev_extra2
  FROM headrace.failed_event
 WHERE consumer = %(consumer)s AND state = 'waiting' AND (%(ids)s::bigint[] IS NULL OR id = ANY (%(ids)s))
   AND id > %(after)s
 ORDER BY id
 LIMIT %(limit)s
   FOR UPDATE

-- name: settle_failed
-- Failed events that were applied after all, or are dropped.
UPDATE headrace.failed_event SET state = %(state)s, settled_at = clock_timestamp()
 WHERE consumer = %(consumer)s AND id = ANY (%(ids)s) AND state = 'waiting'

-- name: wait_again
-- A failed event that still cannot be applied, and why.
UPDATE headrace.failed_event
   SET state = 'waiting', settled_at = NULL, error = %(error)s, sqlstate = %(sqlstate)s, failed_at = clock_timestamp()
 WHERE id = %(id)s

-- name: failed_events
-- Failed events for people, newest first.
SELECT id, tick, ev_id, ev_time, ev_type, left(ev_data, 300) AS ev_data, ev_extra1, destination, key, sqlstate, error,
       failed_at, state
  FROM headrace.failed_event
 WHERE consumer = %(consumer)s AND (%(every)s OR state = 'waiting')
 ORDER BY id DESC
 LIMIT %(limit)s

-- name: count_failed
-- How many failed events wait, since when, and why the newest one failed.
SELECT count(*), min(failed_at), (SELECT error FROM headrace.failed_event
                                   WHERE consumer = %(consumer)s AND state = 'waiting' ORDER BY id DESC LIMIT 1)
  FROM headrace.failed_event
 WHERE consumer = %(consumer)s AND state = 'waiting'

-- name: come_again
-- The source goes back: events of later batches come again, and are kept again if they fail again.
UPDATE headrace.failed_event SET state = 'superseded', settled_at = clock_timestamp()
 WHERE consumer = %(consumer)s AND state = 'waiting' AND tick > %(tick)s

-- name: drop_failed
-- A person gives failed events up.
UPDATE headrace.failed_event SET state = 'dropped', settled_at = clock_timestamp()
 WHERE consumer = %(consumer)s AND state = 'waiting' AND (%(ids)s::bigint[] IS NULL OR id = ANY (%(ids)s))

-- name: forget_settled
-- Failed events that were settled longer ago than this.
DELETE FROM headrace.failed_event WHERE settled_at < clock_timestamp() - %(older)s::interval

-- name: suffix
-- A moment in a to_char() format, in the time zone of this transaction.
SELECT to_char(%(moment)s::timestamptz, %(format)s)

-- name: local_suffix
-- A moment without a zone in a to_char() format.
SELECT to_char(%(moment)s::timestamp, %(format)s)

-- name: set_zone
-- The time zone until the transaction ends, or is set anew.
SELECT set_config('TimeZone', %(zone)s, true)

-- name: has_pgq_ext
-- Whether cube_dispatcher's bookkeeping is here.
SELECT to_regprocedure('pgq_ext.get_last_tick(text)') IS NOT NULL

-- name: completed_tick
-- How far cube_dispatcher has come here; null when it never ran.
-- slots: function
SELECT {function}(%(consumer)s)

-- name: set_completed_tick
-- Keep cube_dispatcher's bookkeeping in step, so that one can go back to it.
-- slots: function
SELECT {function}(%(consumer)s, %(tick)s)

-- name: columns
-- The columns of a relation that can be written: name, type, whether it is a time, whether it is generated.
SELECT a.attname, format_type(a.atttypid, a.atttypmod), coalesce(nullif(t.typbasetype, 0), t.oid) IN
       ('date'::regtype, 'timestamp'::regtype, 'timestamptz'::regtype), a.attgenerated <> ''
  FROM pg_attribute AS a
  JOIN pg_class AS c ON c.oid = a.attrelid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_type AS t ON t.oid = a.atttypid
 WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum

-- name: unique_keys
-- The column sets of a relation's unique indexes that hold for every row at once.
SELECT array_agg(a.attname::text)
  FROM pg_index AS i
  JOIN pg_class AS c ON c.oid = i.indrelid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
  CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k(number, place)
  JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = k.number
 WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND i.indisunique AND i.indisvalid AND i.indimmediate
   AND i.indpred IS NULL AND i.indexprs IS NULL AND k.place <= i.indnkeyatts
 GROUP BY i.indexrelid

-- name: range_key
-- The column that a natively partitioned table is cut by, with its type; no row for other tables.
SELECT a.attname, format_type(a.atttypid, NULL)
  FROM pg_partitioned_table AS p
  JOIN pg_class AS c ON c.oid = p.partrelid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
 WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND p.partstrat = 'r' AND p.partnatts = 1

-- name: has_references
-- Whether a table has a foreign key, or is referred to by one.
SELECT EXISTS (SELECT FROM pg_constraint
                WHERE contype = 'f' AND to_regclass(quote_ident(%(schema)s) || '.' || quote_ident(%(name)s))
                      IN (conrelid, confrelid))

-- name: default_partition
-- The default partition of a natively partitioned table; no row where it has none.
SELECT n.nspname, c.relname
  FROM pg_partitioned_table AS p
  JOIN pg_class AS c ON c.oid = p.partdefid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE p.partrelid = to_regclass(quote_ident(%(schema)s) || '.' || quote_ident(%(name)s))

-- name: has_rows
-- Whether a table has any row.
-- slots: table
SELECT EXISTS (SELECT FROM {table})

-- name: like_partitions
-- The tables that were made like a parent and are there.
SELECT table_schema, table_name FROM headrace.dispatch_partition
 WHERE parent_schema = %(schema)s AND parent_name = %(name)s AND kind = 'like' AND detached_at IS NULL
   AND to_regclass(quote_ident(table_schema) || '.' || quote_ident(table_name)) IS NOT NULL

-- name: partitions_below
-- A partitioned table and all of its partitions.
SELECT n.nspname, c.relname
  FROM pg_partition_tree(to_regclass(quote_ident(%(schema)s) || '.' || quote_ident(%(name)s))) AS t
  JOIN pg_class AS c ON c.oid = t.relid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace

-- name: identity
-- Which database of which running server this is.
SELECT current_database() || ' ' || pg_postmaster_start_time()

-- name: add_column
-- A column that the source has and the destination had not.
-- slots: table, column, type
ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column} {type}

-- name: copy_in
-- Rows into a relation.
-- slots: table, columns
COPY {table} ({columns}) FROM STDIN

-- name: delete_keys
-- Take the versions of some rows away, by their keys.
-- slots: table, arrays, names, match
DELETE FROM {table} AS t USING unnest({arrays}) AS k ({names}) WHERE {match}

-- name: delete_all_rows
-- What a TRUNCATE at the source comes to here.
-- slots: table
DELETE FROM {table}

-- name: savepoint
-- What fails after this can be taken back alone.
SAVEPOINT headrace_chunk

-- name: release
-- It went well.
RELEASE SAVEPOINT headrace_chunk

-- name: roll_back
-- It did not.
ROLLBACK TO SAVEPOINT headrace_chunk

-- name: is_set_up
-- Whether our tables are here.
SELECT to_regclass('headrace.dispatch_position') IS NOT NULL
