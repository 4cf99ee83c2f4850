-- name: request
-- Begin a request; nothing is returned when the table has one already.
INSERT INTO headrace.repack (schema_name, table_name, table_oid, engine, goal, options, plan, requested_by, bytes_before,
                             estimated_gain_bytes)
VALUES (%(schema)s, %(table)s, %(oid)s, %(engine)s, %(goal)s, %(options)s, %(plan)s, %(by)s, %(bytes)s, %(gain)s)
ON CONFLICT (schema_name, table_name) WHERE state = 'active' DO NOTHING
RETURNING id

-- name: active_of
-- The active request of a table.
SELECT id FROM headrace.repack WHERE schema_name = %(schema)s AND table_name = %(table)s AND state = 'active'

-- name: read
-- A request, whole.
SELECT id, schema_name, table_name, table_oid, new_oid, engine, goal, step, state, reason, problem, options, plan, requested_by,
       run, shape, fingerprint, trigger_marks, position, verify_position, rows_estimated, rows_copied, chunks, chunk_rows,
       keys_replayed, replay_rounds, backlog_rows, rows_verified, lock_attempts, failures, hold_seconds,
       bytes_before, bytes_after, estimated_gain_bytes, due_at, paused_at, paused_by, requested_at, step_at, prepared_at,
       swapped_at, keep_until, finished_at, quote_ident(table_name) AS quoted,
       due_at > clock_timestamp() AS is_early
  FROM headrace.repack
 WHERE id = %(id)s

-- name: try_lock
-- Be the only one who works on a request, as long as this session lives.
SELECT pg_try_advisory_lock(hashtext('headrace.repack'), %(id)s::bigint::int)

-- name: unlock
-- Let others work on a request.
SELECT pg_advisory_unlock(hashtext('headrace.repack'), %(id)s::bigint::int)

-- name: try_lock_index
-- Be the only one who builds an index of a copy, as long as this session lives.
SELECT pg_try_advisory_lock(hashtext('headrace.repack_index ' || %(id)s::text), %(number)s)

