-- Why something was built, or was not: nothing here writes.

-- name: read_only
-- From here on this transaction writes nothing.
SET LOCAL transaction_read_only = on

-- name: product
-- A product by its name.
SELECT q.id, q.name, q.is_active FROM headrace.product q WHERE q.mission_id = %(mission)s AND q.name = %(name)s

-- name: names
-- What can be asked about: a mission's products, and its processes without output.
SELECT q.name FROM headrace.product q WHERE q.mission_id = %(mission)s
UNION
SELECT p.name FROM headrace.process p WHERE p.mission_id = %(mission)s AND p.output_product IS NULL

-- name: makers
-- The processes that make a product, or the one of a name that makes none; retired ones, too.
SELECT p.id, p.name, p.is_active
  FROM headrace.process p
 WHERE p.mission_id = %(mission)s
   AND (p.output_product = %(product)s::integer OR p.output_product IS NULL AND p.name = %(name)s::text)
 ORDER BY p.rank, p.id

-- name: codes
-- The codes of a process, and the days that they are for; no date: without end.
SELECT c.id, c.filename, c.interface, c.quality, c.revision, c.state,
       CASE WHEN isfinite(c.valid_from) THEN c.valid_from END AS valid_from,
       CASE WHEN isfinite(c.valid_until) THEN c.valid_until END AS valid_until
  FROM headrace.code c
 WHERE c.process_id = %(process)s
 ORDER BY c.interface, c.quality, c.revision

-- name: slot
-- What is written of an output, its last attempt, and the build of it that runs.
SELECT s.id, s.due_at, s.priority, s.failures, s.kind, s.problem, s.updated_at, p.attempts,
       r.id AS running_id, r.host AS running_host, r.started_at AS running_since,
       r.reason AS running_reason, r.detail AS running_detail,
       b.id AS build_id, b.state AS build_state, b.kind AS build_kind, b.problem AS build_problem, b.host AS build_host,
       b.attempt AS build_attempt, b.exit_status, b.signal, right(b.stderr, 2000) AS stderr, b.started_at, b.finished_at
  FROM headrace.product_slot s
  JOIN headrace.process p ON p.id = s.process_id
  LEFT JOIN headrace.product_build r ON r.slot_id = s.id AND r.state = 'running'
  LEFT JOIN LATERAL (SELECT * FROM headrace.product_build x
                      WHERE x.slot_id = s.id AND x.state <> 'running' ORDER BY x.id DESC LIMIT 1) b ON true
 WHERE s.process_id = %(process)s AND s.day = %(day)s AND s.key = %(key)s

-- name: queue
-- What is built before an output that is due, how much is being built, and how many lanes there are for it.
SELECT (SELECT count(*) FROM headrace.product_slot o
         WHERE o.due_at <= clock_timestamp() AND (-o.priority, o.rank, o.day, o.id) < (-s.priority, s.rank, s.day, s.id)
           AND NOT EXISTS (SELECT FROM headrace.product_build b WHERE b.slot_id = o.id AND b.state = 'running')) AS ahead,
       (SELECT count(*) FROM headrace.product_build b WHERE b.state = 'running') AS running,
       (SELECT count(*) FROM headrace.product_lane l WHERE m.hosts = '{}' OR l.host = ANY(m.hosts)) AS lanes
  FROM headrace.product_slot s
  JOIN headrace.process p ON p.id = s.process_id
  JOIN headrace.mission m ON m.id = p.mission_id
 WHERE s.id = %(slot)s

