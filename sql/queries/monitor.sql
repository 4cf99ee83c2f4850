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
