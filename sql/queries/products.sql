-- name: exists
-- Whether this database has the products' tables.
SELECT to_regclass('headrace.product_slot') IS NOT NULL

-- name: products
-- A mission's active products, and how their files are told.
SELECT p.id, p.name, p.format, p.folder, p.covers, p.level, p.min_bytes, p.trailer, p.marker, p.inspector,
       coalesce(p.cut_off, m.cut_off) AS cut_off
  FROM headrace.product p
  JOIN headrace.mission m ON m.id = p.mission_id
 WHERE p.mission_id = %(mission)s AND p.is_active
 ORDER BY p.id

-- name: try_folder
-- Be the only one who takes files in from a folder, as long as this session lives.
SELECT pg_try_advisory_lock(hashtext('headrace.incoming'), hashtext(%(folder)s))

-- name: leave_folder
-- Let others take files in.
SELECT pg_advisory_unlock(hashtext('headrace.incoming'), hashtext(%(folder)s))

-- name: arrivals
-- Files that were not taken in when they were seen last, and whether they have not changed for long enough since.
SELECT path, bytes, changed_ns, seen_at <= clock_timestamp() - %(settle)s::interval, problem
  FROM headrace.product_arrival
 WHERE host = %(host)s AND path LIKE %(below)s

-- name: note_arrival
-- How a file looks that is not taken in yet; the clock starts anew when it has changed.
INSERT INTO headrace.product_arrival AS a (host, path, bytes, changed_ns, problem)
VALUES (%(host)s, %(path)s, %(bytes)s, %(changed_ns)s, %(problem)s)
ON CONFLICT (host, path) DO UPDATE
   SET seen_at = CASE WHEN a.bytes = excluded.bytes AND a.changed_ns = excluded.changed_ns THEN a.seen_at
                      ELSE clock_timestamp() END,
       bytes = excluded.bytes, changed_ns = excluded.changed_ns, problem = excluded.problem

-- name: forget_arrivals
-- Files that were taken in, or are gone.
DELETE FROM headrace.product_arrival WHERE host = %(host)s AND path = ANY(%(paths)s)

-- name: known_names
-- What is known under these file names.
SELECT f.filename, f.id, f.sha256, f.sha1, f.state, f.place, f.product_id, f.day, f.key, f.start_at, f.stop_at
  FROM headrace.product_file f
 WHERE f.mission_id = %(mission)s AND f.filename = ANY(%(names)s)

-- name: known_versions
-- Files that have the product, day, key and version that others claim.
SELECT f.product_id, f.day, f.key, f.interface, f.quality, f.revision, f.filename
  FROM unnest(%(products)s::integer[], %(days)s::date[], %(keys)s::text[], %(interfaces)s::integer[],
              %(qualities)s::integer[], %(revisions)s::integer[]) AS t(product, day, key, interface, quality, revision)
  JOIN headrace.product_file f
    ON f.product_id = t.product AND f.day = t.day AND f.key = t.key AND f.interface = t.interface
   AND f.quality = t.quality AND f.revision = t.revision

-- name: begin_placing
-- Files are about to be moved into their places: nobody may read them yet.
INSERT INTO headrace.product_file (mission_id, product_id, filename, place, day, key, start_at, stop_at, interface, quality,
                                   revision, state, is_forced, sha256, bytes, modified_at, keywords, notes, inputs, code_id,
                                   build_id, host, source, temporary)
SELECT mission_id, product_id, filename, place, day, key, start_at, stop_at, interface, quality, revision, 'placing', is_forced,
       sha256, bytes, modified_at, keywords, notes, inputs, code_id, build_id, host, source, temporary
  FROM jsonb_to_recordset(%(files)s::jsonb) AS f(
       mission_id integer, product_id integer, filename text, place text, day date, key text, start_at timestamptz,
       stop_at timestamptz, interface integer, quality integer, revision integer, is_forced boolean, sha256 text, bytes bigint,
       modified_at timestamptz, keywords text, notes jsonb, inputs bigint[], code_id integer, build_id bigint, host text,
       source text, temporary text)