-- name: inputs
-- What a process reads for the period in which a day lies: for each product how many newest files are in the windows,
-- and how many are in the period itself.
SELECT i.position, i.is_required, q.id, q.name, w.first, w.last, n.files, n.own
  FROM headrace.process p
  JOIN headrace.process_input i ON i.process_id = p.id
  JOIN headrace.product q ON q.id = i.product_id
 CROSS JOIN LATERAL (
       SELECT coalesce(%(start)s::timestamptz, %(day)s::date::timestamptz) AS start_at,
              coalesce(%(stop)s::timestamptz, %(day)s::date::timestamptz
                  + CASE p.timebase WHEN 'WEEKLY' THEN interval '1 week' WHEN 'MONTHLY' THEN interval '1 month'
                                    WHEN 'YEARLY' THEN interval '1 year' ELSE interval '1 day' END
                  - interval '1 microsecond') AS stop_at) d
 CROSS JOIN LATERAL (
       SELECT (d.start_at - make_interval(days => i.yesterday))::date AS first,
              (d.stop_at + make_interval(days => i.tomorrow))::date AS last) w
 CROSS JOIN LATERAL (
       SELECT count(*) AS files,
              count(*) FILTER (WHERE CASE WHEN p.timebase IN ('FILE', 'RUN') THEN f.day = %(day)s::date
                                          ELSE f.start_at <= d.stop_at AND f.stop_at >= d.start_at END) AS own
         FROM headrace.product_file f
        WHERE f.product_id = q.id AND f.is_newest
          AND CASE WHEN p.timebase IN ('FILE', 'RUN')
                   THEN f.day BETWEEN %(day)s::date - i.yesterday AND %(day)s::date + i.tomorrow
                   ELSE f.start_at <= d.stop_at + make_interval(days => i.tomorrow)
                        AND f.stop_at >= d.start_at - make_interval(days => i.yesterday) END) n
 WHERE p.id = %(process)s
 ORDER BY i.position, i.preference

-- name: is_orbit
-- Whether an orbit of a process' satellite begins on a day.
SELECT EXISTS (SELECT FROM headrace.process p JOIN headrace.orbit o ON o.satellite_id = p.satellite_id
                WHERE p.id = %(process)s AND o.start_at >= %(day)s::date::timestamptz
                  AND o.start_at < (%(day)s::date + 1)::timestamptz)

-- name: troubles
-- Outputs of these products in some days that are due, or have failed.
SELECT s.process_id, s.day, s.key
  FROM headrace.product_slot s
  JOIN headrace.process p ON p.id = s.process_id
 WHERE p.output_product = ANY(%(products)s::integer[]) AND p.is_active
   AND s.start_at < (%(last)s::date + 1)::timestamptz AND s.stop_at >= %(first)s::date::timestamptz
   AND (s.due_at IS NOT NULL OR s.failures > 0 OR s.has_given_up)
 ORDER BY s.day, s.key
 LIMIT 6

-- name: damaged
-- Files of a product in some days that are not there though their rows are, where no other version is.
SELECT f.filename, f.state
  FROM headrace.product_file f
 WHERE f.product_id = %(product)s AND f.state IN ('missing', 'corrupt', 'removed', 'placing')
   AND f.day BETWEEN %(first)s AND %(last)s
   AND NOT EXISTS (SELECT FROM headrace.product_file n
                    WHERE n.product_id = f.product_id AND n.day = f.day AND n.key = f.key AND n.is_newest)
 ORDER BY f.day, f.key, f.id DESC
 LIMIT 6

-- name: quarantined
-- Files in quarantine that may be of a product and a day: one of the two is in what is known of them, the other is not against it.
SELECT q.id, q.filename, q.reason, q.message, q.suggestion, q.host, q.arrived_at
  FROM headrace.product_quarantine q
 CROSS JOIN LATERAL (
       SELECT EXISTS (SELECT FROM unnest(%(dates)s::text[]) AS d(text)
                       WHERE strpos(q.filename, d.text) > 0 OR strpos(coalesce(q.suggestion, ''), d.text) > 0) AS is_dated,
              %(product)s = ANY(q.candidates) OR strpos(coalesce(q.suggestion, ''), %(product)s) > 0 AS is_named,
              q.candidates = '{}' AND q.suggestion IS NULL AS is_nameless) k
 WHERE q.mission_id = %(mission)s AND q.state IN ('moving', 'held')
   AND (k.is_dated AND (k.is_named OR k.is_nameless) OR k.is_named AND q.filename !~ '[0-9]{6}')
 ORDER BY q.id DESC
 LIMIT 6

