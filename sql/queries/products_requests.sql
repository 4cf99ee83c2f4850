-- What people ask for: outputs to be built anew, days to be filled in, failures to be tried again.

-- name: codes
-- A mission's codes, whatever their state.
SELECT c.id, c.process_id, p.name AS process, c.filename, c.interface, c.quality, c.revision
  FROM headrace.code c
  JOIN headrace.process p ON p.id = c.process_id
 WHERE p.mission_id = %(mission)s
 ORDER BY p.name, c.interface, c.quality, c.revision

-- name: periods
-- The periods of a process that have a part in a range of days; of orbits those that begin in it.
SELECT t.at::date, CASE WHEN p.timebase = 'HOURLY' THEN 'H=' || to_char(t.at, 'HH24') ELSE '' END,
       t.at, t.at + k.step - '1 microsecond'::interval
  FROM headrace.process p
 CROSS JOIN LATERAL (
       SELECT u.unit, ('1 ' || u.unit)::interval AS step
         FROM (SELECT CASE p.timebase WHEN 'HOURLY' THEN 'hour' WHEN 'WEEKLY' THEN 'week' WHEN 'MONTHLY' THEN 'month'
                                      WHEN 'YEARLY' THEN 'year' ELSE 'day' END AS unit) u) k
 CROSS JOIN LATERAL generate_series(date_trunc(k.unit, %(since)s::date::timestamptz),
                                    (%(until)s::date + 1)::timestamptz - '1 microsecond'::interval, k.step) AS t(at)
 WHERE p.id = %(process)s AND p.timebase <> 'ORBIT'
UNION ALL
SELECT o.start_at::date, 'ORBIT=' || o.number, o.start_at, o.stop_at - '1 microsecond'::interval
  FROM headrace.process p
  JOIN headrace.orbit o ON o.satellite_id = p.satellite_id
 WHERE p.id = %(process)s AND p.timebase = 'ORBIT'
   AND o.start_at >= %(since)s::date::timestamptz AND o.start_at < (%(until)s::date + 1)::timestamptz
 ORDER BY 3

-- name: want_slots
-- Outputs without inputs: that a person wants them is all that makes them be built.
INSERT INTO headrace.product_slot AS s (process_id, day, key, start_at, stop_at, rank, is_wanted)
SELECT %(process)s, t.day, t.key, t.start_at, t.stop_at, %(rank)s, true
  FROM unnest(%(days)s::date[], %(keys)s::text[], %(starts)s::timestamptz[], %(stops)s::timestamptz[])
       AS t(day, key, start_at, stop_at)
 ORDER BY t.day, t.key
ON CONFLICT (process_id, day, key) DO UPDATE SET is_wanted = true WHERE NOT s.is_wanted

-- name: ask_slots
-- Outputs that are to be built because a person says so: now, or as soon as what they wait for is there. Failures are
-- forgotten. Rows are locked in the order of ranks, as builds and sweeps do.
INSERT INTO headrace.product_slot AS s (process_id, day, key, start_at, stop_at, due_at, reason, detail, rank, priority, force)
SELECT t.process, t.day, t.key, t.start_at, t.stop_at, CASE WHEN t.is_due THEN clock_timestamp() END, t.reason, t.detail,
       t.rank, t.priority, %(force)s::text
  FROM unnest(%(processes)s::integer[], %(days)s::date[], %(keys)s::text[], %(starts)s::timestamptz[],
              %(stops)s::timestamptz[], %(dues)s::boolean[], %(reasons)s::text[], %(details)s::text[],
              %(ranks)s::integer[], %(priorities)s::integer[])
       AS t(process, day, key, start_at, stop_at, is_due, reason, detail, rank, priority)
 ORDER BY t.rank, t.process, t.day, t.key