RETURNING filename, id

-- name: placed
-- Files are in their places, durably.
-- In the order of products: each is locked until the transaction ends.
UPDATE headrace.product_file f
   SET state = 'present', source = NULL, temporary = NULL, checked_at = clock_timestamp()
  FROM (SELECT p.id FROM headrace.product_file p WHERE p.id = ANY(%(ids)s) AND p.state = 'placing'
         ORDER BY p.product_id, p.day, p.key FOR UPDATE) AS mine
 WHERE f.id = mine.id
RETURNING f.id

-- name: found_again
-- A file that was missing or damaged is in its place again.
UPDATE headrace.product_file
   SET state = 'present', sha256 = %(sha256)s, checked_at = clock_timestamp()
 WHERE id = %(id)s AND state <> 'placing'

-- name: not_placed
-- A file did not come into its place.
DELETE FROM headrace.product_file WHERE id = %(id)s AND state = 'placing'

-- name: settled_late
-- An output has come to its place although its build was ended as lost: then it was no failure.
UPDATE headrace.product_build b
   SET state = 'succeeded', kind = NULL, problem = NULL, output_id = f.id, output_name = f.filename, exit_status = 0
  FROM headrace.product_file f
 WHERE f.id = %(file)s AND b.id = f.build_id AND b.state = 'lost'
RETURNING b.id, b.slot_id, b.inputs, b.code_id, b.started_at

-- name: half_placed
-- Files that were being placed on a host, and by whom.
SELECT f.id, f.filename, f.place, f.source, f.temporary, f.sha256, f.bytes, f.build_id, f.mission_id, f.product_id, f.day, f.key,
       f.start_at, f.stop_at, b.state AS build_state
  FROM headrace.product_file f
  LEFT JOIN headrace.product_build b ON b.id = f.build_id
 WHERE f.state = 'placing' AND f.mission_id = %(mission)s AND f.host = %(host)s

-- name: quarantine
-- A file that cannot be taken in, and why; it is about to be moved aside.
INSERT INTO headrace.product_quarantine (mission_id, host, filename, arrived_as, kept_as, reason, message, candidates, suggestion,
                                         sha256, bytes)
VALUES (%(mission)s, %(host)s, %(filename)s, %(arrived_as)s, %(kept_as)s, %(reason)s, %(message)s, %(candidates)s,
        %(suggestion)s, %(sha256)s, %(bytes)s)
RETURNING id

-- name: kept_aside
-- A quarantined file is where its row says.
UPDATE headrace.product_quarantine SET state = 'held', kept_as = %(kept_as)s WHERE id = %(id)s

-- name: not_quarantined
-- A file that could not be moved aside.
DELETE FROM headrace.product_quarantine WHERE id = %(id)s AND state = 'moving'

-- name: being_quarantined
-- Files whose move aside was not finished on a host.
SELECT id, arrived_as, kept_as FROM headrace.product_quarantine
 WHERE mission_id = %(mission)s AND host = %(host)s AND state = 'moving'

-- name: quarantined
-- Files in quarantine, newest first.
SELECT q.id, m.name AS mission, q.host, q.filename, q.arrived_as, q.kept_as, q.state, q.reason, q.message, q.candidates, q.suggestion,
       q.sha256, q.bytes, q.arrived_at, q.settled_at, q.settled_by
  FROM headrace.product_quarantine q
  JOIN headrace.mission m ON m.id = q.mission_id
 WHERE (%(mission)s::text IS NULL OR m.name = %(mission)s) AND (%(all)s OR q.state IN ('moving', 'held'))
   AND (%(ids)s::bigint[] IS NULL OR q.id = ANY(%(ids)s::bigint[]))
 ORDER BY q.id DESC

-- name: leave_quarantine
-- A file in quarantine was given back, or thrown away.
UPDATE headrace.product_quarantine SET state = %(state)s, settled_at = clock_timestamp(), settled_by = %(by)s
 WHERE id = %(id)s AND state IN ('moving', 'held')