-- name: due
-- Requests whose next step is due, and that nobody works on; a message younger than that is still believed in.
UPDATE headrace.repack r
   SET sent_at = clock_timestamp()
 WHERE r.state = 'active' AND r.paused_at IS NULL AND r.due_at <= clock_timestamp()
   AND (r.sent_at IS NULL OR r.sent_at < clock_timestamp() - %(again)s::interval)
   AND NOT EXISTS (
       SELECT FROM pg_locks l
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
          AND l.classid = (hashtext('headrace.repack')::bigint & 4294967295)::oid AND l.objid = r.id::oid
          AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
RETURNING r.id, r.schema_name, r.table_name, r.run

-- name: prepared
-- The copy and its log are there: copying begins.
UPDATE headrace.repack
   SET step = 'copy', step_at = clock_timestamp(), prepared_at = clock_timestamp(), failures = 0, shape = %(shape)s,
       fingerprint = %(fingerprint)s, trigger_marks = %(marks)s, new_oid = %(new_oid)s, rows_estimated = %(rows)s,
       updated_at = clock_timestamp()
 WHERE id = %(id)s

-- name: copied
-- A chunk is in the copy.
UPDATE headrace.repack
   SET position = %(position)s, rows_copied = rows_copied + %(rows)s, chunks = chunks + 1, chunk_rows = %(chunk_rows)s,
       failures = 0, updated_at = clock_timestamp()
 WHERE id = %(id)s

-- name: next_step
-- A step is done.
UPDATE headrace.repack
   SET step = %(step)s, step_at = clock_timestamp(), due_at = clock_timestamp(), failures = 0, lock_attempts = 0,
       problem = NULL, updated_at = clock_timestamp()
 WHERE id = %(id)s AND state = 'active'

-- name: replayed
-- A batch of the log is in the copy.
UPDATE headrace.repack
   SET keys_replayed = keys_replayed + %(keys)s, replay_rounds = replay_rounds + 1, failures = 0, updated_at = clock_timestamp()
 WHERE id = %(id)s

-- name: set_backlog
-- How long the log is, and since when it has not become shorter: what to compare with is renewed after so many seconds.
UPDATE headrace.repack
   SET backlog_rows = %(rows)s::bigint,
       behind_since = CASE WHEN %(is_little)s THEN NULL
                           WHEN behind_since IS NULL
                             OR behind_at < clock_timestamp() - %(check)s::interval AND %(rows)s::bigint <= 0.9 * behind_rows THEN clock_timestamp()
                           ELSE behind_since END,
       behind_rows = CASE WHEN behind_at IS NULL OR behind_at < clock_timestamp() - %(check)s::interval THEN %(rows)s::bigint ELSE behind_rows END,
       behind_at = CASE WHEN %(is_little)s THEN NULL
                        WHEN behind_at IS NULL OR behind_at < clock_timestamp() - %(check)s::interval THEN clock_timestamp()
                        ELSE behind_at END,
       updated_at = clock_timestamp()
 WHERE id = %(id)s
RETURNING coalesce(extract(epoch FROM clock_timestamp() - behind_since), 0)::float8

-- name: put_off
-- Nothing more now: why, and when again.
UPDATE headrace.repack
   SET due_at = clock_timestamp()
              + CASE goal WHEN 'abort' THEN least(%(after)s::interval, interval '30 seconds') ELSE %(after)s::interval END,
       sent_at = NULL, updated_at = clock_timestamp(),
       -- Why a copy waits for a person stays until the person came.
       problem = CASE WHEN goal = 'ready' OR goal = 'abort' THEN coalesce(%(problem)s, problem) ELSE %(problem)s END
 WHERE id = %(id)s AND state = 'active'

-- name: attempted
-- The lock was not to be had: how often by now.
UPDATE headrace.repack
   SET lock_attempts = lock_attempts + 1, problem = %(problem)s, updated_at = clock_timestamp()
 WHERE id = %(id)s
RETURNING lock_attempts

-- name: wait_for_person
-- The swap is given up for now; the copy is kept in step until somebody says swap, or abort.
UPDATE headrace.repack
   SET step = CASE step WHEN 'swap' THEN 'replay' ELSE step END, goal = 'ready', lock_attempts = 0, problem = %(problem)s,
       due_at = clock_timestamp() + %(after)s::interval, updated_at = clock_timestamp()
 WHERE id = %(id)s AND state = 'active' AND goal <> 'abort'

-- name: swapped
-- The copy is the table: in the transaction that made it so.
UPDATE headrace.repack
   SET step = 'verify', step_at = clock_timestamp(), swapped_at = clock_timestamp(), hold_seconds = %(hold)s,
       keys_replayed = keys_replayed + %(keys)s, keep_until = clock_timestamp() + %(keep)s::interval, bytes_after = %(bytes)s,
       due_at = clock_timestamp(), problem = NULL, failures = 0, backlog_rows = 0, updated_at = clock_timestamp()
 WHERE id = %(id)s AND state = 'active'

-- name: to_be_validated
-- A constraint that was valid and will be again.
INSERT INTO headrace.repack_constraint (repack, schema_name, table_name, constraint_name)
VALUES (%(id)s, %(schema)s, %(table)s, %(name)s)
ON CONFLICT DO NOTHING

-- name: not_validated
-- Constraints that wait to be validated, ready to be written in a statement.
SELECT format('%%I.%%I', schema_name, table_name) AS qualified, quote_ident(constraint_name) AS quoted,
       schema_name, table_name, constraint_name
  FROM headrace.repack_constraint
 WHERE repack = %(id)s AND validated_at IS NULL AND problem IS NULL
 ORDER BY 1, 2

-- name: validated
-- A constraint is valid again, or cannot be.
UPDATE headrace.repack_constraint
   SET validated_at = CASE WHEN %(problem)s::text IS NULL THEN clock_timestamp() END, problem = %(problem)s
 WHERE repack = %(id)s AND schema_name = %(schema)s AND table_name = %(table)s AND constraint_name = %(name)s

-- name: unvalidated_problems
-- What was wrong with constraints that could not be made valid again.
SELECT problem FROM headrace.repack_constraint WHERE repack = %(id)s AND problem IS NOT NULL ORDER BY 1

-- name: verified
-- A range of keys is the same in the old and the new table.
UPDATE headrace.repack
   SET verify_position = %(position)s, rows_verified = rows_verified + %(rows)s, failures = 0, updated_at = clock_timestamp()
 WHERE id = %(id)s

-- name: finish
-- A request is over: done, failed or aborted.
UPDATE headrace.repack
   SET state = %(state)s, reason = %(reason)s, problem = %(problem)s, finished_at = clock_timestamp(), updated_at = clock_timestamp(),
       bytes_after = coalesce(%(bytes)s, bytes_after)
 WHERE id = %(id)s AND state = 'active'

-- name: failed_once
-- A step failed: how often in a row by now.
UPDATE headrace.repack
   SET failures = failures + 1, problem = %(problem)s, updated_at = clock_timestamp()
 WHERE id = %(id)s AND state = 'active'
RETURNING failures

-- name: set_run
-- Which run people follow.
UPDATE headrace.repack SET run = %(run)s WHERE id = %(id)s

-- name: abandon
-- What the request made is to be taken away, and why; a person gives no reason.
UPDATE headrace.repack
   SET goal = 'abort', reason = %(reason)s, problem = %(problem)s, due_at = clock_timestamp(), sent_at = NULL, paused_at = NULL,
       updated_at = clock_timestamp()
 WHERE id = %(id)s AND state = 'active'

-- name: wishes
-- What people want of a request now: its goal, whether it is paused and by whom.
SELECT goal, paused_at IS NOT NULL, paused_by FROM headrace.repack WHERE id = %(id)s AND state = 'active'

-- name: want_swap
-- A person wants the swap of a prepared copy, now or when it is ready.
UPDATE headrace.repack
   SET goal = 'swap', due_at = clock_timestamp(), sent_at = NULL, lock_attempts = 0, problem = NULL
 WHERE id = %(id)s AND state = 'active' AND goal <> 'abort'

-- name: pause
-- A person stops a request; its triggers go on logging.
UPDATE headrace.repack SET paused_at = clock_timestamp(), paused_by = %(by)s WHERE id = %(id)s AND state = 'active' AND paused_at IS NULL

-- name: resume
-- A person lets a request go on.
UPDATE headrace.repack
   SET paused_at = NULL, paused_by = NULL, due_at = clock_timestamp(), sent_at = NULL, failures = 0
 WHERE id = %(id)s AND state = 'active'

-- name: add_index
-- An index that the copy shall have.
INSERT INTO headrace.repack_index (repack, number, name, statements, is_key, is_unique)
VALUES (%(id)s, %(number)s, %(name)s, %(statements)s, %(is_key)s, %(is_unique)s)

-- name: indexes
-- The indexes of a copy, in the order in which they are built.
SELECT number, name, statements, is_key, is_unique, built_at IS NOT NULL AS is_built,
       sent_at IS NOT NULL OR built_at IS NOT NULL AS is_begun, problem
  FROM headrace.repack_index
 WHERE repack = %(id)s
 ORDER BY number

-- name: index_built
-- An index is built: in the transaction that built it.
UPDATE headrace.repack_index
   SET built_at = clock_timestamp(), seconds = %(seconds)s, problem = NULL
 WHERE repack = %(id)s AND number = %(number)s

-- name: index_failed
-- Why an index could not be built.
UPDATE headrace.repack_index SET problem = %(problem)s WHERE repack = %(id)s AND number = %(number)s

-- name: index_sent
-- The message for an index is on its way; none comes back while an earlier one is believed in.
UPDATE headrace.repack_index
   SET sent_at = clock_timestamp()
 WHERE repack = %(id)s AND number = %(number)s AND built_at IS NULL
   AND (sent_at IS NULL OR sent_at < clock_timestamp() - %(again)s::interval)
   AND NOT EXISTS (
       SELECT FROM pg_locks l
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
          AND l.classid = (hashtext('headrace.repack_index ' || %(id)s::text)::bigint & 4294967295)::oid
          AND l.objid = %(number)s::oid
          AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
RETURNING number

-- name: forget_index
-- An index that the table has lost meanwhile.
DELETE FROM headrace.repack_index WHERE repack = %(id)s AND number = %(number)s

-- name: listing
-- Requests that are active, and those that ended since then, newest first; a size waits for who moves that table now.
SELECT r.id, r.schema_name, r.table_name, r.engine, r.goal, r.step, r.state, r.reason, r.problem, r.plan, r.requested_by,
       r.rows_estimated, r.rows_copied, r.chunks, r.keys_replayed, r.replay_rounds, r.backlog_rows, r.rows_verified,
       r.lock_attempts, r.failures, r.hold_seconds, r.bytes_before, r.bytes_after, r.estimated_gain_bytes,
       r.due_at, r.paused_at, r.paused_by, r.requested_at, r.step_at, r.prepared_at, r.swapped_at, r.keep_until, r.finished_at,
       r.updated_at, (r.options -> 'limits' ->> 'swap_below_rows')::bigint AS swap_below_rows,
       CASE WHEN %(sizes)s THEN coalesce(pg_total_relation_size(to_regclass(format('headrace_new_%%s.%%I', r.id, r.table_name))), 0) END AS copy_bytes,
       CASE WHEN %(sizes)s THEN coalesce(pg_relation_size(to_regclass(format('headrace_log_%%s.log', r.id))), 0) END AS log_bytes,
       CASE WHEN %(sizes)s THEN coalesce(pg_total_relation_size(to_regclass(format('headrace_old_%%s.%%I', r.id, r.table_name))), 0) END AS old_bytes,
       (SELECT count(*) FROM headrace.repack_index i WHERE i.repack = r.id) AS indexes,
       (SELECT count(*) FROM headrace.repack_index i WHERE i.repack = r.id AND i.built_at IS NOT NULL) AS indexes_built,
       extract(epoch FROM clock_timestamp() - r.step_at)::float8 AS step_seconds,
       EXISTS (
           SELECT FROM pg_locks l
            WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
              AND l.classid = (hashtext('headrace.repack')::bigint & 4294967295)::oid AND l.objid = r.id::oid
              AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())) AS is_running
  FROM headrace.repack r
 WHERE r.state = 'active' OR r.finished_at > clock_timestamp() - %(since)s::interval
 ORDER BY r.state <> 'active', r.id DESC
 LIMIT %(limit)s

-- name: exists
-- Whether this database has repack's tables.
SELECT to_regclass('headrace.repack_candidate') IS NOT NULL

-- name: active_ids
-- Every active request.
SELECT id, schema_name, table_name FROM headrace.repack WHERE state = 'active' ORDER BY id

-- name: own_schemas
-- Schemas of requests, also of those whose row is gone.
SELECT n.nspname, substring(n.nspname FROM '\d+$')::bigint AS repack
  FROM pg_namespace n
 WHERE n.nspname ~ '^headrace_(new|old|log)_\d+$'
 ORDER BY 1

-- name: relations_in
-- What is in a schema of ours, as it is written in a statement.
SELECT format('%%I.%%I', n.nspname, c.relname)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %(schema)s AND c.relkind IN ('r', 'p')
 ORDER BY c.oid

-- name: table_oid
-- The table of this name now.
SELECT c.oid
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %(schema)s AND c.relname = %(table)s

-- name: plan_usage
-- How many tables of a plan are being rewritten, and how many bytes it took on since then.
SELECT count(*) FILTER (WHERE state = 'active'),
       coalesce(sum(bytes_before) FILTER (WHERE requested_at >= %(since)s::timestamptz), 0)::bigint
  FROM headrace.repack
 WHERE plan = %(plan)s

-- name: forget_old
-- Delete requests that ended longer ago than this.
DELETE FROM headrace.repack WHERE state <> 'active' AND finished_at < clock_timestamp() - %(older)s::interval

-- name: log_bytes
-- What a request's log takes.
SELECT coalesce(pg_total_relation_size(to_regclass(format('headrace_log_%%s.log', %(id)s::bigint))), 0)

-- name: copy_bytes
-- What a table takes, with indexes and TOAST; 0 if it is gone.
SELECT coalesce(pg_total_relation_size(%(oid)s::oid), 0)

-- name: seconds_until_due
-- How long a request waits still.
SELECT extract(epoch FROM due_at - clock_timestamp())::float8 FROM headrace.repack WHERE id = %(id)s

-- name: try_lock_choice
-- Be the only one who chooses a plan's tables.
SELECT pg_try_advisory_lock(hashtext('headrace.repack_choice'), hashtext(%(plan)s))

-- name: unlock_choice
-- Let others choose a plan's tables.
SELECT pg_advisory_unlock(hashtext('headrace.repack_choice'), hashtext(%(plan)s))

-- name: choice_is_due
-- Whether a plan's tables are to be looked at: long ago, not done though asked, or one waits for its turn and there is room.
INSERT INTO headrace.repack_choice AS c (plan, asked_at)
VALUES (%(plan)s, clock_timestamp())
ON CONFLICT (plan) DO UPDATE
   SET asked_at = clock_timestamp()
 WHERE c.asked_at < clock_timestamp() - %(every)s::interval
    OR coalesce(c.looked_at < c.asked_at, true) AND c.asked_at < clock_timestamp() - interval '1 minute'
    OR c.waiting > 0 AND c.asked_at < clock_timestamp() - interval '1 minute'
       AND (SELECT count(*) FROM headrace.repack r WHERE r.plan = c.plan AND r.state = 'active') < %(at_once)s
RETURNING plan

-- name: chosen
-- How many tables of a plan wait for their turn.
UPDATE headrace.repack_choice SET waiting = %(waiting)s, looked_at = clock_timestamp() WHERE plan = %(plan)s

-- name: outcome
-- How a request stands, for the person who asked for it.
SELECT id AS repack, schema_name AS schema, table_name AS table, state, reason, problem, step, goal, engine, rows_copied,
       rows_estimated, backlog_rows, bytes_before, bytes_after, hold_seconds, run, keep_until
  FROM headrace.repack
 WHERE id = %(id)s

-- name: go_on
-- A person asks again for what is half-way: its next step is due now.
UPDATE headrace.repack
   SET due_at = clock_timestamp(), failures = 0, updated_at = clock_timestamp()
 WHERE id = %(id)s AND state = 'active' AND paused_at IS NULL

-- name: sent
-- A person's run follows this request, and its message is on its way.
UPDATE headrace.repack SET run = %(run)s, sent_at = clock_timestamp() WHERE id = %(id)s

-- name: whose
-- Whether a step of a request is being done, whether a process of a person's own does it to its end, and its last mark.
SELECT EXISTS (SELECT FROM pg_locks l
                WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
                  AND l.classid = (hashtext('headrace.repack')::bigint & 4294967295)::oid AND l.objid = r.id::oid
                  AND l.database = d.oid) AS is_running,
       EXISTS (SELECT FROM pg_locks l
                WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
                  AND l.classid = (hashtext('headrace.repack here')::bigint & 4294967295)::oid AND l.objid = r.id::oid
                  AND l.database = d.oid) AS is_here,
       r.updated_at
  FROM headrace.repack r, pg_database d
 WHERE r.id = %(id)s AND d.datname = current_database()

-- name: try_lock_here
-- Be the only process that does a request to its end, as long as this session lives.
SELECT pg_try_advisory_lock(hashtext('headrace.repack here'), %(id)s::bigint::int)

-- name: cancel_steps
-- Cancel the statements of those who work on a request, or build one of its indexes; who they were.
WITH holders AS MATERIALIZED (  -- or the planner might ask for the cancelling before it asks whose lock it is
    SELECT l.pid
      FROM pg_locks l
     WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
       AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
       AND (l.classid = (hashtext('headrace.repack')::bigint & 4294967295)::oid AND l.objid = %(id)s::bigint::oid
            OR l.classid = (hashtext('headrace.repack_index ' || %(id)s::bigint)::bigint & 4294967295)::oid))
SELECT pid FROM holders WHERE pg_cancel_backend(pid)

-- name: next_id
-- The id that the next request gets, if nobody else asks before.
SELECT last_value + is_called::integer FROM headrace.repack_id_seq

-- name: left_triggers
-- The statements that drop the log triggers of requests that are over.
SELECT format('DROP TRIGGER %%I ON %%s', t.tgname, t.tgrelid::regclass)
  FROM pg_trigger t
  JOIN pg_proc p ON p.oid = t.tgfoid
  JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname = %(schema)s AND NOT t.tgisinternal AND t.tgparentid = 0
 ORDER BY t.tgrelid, t.tgname

-- name: functions_in
-- The functions in a schema of ours, as they are written in a statement.
SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = %(schema)s ORDER BY 1

-- name: room_tables
-- The room's own tables, as they are written in a statement.
SELECT format('%%I.%%I', n.nspname, c.relname)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'headrace' AND c.relkind = 'r' AND c.relname ~ '^repack(_|$)'
 ORDER BY c.oid

-- name: forget_migrations
-- The room's tables can be made anew afterwards.
DELETE FROM headrace.migration WHERE name = ANY(%(names)s)

-- name: quoted_constraint
-- A constraint's table and name, as they are written in a statement.
SELECT format('%%I.%%I', %(schema)s::text, %(table)s::text), quote_ident(%(name)s)

-- name: failed_of_plan
-- Tables of a plan whose rewrite failed lately.
SELECT DISTINCT schema_name, table_name
  FROM headrace.repack
 WHERE plan = %(plan)s AND state = 'failed' AND finished_at > clock_timestamp() - %(within)s::interval