ON CONFLICT (process_id, day, key) DO UPDATE
   SET due_at = least(s.due_at, excluded.due_at), reason = excluded.reason, detail = excluded.detail,
       rank = excluded.rank, force = coalesce(excluded.force, s.force),
       forced_at = CASE WHEN excluded.force IS NULL THEN s.forced_at ELSE clock_timestamp() END, start_at = excluded.start_at,
       stop_at = excluded.stop_at,
       priority = CASE WHEN s.due_at IS NULL THEN excluded.priority ELSE greatest(s.priority, excluded.priority) END,
       failures = 0, has_given_up = false, failed_inputs = NULL, failed_code = NULL, kind = NULL, problem = NULL,
       updated_at = clock_timestamp()
RETURNING s.id

-- name: keep_slots
-- Rows for outputs that are as they should be and have none yet: imported ones, delivered ones.
INSERT INTO headrace.product_slot AS s (process_id, day, key, start_at, stop_at, rank)
SELECT t.process, t.day, t.key, t.start_at, t.stop_at, t.rank
  FROM unnest(%(processes)s::integer[], %(days)s::date[], %(keys)s::text[], %(starts)s::timestamptz[],
              %(stops)s::timestamptz[], %(ranks)s::integer[]) AS t(process, day, key, start_at, stop_at, rank)
 ORDER BY t.rank, t.process, t.day, t.key
ON CONFLICT (process_id, day, key) DO UPDATE SET rank = excluded.rank
RETURNING s.id

-- name: new_request
-- A person asks for something.
INSERT INTO headrace.product_request (mission_id, kind, what, requested_by)
VALUES (%(mission)s, %(kind)s, %(what)s::jsonb, %(by)s)
RETURNING id

-- name: add_slots
-- The outputs of a request; what needs no build is done at once.
INSERT INTO headrace.product_request_slot (request_id, slot_id, done_at)
SELECT %(request)s, t.id, CASE WHEN %(is_done)s::boolean THEN clock_timestamp() END FROM unnest(%(slots)s::bigint[]) AS t(id)

-- name: retry
-- Outputs that failed are tried again now; what is being tried at this moment is left alone.
UPDATE headrace.product_slot s
   SET due_at = clock_timestamp(), failures = 0, has_given_up = false, failed_inputs = NULL, failed_code = NULL,
       kind = NULL, problem = NULL, updated_at = clock_timestamp()
  FROM headrace.process p
 WHERE p.id = s.process_id AND p.mission_id = %(mission)s AND p.is_active
   AND (s.failures > 0 OR s.has_given_up OR s.kind IS NOT NULL)
   AND (%(processes)s::integer[] IS NULL OR p.id = ANY(%(processes)s::integer[]))
   AND (%(day)s::date IS NULL OR s.day = %(day)s::date) AND (%(key)s::text IS NULL OR s.key = %(key)s::text)
   AND NOT EXISTS (SELECT FROM headrace.product_build b WHERE b.slot_id = s.id AND b.state = 'running')

-- name: request_mission
-- Whose request it is.
SELECT mission_id FROM headrace.product_request WHERE id = %(request)s

-- name: lock_open_slots
-- The outputs that a request still waits for, under their locks: no build of them begins until the transaction ends.
SELECT s.id
  FROM headrace.product_slot s
  JOIN headrace.product_request_slot q ON q.slot_id = s.id
 WHERE q.request_id = %(request)s AND q.done_at IS NULL
 ORDER BY s.rank, s.process_id, s.day, s.key
   FOR UPDATE OF s

-- name: cancel_request
-- A request is taken back.
UPDATE headrace.product_request SET cancelled_at = clock_timestamp(), cancelled_by = %(by)s
 WHERE id = %(request)s AND cancelled_at IS NULL
RETURNING cancelled_at

-- name: drop_open_slots
-- Outputs that a cancelled request waits for no more: done in the instant of the cancellation. Running builds finish.
UPDATE headrace.product_request_slot q SET done_at = %(at)s
 WHERE q.request_id = %(request)s AND q.done_at IS NULL
   AND NOT EXISTS (SELECT FROM headrace.product_build b WHERE b.slot_id = q.slot_id AND b.state = 'running')
RETURNING q.slot_id

