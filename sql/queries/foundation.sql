-- name: announce_host
-- A worker or watcher says that it lives; the host's row is made on the first call.
INSERT INTO headrace.host (name, version)
VALUES (%(name)s, %(version)s)
ON CONFLICT (name) DO UPDATE SET last_seen = now(), version = excluded.version

-- name: announce_worker
-- What this worker consumes.
INSERT INTO headrace.worker (host, name, queues)
VALUES (%(name)s, %(worker)s, %(queues)s)
ON CONFLICT (host, name) DO UPDATE SET last_seen = now(), queues = excluded.queues

-- name: worker_is_up
-- Whether this worker has been heard of since then.
SELECT EXISTS (SELECT FROM headrace.worker WHERE host = %(host)s AND name = %(name)s AND last_seen > %(since)s)

-- name: forget_workers
-- Workers of this host that were not heard of for a day.
DELETE FROM headrace.worker WHERE host = %(name)s AND last_seen < now() - interval '1 day'

-- name: hosts
-- Every host with its age in seconds, what its workers of the last minute (else its last ones) consume, and what it runs.
SELECT h.name,
       coalesce(q.fresh, q.stale, '{}') AS queues,
       h.version,
       h.last_seen,
       extract(epoch FROM now() - h.last_seen)::float8 AS silent_seconds,
       h.draining,
       (SELECT count(*) FROM headrace.run r WHERE r.host = h.name AND r.state = 'running') AS running
  FROM headrace.host h
 CROSS JOIN LATERAL (
    SELECT array_agg(DISTINCT one.queue ORDER BY one.queue)
               FILTER (WHERE w.last_seen > now() - interval '1 minute') AS fresh,
           array_agg(DISTINCT one.queue ORDER BY one.queue) AS stale
      FROM headrace.worker w, unnest(w.queues) AS one (queue)
     WHERE w.host = h.name) q
 ORDER BY h.name

-- name: host_names
-- The hosts that have a queue of their own.
SELECT name FROM headrace.host ORDER BY name

-- name: forget_host
-- Take a host that is gone for good off the list.
DELETE FROM headrace.host WHERE name = %(name)s

-- name: set_draining
-- Mark a host as emptying itself, or as taking work again.
UPDATE headrace.host SET draining = %(draining)s WHERE name = %(name)s

-- name: running_on_host
-- Runs that a drain still has to wait for.
SELECT count(*) FROM headrace.run WHERE host = %(host)s AND state = 'running'

-- name: pause
-- Pause a room, a host, or one room on one host.
INSERT INTO headrace.pause (room, host, paused_by, reason)
VALUES (%(room)s, %(host)s, %(by)s, %(reason)s)
ON CONFLICT (room, host) DO NOTHING

-- name: resume
-- Take a pause back.
DELETE FROM headrace.pause WHERE room = %(room)s AND host = %(host)s

-- name: pauses
-- Everything that is paused.
SELECT room, host, paused_at, paused_by, reason FROM headrace.pause ORDER BY room, host

-- name: pause_in_force
-- The pause, or the drain, that holds for this room on this host, if there is one.
SELECT p.paused_by, p.paused_at, p.reason
  FROM headrace.pause p
 WHERE p.room IN (%(room)s, '*') AND p.host IN (%(host)s, '*')
UNION ALL
SELECT 'drain', h.last_seen, 'the host is draining' FROM headrace.host h WHERE h.name = %(host)s AND h.draining
 LIMIT 1

-- name: queue_run
-- A person's request, written before its message is sent.
INSERT INTO headrace.run (room, key, attempt, state, host, requested_by, task, message, queued_at, sent_at)
VALUES (%(room)s, %(key)s, %(attempt)s, 'queued', %(host)s, %(by)s, %(task)s, %(message)s, now(), now())
RETURNING id

-- name: mark_sent
-- The message of a queued run is on its way (again).
UPDATE headrace.run SET sent_at = now() WHERE id = ANY(%(ids)s)

-- name: unsent_runs
-- Queued runs whose message was never sent or is older than the limit, oldest first.
SELECT id, task, message
  FROM headrace.run
 WHERE state = 'queued' AND cancel_requested_at IS NULL
   AND (sent_at IS NULL OR sent_at < now() - %(older)s::interval)
 ORDER BY id
 LIMIT %(limit)s

-- name: claim_run
-- The row of this request starts, again if its worker died; nothing is returned when it is over or cancelled.
UPDATE headrace.run
   SET state = 'running', host = %(host)s, worker = %(worker)s, database = %(database)s,
       backend_pid = %(backend_pid)s, backend_start = %(backend_start)s,
       started_at = now(), heartbeat = now()
 WHERE id = %(id)s AND state IN ('queued', 'running', 'lost') AND cancel_requested_at IS NULL
RETURNING id, counters

-- name: who_cancelled
-- Who asked for the end of a run.
SELECT cancel_requested_by FROM headrace.run WHERE id = %(id)s

-- name: start_run
-- A run that nobody asked for by name starts.
INSERT INTO headrace.run (room, key, attempt, state, host, worker, database, backend_pid, backend_start,
                          task, message, started_at, heartbeat)
SELECT %(room)s, %(key)s, 1 + coalesce((
           SELECT CASE WHEN r.state IN ('failed', 'lost', 'timeout') THEN r.attempt ELSE 0 END
             FROM headrace.run r WHERE r.room = %(room)s AND r.key = %(key)s ORDER BY r.id DESC LIMIT 1), 0),
       'running', %(host)s, %(worker)s, %(database)s, %(backend_pid)s, %(backend_start)s,
       %(task)s, %(message)s, now(), now()
RETURNING id, counters

