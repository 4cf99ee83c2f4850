-- Questions about files and what made them: nothing here writes.

-- name: ancestry
-- A file and all that it comes from, each once, with the ids it was built from in the order in which its code read them.
WITH RECURSIVE up (id) AS (
    SELECT %(id)s::bigint
    UNION
    SELECT parent.id
      FROM up
      JOIN headrace.product_file f ON f.id = up.id
      LEFT JOIN headrace.product_build b ON b.id = f.build_id AND b.state <> 'imported'
     CROSS JOIN LATERAL unnest(CASE WHEN cardinality(b.inputs) > 0 THEN b.inputs ELSE ARRAY(
               SELECT l.parent FROM headrace.product_link l WHERE l.child = f.id) END) AS parent (id)
)
SELECT up.id, CASE WHEN cardinality(b.inputs) > 0 THEN b.inputs ELSE ARRAY(
           SELECT l.parent FROM headrace.product_link l WHERE l.child = up.id ORDER BY l.parent) END AS neighbours
  FROM up
  LEFT JOIN headrace.product_file f ON f.id = up.id
  LEFT JOIN headrace.product_build b ON b.id = f.build_id AND b.state <> 'imported'

-- name: descent
-- A file and all that was built from it, each once, with the ids built from it directly.
WITH RECURSIVE down (id) AS (
    SELECT %(id)s::bigint
    UNION
    SELECT l.child FROM down JOIN headrace.product_link l ON l.parent = down.id
)
SELECT down.id, ARRAY(SELECT l.child FROM headrace.product_link l WHERE l.parent = down.id ORDER BY l.child) AS neighbours
  FROM down

-- name: facts
-- What there is to say of some files: product, version, bytes, the build and code that made each, the version before.
SELECT f.id, m.name AS mission, f.filename, f.place, m.root, p.name AS product, p.level, f.day, f.key, f.interface,
       f.quality, f.revision, f.state, f.sha256, f.sha1, f.bytes, f.host, f.registered_at,
       b.id AS build_id, r.name AS process, b.reason, b.state AS build_state, b.host AS build_host, b.started_at,
       b.finished_at, b.exit_status, b.command, b.environment, b.inputs AS build_inputs, b.scratch, b.output_name,
       b.code_sha256, b.cpu_seconds, b.peak_bytes,
       c.id AS code_id, c.filename AS code_filename, m.codes, c.folder AS code_folder, c.interface AS code_interface,
       c.quality AS code_quality, c.revision AS code_revision, c.sha256 AS code_row_sha256,
       extract(epoch FROM c.timeout)::float8 AS timeout_seconds, c.memory_bytes, c.output_bytes,
       o.id AS older_id, o.filename AS older_filename, o.interface AS older_interface, o.quality AS older_quality,
       o.revision AS older_revision, o.sha256 AS older_sha256
  FROM headrace.product_file f
  JOIN headrace.mission m ON m.id = f.mission_id
  JOIN headrace.product p ON p.id = f.product_id
  LEFT JOIN headrace.product_build b ON b.id = f.build_id
  LEFT JOIN headrace.process r ON r.id = b.process_id
  LEFT JOIN headrace.code c ON c.id = COALESCE(b.code_id, f.code_id)
  LEFT JOIN LATERAL (
       SELECT v.id, v.filename, v.interface, v.quality, v.revision, v.sha256
         FROM headrace.product_file v
        WHERE v.product_id = f.product_id AND v.day = f.day AND v.key = f.key
          AND (v.interface, v.quality, v.revision) < (f.interface, f.quality, f.revision)
        ORDER BY v.interface DESC, v.quality DESC, v.revision DESC
        LIMIT 1) o ON true
 WHERE f.id = ANY (%(ids)s::bigint[])

-- name: named
-- Files of a name, in every mission, with the folder they lie in.
SELECT f.id, m.root, f.place
  FROM headrace.mission m
  JOIN headrace.product_file f ON f.mission_id = m.id AND f.filename = %(filename)s
 ORDER BY f.id

-- name: is_file
-- Whether a file has this id.
SELECT EXISTS (SELECT FROM headrace.product_file WHERE id = %(id)s)

-- name: mission_name
-- The name of a mission.
SELECT name FROM headrace.mission WHERE id = %(mission)s

