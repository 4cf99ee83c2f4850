-- name: count_dead_letters
-- How many stretches of telemetry files were no record.
SELECT count(*) FROM headrace.dead_letter

-- name: latest_estimates
-- The newest estimate of each table looked at since then, the most wasteful first, and what its last rewrite gave back.
WITH RECURSIVE newest AS (
    -- From table to table over the index: there are thousands of looks at each, and the page asks every few seconds.
    (SELECT c.schema_name, c.table_name, c.id
       FROM headrace.repack_candidate c
      ORDER BY c.schema_name, c.table_name, c.id DESC
      LIMIT 1)
    UNION ALL
    SELECT one.schema_name, one.table_name, one.id
      FROM newest n
     CROSS JOIN LATERAL (
         SELECT c.schema_name, c.table_name, c.id
           FROM headrace.repack_candidate c
          WHERE (c.schema_name, c.table_name) > (n.schema_name, n.table_name)
          ORDER BY c.schema_name, c.table_name, c.id DESC
          LIMIT 1) AS one
), estimate AS (
    SELECT c.schema_name, c.table_name, c.looked_at, c.verdict,
           c.table_bytes + c.index_bytes + c.toast_bytes AS bytes,
           c.table_bloat_bytes + c.index_bloat_bytes + c.toast_bloat_bytes AS bloat_bytes
      FROM newest n
      JOIN headrace.repack_candidate c USING (id)
     WHERE c.looked_at > clock_timestamp() - %(since)s::interval
     ORDER BY 6 DESC, 1, 2
     LIMIT %(limit)s
)
SELECT e.schema_name, e.table_name, e.looked_at, e.verdict, e.bytes, e.bloat_bytes, done.gained_bytes, done.estimated_gain_bytes
  FROM estimate e
  LEFT JOIN LATERAL (
      SELECT r.bytes_before - r.bytes_after AS gained_bytes, r.estimated_gain_bytes
        FROM headrace.repack r
       WHERE r.schema_name = e.schema_name AND r.table_name = e.table_name AND r.state = 'done'
       ORDER BY r.id DESC
       LIMIT 1) AS done ON true
 ORDER BY e.bloat_bytes DESC, e.schema_name, e.table_name

-- name: newest_product_builds
-- The newest builds with how each ended; what a code wrote is left where it is.
SELECT b.id AS build, m.name AS mission, coalesce(q.name, p.name) AS product, b.day, b.key, b.state, b.kind,
       left(b.problem, %(longest)s) AS problem, b.reason, left(b.detail, %(longest)s) AS detail, b.host, b.started_at,
       extract(epoch FROM coalesce(b.finished_at, clock_timestamp()) - b.started_at)::double precision AS seconds,
       c.interface || '.' || c.quality || '.' || c.revision AS code
  FROM (SELECT id, process_id, code_id, day, key, state, kind, problem, reason, detail, host, started_at, finished_at
          FROM headrace.product_build
         ORDER BY id DESC
         LIMIT %(limit)s) AS b
  JOIN headrace.process p ON p.id = b.process_id
  JOIN headrace.mission m ON m.id = p.mission_id
  LEFT JOIN headrace.product q ON q.id = p.output_product
  LEFT JOIN headrace.code c ON c.id = b.code_id
 ORDER BY b.id DESC

-- name: builds_of_the_last_hour
-- How many of the newest builds ended within the last hour, by how.
SELECT b.state, count(*)
  FROM (SELECT state, finished_at FROM headrace.product_build ORDER BY id DESC LIMIT %(limit)s) AS b
 WHERE b.finished_at > clock_timestamp() - '1 hour'::interval
 GROUP BY b.state

-- name: newest_quarantined
-- The newest files in quarantine.
SELECT q.id, m.name AS mission, q.host, q.filename, q.reason, left(q.message, %(longest)s) AS message,
       left(q.suggestion, %(longest)s) AS suggestion, q.arrived_at
  FROM headrace.product_quarantine q
  JOIN headrace.mission m ON m.id = q.mission_id
 WHERE q.state IN ('moving', 'held')
 ORDER BY q.id DESC
 LIMIT %(limit)s

-- name: outputs_by_process
-- How many outputs of each process of a mission failed, and how many are due, by what was last found out.
SELECT p.name, count(*) FILTER (WHERE s.has_given_up) AS failed,
       count(*) FILTER (WHERE s.due_at IS NOT NULL AND NOT s.has_given_up) AS due
  FROM headrace.product_slot s
  JOIN headrace.process p ON p.id = s.process_id
 WHERE p.mission_id = %(mission)s AND p.is_active AND (s.due_at IS NOT NULL OR s.failures > 0)
 GROUP BY p.name