-- name: continue_run
-- A run of the same key that ended well a moment ago goes on in its row.
UPDATE headrace.run r
   SET state = 'running', finished_at = NULL, heartbeat = now(), worker = %(worker)s,
       backend_pid = %(backend_pid)s, backend_start = %(backend_start)s
 WHERE r.id = (SELECT n.id FROM headrace.run n WHERE n.room = %(room)s AND n.key = %(key)s ORDER BY n.id DESC LIMIT 1)
   AND r.state = 'succeeded' AND r.requested_by IS NULL
   AND r.started_at > now() - %(same_run)s::interval
RETURNING r.id, r.counters

-- name: heartbeat
-- Runs of this process still live; answers which of them a person wants cancelled.
UPDATE headrace.run
   SET heartbeat = now(), counters = counters || coalesce(%(counters)s::jsonb -> id::text, '{}')
 WHERE id = ANY(%(ids)s) AND state = 'running'
RETURNING id, cancel_requested_by

-- name: finish_run
-- The end of a run that still owns its claim.
UPDATE headrace.run
   SET state = %(state)s, finished_at = now(), heartbeat = now(),
       error = %(error)s, counters = counters || %(counters)s
 WHERE id = %(id)s AND state IN ('queued', 'running')
RETURNING id

-- name: close_queued_run
-- A request that needed no run of its own is over.
UPDATE headrace.run
   SET state = %(state)s, finished_at = now(), error = %(error)s
 WHERE id = %(id)s AND state = 'queued'
RETURNING id

-- name: requeue_run
-- A requested run goes back to waiting: its message comes again.
UPDATE headrace.run
   SET state = 'queued', sent_at = now(), error = %(error)s, counters = counters || %(counters)s
 WHERE id = %(id)s AND state = 'running'
RETURNING id

-- name: stale_runs
-- Running, but without a sign of life for longer than the limit.
SELECT id, room, key, database, backend_pid, backend_start
  FROM headrace.run
 WHERE state = 'running' AND heartbeat < now() - %(older)s::interval
 ORDER BY id

-- name: backend_lives
-- Is that very backend still there? The start time tells a reused pid; another login's is not shown and counts as alive.
SELECT EXISTS (SELECT FROM pg_stat_activity
                WHERE pid = %(pid)s AND (backend_start = %(start)s OR backend_start IS NULL))

-- name: lose_run
-- A run whose worker and backend are both gone.
UPDATE headrace.run
   SET state = 'lost', finished_at = now(), error = %(error)s
 WHERE id = %(id)s AND state = 'running' AND heartbeat < now() - %(older)s::interval
RETURNING id

-- name: own_backend
-- Who this connection is on its server.
SELECT pg_backend_pid(), (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())

-- name: runs
-- History, newest first.
SELECT id, room, key, attempt, state, host, worker, database, requested_by, queued_at, started_at, finished_at,
       extract(epoch FROM coalesce(finished_at, now()) - started_at)::float8 AS seconds, error, counters
  FROM headrace.run
 WHERE (%(room)s::text IS NULL OR room = %(room)s)
   AND (NOT %(failed)s OR state IN ('failed', 'lost', 'timeout'))
   AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s))
 ORDER BY id DESC
 LIMIT %(limit)s

-- name: run_message
-- What a run was asked to do, to ask it again.
SELECT room, key, attempt, state, task, message FROM headrace.run WHERE id = %(id)s

-- name: request_cancel
-- A person wants this run to end; a queued one ends at once.
UPDATE headrace.run
   SET cancel_requested_at = now(), cancel_requested_by = %(by)s,
       state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END,
       finished_at = CASE state WHEN 'queued' THEN now() END
 WHERE id = %(id)s AND state IN ('queued', 'running')
RETURNING state, database, backend_pid, backend_start, host

-- name: room_summary
-- Per room: live runs, and keys whose newest run of the last days did not end well.
SELECT room,
       count(*) FILTER (WHERE state = 'queued') AS queued,
       count(*) FILTER (WHERE state = 'running') AS running,
       count(*) FILTER (WHERE state IN ('failed', 'lost', 'timeout')) AS failing
  FROM (SELECT room, state FROM headrace.run WHERE state IN ('queued', 'running')
        UNION ALL
        SELECT r.room, r.state
          FROM headrace.run r
         WHERE r.state IN ('failed', 'lost', 'timeout') AND r.finished_at > now() - %(window)s::interval
           AND NOT EXISTS (SELECT FROM headrace.run n WHERE n.room = r.room AND n.key = r.key AND n.id > r.id)) live
 GROUP BY room
 ORDER BY room

-- name: failing_runs
-- The newest run of each key that did not end well, newest first.
SELECT r.id, r.room, r.key, r.state, r.host, r.finished_at, r.error
  FROM headrace.run r
 WHERE r.state IN ('failed', 'lost', 'timeout') AND r.finished_at > now() - %(window)s::interval
   AND NOT EXISTS (SELECT FROM headrace.run n WHERE n.room = r.room AND n.key = r.key AND n.id > r.id)
 ORDER BY r.id DESC
 LIMIT %(limit)s

-- name: delete_old_runs
-- History beyond its retention.
DELETE FROM headrace.run WHERE finished_at < now() - %(older)s::interval

-- name: beat_leads
-- Does some session hold the lock of the beat that sends?
SELECT EXISTS (SELECT FROM pg_locks
                WHERE locktype = 'advisory' AND granted AND objsubid = 1
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND classid::bigint = %(high)s AND objid::bigint = %(low)s)

-- name: cancel_backend
-- Cancel the statement of one backend, told apart from a later one with the same pid.
SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = %(pid)s AND backend_start = %(start)s AND state = 'active'