-- name: covered_products
-- The active products of a mission, lowest level first.
SELECT p.id, p.name, p.level
  FROM headrace.product p
 WHERE p.mission_id = %(mission)s AND p.is_active
   AND (%(names)s::text[] IS NULL OR p.name = ANY (%(names)s::text[]))
 ORDER BY p.level, p.name

-- name: covered_days
-- Each product's days that a newest file covers: how many, highest and lowest version. One longer than a day covers all of its days.
SELECT f.product_id, d.day, count(*) AS files, max(ARRAY[f.interface, f.quality, f.revision]) AS highest,
       min(ARRAY[f.interface, f.quality, f.revision]) AS lowest
  FROM headrace.product_file f
 CROSS JOIN LATERAL (
       SELECT f.day WHERE f.stop_at - f.start_at <= interval '1 day'
       UNION ALL
       SELECT s::date
         FROM generate_series(GREATEST(f.start_at::date, %(since)s::date)::timestamp,
                              LEAST((f.stop_at - interval '1 microsecond')::date, %(until)s::date)::timestamp,
                              interval '1 day') s
        WHERE f.stop_at - f.start_at > interval '1 day') d
 WHERE f.is_newest AND f.product_id = ANY (%(products)s)
   AND (%(since)s::date IS NULL OR d.day >= %(since)s::date) AND (%(until)s::date IS NULL OR d.day <= %(until)s::date)
 GROUP BY f.product_id, d.day

-- name: damaged_days
-- Days on which a product has a file that is missing or corrupt: how many.
SELECT f.product_id, f.day, count(*) AS files
  FROM headrace.product_file f
 WHERE f.state IN ('missing', 'corrupt') AND f.product_id = ANY (%(products)s)
   AND (%(since)s::date IS NULL OR f.day >= %(since)s::date) AND (%(until)s::date IS NULL OR f.day <= %(until)s::date)
 GROUP BY f.product_id, f.day

-- name: expected_days
-- Days of a product for which an output has failed or is due: how many, and the last failure's sentence.
SELECT r.output_product AS product_id, d.day, count(*) FILTER (WHERE s.failures > 0) AS failed,
       count(*) FILTER (WHERE s.due_at IS NOT NULL) AS due,
       (array_agg(s.problem ORDER BY s.updated_at DESC) FILTER (WHERE s.failures > 0))[1] AS problem
  FROM headrace.product_slot s
  JOIN headrace.process r ON r.id = s.process_id
 CROSS JOIN LATERAL (
       SELECT s.day WHERE s.stop_at - s.start_at <= interval '1 day'
       UNION ALL
       SELECT g::date
         FROM generate_series(GREATEST(s.start_at::date, %(since)s::date)::timestamp,
                              LEAST((s.stop_at - interval '1 microsecond')::date, %(until)s::date)::timestamp,
                              interval '1 day') g
        WHERE s.stop_at - s.start_at > interval '1 day') d
 WHERE (s.failures > 0 OR s.due_at IS NOT NULL) AND r.output_product = ANY (%(products)s)
   AND (%(since)s::date IS NULL OR d.day >= %(since)s::date) AND (%(until)s::date IS NULL OR d.day <= %(until)s::date)
 GROUP BY r.output_product, d.day

-- name: graph_products
-- The active products of a mission.
SELECT p.id, p.name, p.level FROM headrace.product p WHERE p.mission_id = %(mission)s AND p.is_active ORDER BY p.level, p.name

-- name: graph_processes
-- The active processes of a mission, and the version of the code in force.
SELECT r.id, r.name, r.output_product, r.timebase, r.rank,
       (SELECT string_agg(DISTINCT format('%%s.%%s.%%s', c.interface, c.quality, c.revision), ', ')
          FROM headrace.code c WHERE c.process_id = r.id AND c.state = 'active') AS codes
  FROM headrace.process r
 WHERE r.mission_id = %(mission)s AND r.is_active
 ORDER BY r.rank, r.name

-- name: graph_inputs
-- What the active processes of a mission read.
SELECT i.process_id, i.position, i.preference, i.product_id, i.is_required, i.yesterday, i.tomorrow
  FROM headrace.process_input i
  JOIN headrace.process r ON r.id = i.process_id
 WHERE r.mission_id = %(mission)s AND r.is_active
 ORDER BY i.process_id, i.position, i.preference