-- name: arriving
-- Files in a mission's incoming folder, not taken in yet, whose names have the date.
SELECT a.path, a.host, a.seen_at, a.problem
  FROM headrace.product_arrival a
  JOIN headrace.mission m ON m.id = %(mission)s AND starts_with(a.path, m.incoming)
 WHERE EXISTS (SELECT FROM unnest(%(dates)s::text[]) AS d(text) WHERE strpos(a.path, d.text) > 0)
 ORDER BY a.path
 LIMIT 6

-- name: files
-- What there is to say of files: by their ids, or the newest ones of a product and day.
SELECT f.id, f.filename, q.name AS product, f.product_id, f.day, f.key, f.interface, f.quality, f.revision, f.state,
       f.is_newest, f.is_forced, f.inputs, f.registered_at, f.code_id,
       b.id AS build_id, b.process_id, p.name AS process, b.reason, b.detail, b.state AS build_state, b.host,
       b.started_at, b.finished_at,
       c.interface AS code_interface, c.quality AS code_quality, c.revision AS code_revision,
       n.filename AS newest,
       f.inputs IS NULL AND EXISTS (
           SELECT FROM headrace.product_file o
            WHERE o.product_id = f.product_id AND o.day = f.day AND o.key = f.key AND o.id <> f.id
              AND o.registered_at <= f.registered_at AND o.id < f.id
              AND (o.interface, o.quality, o.revision) > (f.interface, f.quality, f.revision)) AS came_too_late
  FROM headrace.product_file f
  JOIN headrace.product q ON q.id = f.product_id
  LEFT JOIN headrace.product_build b ON b.id = f.build_id
  LEFT JOIN headrace.process p ON p.id = b.process_id
  LEFT JOIN headrace.code c ON c.id = coalesce(b.code_id, f.code_id)
  LEFT JOIN headrace.product_file n
    ON n.product_id = f.product_id AND n.day = f.day AND n.key = f.key AND n.is_newest AND n.id <> f.id
 WHERE f.mission_id = %(mission)s
   AND (f.id = ANY(%(ids)s::bigint[])
        OR f.product_id = %(product)s::integer AND f.day = %(day)s::date AND f.is_newest
           AND (%(key)s::text IS NULL OR f.key = %(key)s::text))
 ORDER BY f.day, f.key, f.id

-- name: children
-- What was built from a file.
SELECT f.id, f.filename, f.is_newest
  FROM headrace.product_link l
  JOIN headrace.product_file f ON f.id = l.child
 WHERE l.parent = %(file)s
 ORDER BY f.id

-- name: input_products
-- The products that a process reads, by their positions.
SELECT i.position, i.is_required, q.name
  FROM headrace.process_input i
  JOIN headrace.product q ON q.id = i.product_id
 WHERE i.process_id = %(process)s
 ORDER BY i.position, i.preference

-- name: code
-- A code by its id, or by the process and version that people call it by.
SELECT c.id, c.process_id, p.name AS process, c.interface, c.quality, c.revision, c.state,
       CASE WHEN isfinite(c.valid_from) THEN c.valid_from END AS valid_from,
       CASE WHEN isfinite(c.valid_until) THEN c.valid_until END AS valid_until
  FROM headrace.code c
  JOIN headrace.process p ON p.id = c.process_id
 WHERE p.mission_id = %(mission)s
   AND (c.id = %(id)s::integer
        OR p.name = %(process)s::text
           AND (c.interface, c.quality, c.revision) = (%(interface)s::integer, %(quality)s::integer, %(revision)s::integer))
 ORDER BY c.id DESC
 LIMIT 1

-- name: history
-- How long the newest builds of processes took that ended well, on average: in seconds, of cpu and by the clock.
SELECT p.id, h.cpu_seconds, h.wall_seconds
  FROM unnest(%(processes)s::integer[]) AS p(id)
 CROSS JOIN LATERAL (
       SELECT avg(n.cpu_seconds)::double precision AS cpu_seconds,
              avg(extract(epoch FROM n.finished_at - n.started_at))::double precision AS wall_seconds
         FROM (SELECT b.cpu_seconds, b.started_at, b.finished_at
                 FROM headrace.product_build b
                WHERE b.process_id = p.id AND b.state IN ('succeeded', 'unchanged')
                ORDER BY b.id DESC LIMIT 1000) n) h
