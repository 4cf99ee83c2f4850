-- name: raise_alert
-- One more alert; it exists when the caller's transaction commits.
INSERT INTO headrace.alert (room, event, subject, facts)
VALUES (%(room)s, %(event)s, %(subject)s, %(facts)s::jsonb)

-- name: waiting
-- Whether some alert is due and not done.
SELECT EXISTS (SELECT FROM headrace.alert WHERE done_at IS NULL AND due_at <= statement_timestamp())

-- name: clock
-- The server's time: a delivery takes what was due before it began, so that nothing comes up twice in one call.
SELECT clock_timestamp()

-- name: claim
-- Lease the oldest alert that was due, unless somebody claims it right now; its due time is the token of the lease.
UPDATE headrace.alert
   SET due_at = clock_timestamp() + %(lease)s::interval
 WHERE id = (SELECT id
               FROM headrace.alert
              WHERE done_at IS NULL AND due_at <= %(began)s
              ORDER BY at, id
              LIMIT 1
                FOR UPDATE SKIP LOCKED)
RETURNING id, at, room, event, subject, facts, told, due_at AS held

-- name: renew
-- Lease an alert for one more channel; no row when the lease ran out and somebody else has it.
UPDATE headrace.alert
   SET due_at = clock_timestamp() + %(lease)s::interval
 WHERE id = %(id)s AND due_at = %(held)s AND done_at IS NULL
RETURNING due_at

-- name: mark_told
-- A channel took the alert. No row when it is marked already: then a hook must not run again.
UPDATE headrace.alert
   SET told = told || jsonb_build_object(%(channel)s::text, clock_timestamp())
 WHERE id = %(id)s AND NOT told ? %(channel)s

-- name: limit_hook
-- Bound each statement of this transaction, in milliseconds.
SELECT set_config('statement_timeout', %(milliseconds)s::text, true)

-- name: finish
-- Nothing is left to do: every channel has it, or nobody wants it.
UPDATE headrace.alert SET done_at = clock_timestamp(), problem = NULL WHERE id = %(id)s AND done_at IS NULL

-- name: put_off
-- Try again after 30 s, doubled each time up to an hour; given up, with its problem, when the alert is too old.
UPDATE headrace.alert
   SET attempts = attempts + 1,
       problem = %(problem)s,
       due_at = clock_timestamp() + least(interval '30 s' * 2 ^ least(attempts, 10), interval '1 hour'),
       done_at = CASE WHEN clock_timestamp() >= at + %(give_up)s::interval THEN clock_timestamp() END
 WHERE id = %(id)s AND due_at = %(held)s AND done_at IS NULL
RETURNING done_at IS NOT NULL

-- name: forget_old
-- Forget what was told, or given up, long ago.
DELETE FROM headrace.alert WHERE done_at < now() - %(older)s::interval