-- name: try_lane
-- Be the only one in a lane of a host, as long as this session lives.
SELECT pg_try_advisory_lock(hashtext('headrace.lane ' || %(host)s::text), %(lane)s)

-- name: leave_lane
-- Let another message have the lane.
SELECT pg_advisory_unlock(hashtext('headrace.lane ' || %(host)s::text), %(lane)s)

-- name: lane_is_here
-- The message for a lane has come.
UPDATE headrace.product_lane SET sent_at = NULL WHERE host = %(host)s AND lane = %(lane)s AND sent_at IS NOT NULL

-- name: has_lanes
-- A host says how much it builds at once.
WITH gone AS (DELETE FROM headrace.product_lane WHERE host = %(host)s AND lane > %(lanes)s)
INSERT INTO headrace.product_lane (host, lane)
SELECT %(host)s, n FROM generate_series(1, %(lanes)s::integer) AS n
ON CONFLICT (host, lane) DO NOTHING

-- name: wake_lanes
-- Idle lanes of a host, at most so many as there are outputs that it can build; a young message is still believed in.
UPDATE headrace.product_lane l
   SET sent_at = clock_timestamp()
 WHERE l.host = %(host)s
   AND l.lane IN (
       SELECT k.lane FROM headrace.product_lane k
        WHERE k.host = %(host)s
          AND (k.sent_at IS NULL OR k.sent_at < clock_timestamp() - %(again)s::interval)
          AND NOT EXISTS (
              SELECT FROM pg_locks p
               WHERE p.locktype = 'advisory' AND p.granted AND p.objsubid = 2
                 AND p.classid = (hashtext('headrace.lane ' || %(host)s::text)::bigint & 4294967295)::oid
                 AND p.objid = k.lane::oid
                 AND p.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
        ORDER BY k.lane
        LIMIT (SELECT count(*) FROM (
            SELECT FROM headrace.product_slot s
              JOIN headrace.process p ON p.id = s.process_id
              JOIN headrace.mission m ON m.id = p.mission_id
             WHERE s.due_at <= clock_timestamp() AND (m.hosts = '{}' OR %(host)s = ANY(m.hosts))
               AND NOT EXISTS (SELECT FROM headrace.product_build b WHERE b.slot_id = s.id AND b.state = 'running')
             LIMIT 64) AS due))
RETURNING l.lane

-- name: due
-- Outputs that a host can build now, most urgent first.
SELECT s.id, s.process_id, p.mission_id, s.day, s.key, s.updated_at
  FROM headrace.product_slot s
  JOIN headrace.process p ON p.id = s.process_id
  JOIN headrace.mission m ON m.id = p.mission_id
 WHERE s.due_at <= clock_timestamp() AND (m.hosts = '{}' OR %(host)s = ANY(m.hosts))
   AND (%(mission)s::text IS NULL OR m.name = %(mission)s::text)
   AND NOT EXISTS (SELECT FROM headrace.product_build b WHERE b.slot_id = s.id AND b.state = 'running')
 ORDER BY s.priority DESC, s.rank, s.day, s.id
 LIMIT %(limit)s

-- name: next_due
-- Seconds until the next output of a host is due, if one is.
SELECT extract(epoch FROM min(s.due_at) - clock_timestamp())::double precision
  FROM headrace.product_slot s
  JOIN headrace.process p ON p.id = s.process_id
  JOIN headrace.mission m ON m.id = p.mission_id
 WHERE s.due_at IS NOT NULL AND (m.hosts = '{}' OR %(host)s = ANY(m.hosts))
   AND NOT EXISTS (SELECT FROM headrace.product_build b WHERE b.slot_id = s.id AND b.state = 'running')

-- name: slot
-- A slot, under its lock until the transaction ends; nothing when another transaction has it.
SELECT id, process_id, day, key, start_at, stop_at, due_at, reason, force, failures, failed_inputs, failed_code, updated_at,
       priority, forced_at, coalesce(due_at <= clock_timestamp(), false) AS is_due
  FROM headrace.product_slot WHERE id = %(id)s FOR UPDATE SKIP LOCKED

-- name: code
-- An executable as it was loaded.
SELECT id, process_id, filename, folder, interface, quality, revision, output_interface, arguments, environment,
       extract(epoch FROM timeout)::double precision AS timeout_seconds, memory_bytes, output_bytes, cpu, sha256
  FROM headrace.code WHERE id = %(id)s

-- name: code_was_read
-- What an executable's content is when it is first run.
UPDATE headrace.code SET sha256 = %(sha256)s WHERE id = %(id)s AND sha256 IS NULL

-- name: inputs_in_order
-- Input files in the order of the command line: as the process lists its products, then by time.
SELECT f.id, f.place, f.filename, f.sha256, f.bytes, f.keywords, f.key, f.is_forced, q.name AS product
  FROM headrace.product_file f
  JOIN headrace.product q ON q.id = f.product_id
  LEFT JOIN LATERAL (SELECT min(i.position) AS position FROM headrace.process_input i
                      WHERE i.process_id = %(process)s AND i.product_id = f.product_id) AS i ON true
 WHERE f.id = ANY(%(ids)s)
 ORDER BY i.position, f.start_at, f.key, f.id

-- name: highest
-- The highest version there is of a product, day and key, whatever became of its file.
SELECT id, filename, place, interface, quality, revision, state, sha256, sha1, bytes, is_forced, inputs
  FROM headrace.product_file
 WHERE product_id = %(product)s AND day = %(day)s AND key = %(key)s AND state <> 'placing'
 ORDER BY interface DESC, quality DESC, revision DESC LIMIT 1

-- name: lock_capacity
-- Builds of a host begin one after the other, so that what runs is counted right.
SELECT pg_advisory_xact_lock(hashtext('headrace.capacity'), hashtext(%(host)s))

-- name: in_use
-- What the builds of a host have taken of it.
SELECT coalesce(sum(cpu), 0)::integer, coalesce(sum(memory_bytes), 0)::bigint, count(*)::integer
  FROM headrace.product_build WHERE state = 'running' AND host = %(host)s

-- name: begin_build
-- A build begins; nothing comes back when another one has the output in hand.
INSERT INTO headrace.product_build (process_id, slot_id, code_id, day, key, reason, detail, inputs, state, attempt, host, worker, lane, run,
                                    token, cpu, memory_bytes, scratch, command, environment, code_sha256, output_name)
VALUES (%(process)s, %(slot)s, %(code)s, %(day)s, %(key)s, %(reason)s, %(detail)s, %(inputs)s, 'running', %(attempt)s, %(host)s,
        %(worker)s, %(lane)s, %(run)s, %(token)s, %(cpu)s, %(memory)s, %(scratch)s, %(command)s, %(environment)s, %(code_sha256)s,
        %(output_name)s)
ON CONFLICT (slot_id) WHERE state = 'running' DO NOTHING
RETURNING id

-- name: build_runs
-- Which processes to end should this worker die.
UPDATE headrace.product_build SET process_group = %(group)s, group_started = %(started)s WHERE id = %(id)s

-- name: hold_build
-- Whether a build is still ours to end; it stays so until the transaction ends.
SELECT true FROM headrace.product_build WHERE id = %(id)s AND state = 'running' FOR UPDATE

-- name: end_build
-- How a build ended; 0 rows when somebody else has ended it.
UPDATE headrace.product_build
   SET state = %(state)s, kind = %(kind)s, problem = %(problem)s, exit_status = %(exit_status)s, signal = %(signal)s,
       stdout = %(stdout)s, stderr = %(stderr)s, cpu_seconds = %(cpu_seconds)s, peak_bytes = %(peak_bytes)s,
       output_id = %(output)s, output_name = coalesce(%(output_name)s, output_name), finished_at = clock_timestamp()
 WHERE id = %(id)s AND state = 'running'

-- name: confirm_file
-- A file is what its inputs and code make of it now, byte for byte.
UPDATE headrace.product_file
   SET inputs = %(inputs)s, code_id = %(code)s, build_id = %(build)s, state = 'present', sha256 = %(sha256)s,
       bytes = %(bytes)s, checked_at = clock_timestamp()
 WHERE id = %(id)s

-- name: link
-- What a file was made of.
INSERT INTO headrace.product_link (parent, child) SELECT p, %(child)s FROM unnest(%(parents)s::bigint[]) AS p
ON CONFLICT DO NOTHING

-- name: unlink
-- What a file is not made of any more.
DELETE FROM headrace.product_link WHERE child = %(child)s

-- name: slot_done
-- A slot is built; it stays due when something changed meanwhile.
UPDATE headrace.product_slot
   SET due_at = CASE WHEN updated_at = %(seen)s THEN NULL ELSE clock_timestamp() END,
       -- What was asked for while it was built is done once more, and what was asked for before is not.
       force = CASE WHEN forced_at IS NOT DISTINCT FROM %(forced_at)s::timestamptz THEN NULL ELSE force END,
       failures = 0, failed_inputs = NULL, failed_code = NULL, has_given_up = false, kind = NULL, problem = NULL,
       inputs = %(inputs)s, code_id = %(code)s, build_id = %(build)s, updated_at = clock_timestamp()
 WHERE id = %(id)s
RETURNING due_at IS NULL

-- name: slot_not_stale
-- Nothing is to be done about a slot; it stays due when something changed meanwhile.
UPDATE headrace.product_slot
   SET due_at = NULL, reason = NULL, detail = '', failures = 0, failed_inputs = NULL, failed_code = NULL, problem = NULL, kind = NULL,
       updated_at = clock_timestamp()
 WHERE id = %(id)s AND updated_at = %(seen)s

-- name: slot_waits
-- A slot waits for an input of it that is to be built first.
UPDATE headrace.product_slot SET due_at = NULL, updated_at = clock_timestamp() WHERE id = %(id)s

-- name: slot_failed
-- An attempt failed: the next one comes later, or not before something changes. Nothing comes back when something has
-- changed since it began: then it says nothing of what is to be built now.
UPDATE headrace.product_slot
   SET failures = CASE WHEN failed_inputs = %(inputs)s::bigint[] AND failed_code = %(code)s THEN failures ELSE 0 END
                + CASE WHEN %(counts)s THEN 1 ELSE 0 END,
       failed_inputs = %(inputs)s, failed_code = %(code)s, kind = %(kind)s, problem = %(problem)s, build_id = %(build)s,
       due_at = clock_timestamp() + make_interval(secs => %(wait)s), updated_at = clock_timestamp()
 WHERE id = %(id)s AND (%(seen)s::timestamptz IS NULL OR updated_at = %(seen)s::timestamptz)
RETURNING failures

-- name: slot_given_up
-- It has failed often enough: the same inputs and code are not tried again until a person says so.
UPDATE headrace.product_slot
   SET due_at = NULL, has_given_up = true, force = NULL, updated_at = clock_timestamp()
 WHERE id = %(id)s

-- name: requests_served
-- What people asked for of a slot is settled.
UPDATE headrace.product_request_slot SET done_at = clock_timestamp(), build_id = %(build)s
 WHERE slot_id = %(slot)s AND done_at IS NULL

-- name: running_builds
-- Builds that nobody has ended: of a host, or of all.
SELECT b.id, b.slot_id, b.process_id, b.host, b.worker, b.lane, b.token, b.process_group, b.group_started, b.scratch, b.started_at, b.inputs,
       b.code_id, b.day, b.key, p.mission_id, p.output_product, p.attempts
  FROM headrace.product_build b
  JOIN headrace.process p ON p.id = b.process_id
 WHERE b.state = 'running' AND (%(host)s::text IS NULL OR b.host = %(host)s::text)
 ORDER BY b.id

-- name: lost_in_a_row
-- How often the newest builds of a slot were lost with these inputs and this code.
SELECT count(*) FROM (
    SELECT b.state, row_number() OVER (ORDER BY b.id DESC) AS n,
           count(*) FILTER (WHERE b.state <> 'lost' OR b.inputs <> %(inputs)s::bigint[] OR b.code_id <> %(code)s)
               OVER (ORDER BY b.id DESC) AS others
      FROM headrace.product_build b WHERE b.slot_id = %(slot)s ORDER BY b.id DESC LIMIT 20) AS newest
 WHERE others = 0

-- name: tokens
-- Builds that run, by the names of their scratch folders.
SELECT token FROM headrace.product_build WHERE state = 'running'

-- name: needs_tending
-- Hosts with builds in whose lane nobody is, or with files that are half-way into their places for a while.
SELECT b.host, m.hosts
  FROM headrace.product_build b
  JOIN headrace.process p ON p.id = b.process_id
  JOIN headrace.mission m ON m.id = p.mission_id
 WHERE b.state = 'running'
   AND NOT EXISTS (
       SELECT FROM pg_locks l
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
          AND l.classid = (hashtext('headrace.lane ' || b.host)::bigint & 4294967295)::oid AND l.objid = b.lane::oid
          AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
UNION
SELECT f.host, m.hosts
  FROM headrace.product_file f JOIN headrace.mission m ON m.id = f.mission_id
 WHERE f.state = 'placing' AND f.registered_at < clock_timestamp() - interval '30 seconds'

-- name: missions_to_plan
-- Missions whose outputs are to be looked over now; they count as asked. A long plan is made less often.
UPDATE headrace.mission m
   SET plan_asked_at = clock_timestamp()
 WHERE (m.planned_at IS NULL
        OR m.planned_at < clock_timestamp() - greatest(%(sweep)s::interval, make_interval(secs => 20 * m.plan_seconds)))
   AND (m.plan_asked_at IS NULL OR m.plan_asked_at < clock_timestamp() - %(again)s::interval)
RETURNING m.name, m.hosts

-- name: missions_to_look_at
-- Missions whose incoming folders are to be looked at now; they count as asked.
UPDATE headrace.mission m SET ingest_asked_at = clock_timestamp()
 WHERE m.ingest_asked_at IS NULL OR m.ingest_asked_at < clock_timestamp() - %(every)s::interval
RETURNING m.name, m.hosts

-- name: plan_again
-- A mission has changed: it is looked over as soon as somebody can.
UPDATE headrace.mission SET planned_at = NULL, plan_asked_at = NULL, ingest_asked_at = NULL WHERE name = %(name)s

-- name: planned
-- A mission was looked over.
UPDATE headrace.mission SET planned_at = clock_timestamp(), plan_seconds = %(seconds)s WHERE id = %(id)s

-- name: missions_to_check
-- Missions whose files are to be compared with the disk now; they count as asked.
UPDATE headrace.mission m
   SET check_asked_at = clock_timestamp()
 WHERE coalesce(m.checked_at, m.loaded_at) < clock_timestamp() - %(every)s::interval
   AND (m.check_asked_at IS NULL OR m.check_asked_at < clock_timestamp() - interval '1 hour')
RETURNING m.name, m.hosts

-- name: checked
-- A mission's files were compared with the disk.
UPDATE headrace.mission SET checked_at = clock_timestamp() WHERE id = %(id)s

-- name: input_is_gone
-- An input that is not where its row says.
UPDATE headrace.product_file SET state = 'missing', checked_at = clock_timestamp()
 WHERE id = %(id)s AND state = 'present'

-- name: forget_builds
-- Builds beyond their time that made nothing that is still there.
DELETE FROM headrace.product_build b
 WHERE b.state IN ('failed', 'lost', 'cancelled', 'unchanged', 'succeeded') AND b.finished_at < clock_timestamp() - %(age)s::interval
   AND NOT EXISTS (SELECT FROM headrace.product_file f WHERE f.build_id = b.id)
   AND NOT EXISTS (SELECT FROM headrace.product_file f WHERE f.id = b.output_id)