-- name: free_slots
-- Nobody asks for these outputs any more: what remains is whether they are stale.
UPDATE headrace.product_slot s
   SET force = NULL, priority = p.priority, updated_at = clock_timestamp(),
       is_wanted = s.is_wanted AND (s.inputs IS NOT NULL
           OR EXISTS (SELECT FROM headrace.product_file f
                       WHERE f.product_id = p.output_product AND f.day = s.day AND f.key = s.key))
  FROM headrace.process p
 WHERE p.id = s.process_id AND s.id = ANY(%(slots)s::bigint[])
   AND NOT EXISTS (SELECT FROM headrace.product_request_slot q WHERE q.slot_id = s.id AND q.done_at IS NULL)
RETURNING s.id, s.process_id, s.day, s.key

-- name: undue
-- These outputs need no build.
UPDATE headrace.product_slot
   SET due_at = NULL, reason = NULL, detail = '', updated_at = clock_timestamp()
 WHERE id = ANY(%(slots)s::bigint[]) AND due_at IS NOT NULL

-- name: idle_slots
-- Outputs that requests wait for though nothing has them in hand: they wait for others, or need no build after all.
SELECT q.request_id, s.id, s.process_id, s.day, s.key
  FROM headrace.product_request r
  JOIN headrace.product_request_slot q ON q.request_id = r.id
  JOIN headrace.product_slot s ON s.id = q.slot_id
 WHERE r.mission_id = %(mission)s AND q.done_at IS NULL AND s.due_at IS NULL
   AND NOT EXISTS (SELECT FROM headrace.product_build b WHERE b.slot_id = s.id AND b.state = 'running')

-- name: settle
-- What was seen to need no build counts as done, unless somebody has it in hand by now.
UPDATE headrace.product_request_slot q SET done_at = clock_timestamp()
  FROM unnest(%(requests)s::bigint[], %(slots)s::bigint[]) AS t(request, slot), headrace.product_slot s
 WHERE q.request_id = t.request AND q.slot_id = t.slot AND s.id = t.slot AND q.done_at IS NULL AND s.due_at IS NULL
   AND NOT EXISTS (SELECT FROM headrace.product_build b WHERE b.slot_id = s.id AND b.state = 'running')

-- name: requests
-- Requests, newest first, and how far each one is. `failed`: its build failed for good, or could not even begin.
SELECT r.id, m.name AS mission, r.kind, r.what, r.requested_by, r.requested_at, r.cancelled_at, r.cancelled_by,
       n.total, n.done, n.failed, n.running, n.total - n.done - n.failed - n.running - n.cancelled AS waiting, n.cancelled
  FROM headrace.product_request r
  JOIN headrace.mission m ON m.id = r.mission_id
 CROSS JOIN LATERAL (
       SELECT count(*) AS total,
              count(*) FILTER (WHERE c.is_done AND NOT c.is_cancelled AND NOT c.has_failed) AS done,
              count(*) FILTER (WHERE c.is_done AND NOT c.is_cancelled AND c.has_failed) AS failed,
              count(*) FILTER (WHERE c.is_cancelled) AS cancelled,
              count(*) FILTER (WHERE NOT c.is_done AND c.is_running) AS running
         FROM (SELECT q.done_at IS NOT NULL AS is_done, q.done_at IS NOT DISTINCT FROM r.cancelled_at
                          AND q.done_at IS NOT NULL AS is_cancelled,
                      coalesce(b.state IN ('failed', 'lost', 'cancelled'),
                               q.build_id IS NULL AND s.has_given_up AND s.updated_at <= q.done_at, false) AS has_failed,
                      EXISTS (SELECT FROM headrace.product_build x WHERE x.slot_id = s.id AND x.state = 'running') AS is_running
                 FROM headrace.product_request_slot q
                 JOIN headrace.product_slot s ON s.id = q.slot_id
                 LEFT JOIN headrace.product_build b ON b.id = q.build_id
                WHERE q.request_id = r.id) c) n
 WHERE (%(request)s::bigint IS NULL OR r.id = %(request)s::bigint)
   AND (%(mission)s::text IS NULL OR m.name = %(mission)s::text)
 ORDER BY r.id DESC
 LIMIT %(limit)s
