-- name: missions
-- Each mission with how many files and outputs stand how.
SELECT m.name AS mission, m.hosts, m.incoming,
       (SELECT count(*) FROM headrace.product q WHERE q.mission_id = m.id AND q.is_active) AS products,
       (SELECT count(*) FROM headrace.process p WHERE p.mission_id = m.id AND p.is_active) AS processes,
       s.due, s.retrying, s.given_up, s.oldest_due_seconds, b.building,
       (SELECT count(*) FROM headrace.product_quarantine k WHERE k.mission_id = m.id AND k.state IN ('moving', 'held'))
           AS quarantined,
       (SELECT count(*) FROM headrace.product_file f JOIN headrace.product q ON q.id = f.product_id
         WHERE f.mission_id = m.id AND f.state IN ('missing', 'corrupt') AND NOT EXISTS (
             SELECT FROM headrace.product_file n
              WHERE n.product_id = f.product_id AND n.day = f.day AND n.key = f.key AND n.is_newest
                AND (n.interface, n.quality, n.revision) > (f.interface, f.quality, f.revision))) AS broken,
       m.planned_at, m.plan_seconds
  FROM headrace.mission m
 CROSS JOIN LATERAL (
     SELECT count(*) FILTER (WHERE s.due_at <= clock_timestamp()) AS due,
            count(*) FILTER (WHERE s.due_at > clock_timestamp() AND s.kind IS NOT NULL) AS retrying,
            count(*) FILTER (WHERE s.has_given_up) AS given_up,
            extract(epoch FROM clock_timestamp() - min(s.due_at))::double precision AS oldest_due_seconds
       FROM headrace.product_slot s JOIN headrace.process p ON p.id = s.process_id
      WHERE p.mission_id = m.id AND (s.due_at IS NOT NULL OR s.failures > 0)) s
 CROSS JOIN LATERAL (
     SELECT count(*) AS building FROM headrace.product_build b JOIN headrace.process p ON p.id = b.process_id
      WHERE p.mission_id = m.id AND b.state = 'running') b
 ORDER BY m.name

-- name: troubles
-- Outputs that are not tried again by themselves, newest first.
SELECT m.name AS mission, coalesce(q.name, p.name) AS product, p.name AS process, s.day, s.key, s.kind, s.problem, s.failures,
       s.build_id AS build, s.updated_at
  FROM headrace.product_slot s
  JOIN headrace.process p ON p.id = s.process_id
  JOIN headrace.mission m ON m.id = p.mission_id
  LEFT JOIN headrace.product q ON q.id = p.output_product
 WHERE s.has_given_up AND s.failures > 0 AND p.is_active
 ORDER BY s.updated_at DESC
 LIMIT %(limit)s

-- name: running
-- Builds in hand.
SELECT b.id AS build, m.name AS mission, coalesce(q.name, p.name) AS product, b.day, b.key, b.host, b.reason, b.cpu, b.started_at,
       extract(epoch FROM clock_timestamp() - b.started_at)::double precision AS seconds
  FROM headrace.product_build b
  JOIN headrace.process p ON p.id = b.process_id
  JOIN headrace.mission m ON m.id = p.mission_id
  LEFT JOIN headrace.product q ON q.id = p.output_product
 WHERE b.state = 'running'
 ORDER BY b.started_at

-- name: held_codes
-- Codes that wait for a person.
SELECT m.name AS mission, p.name AS process, c.interface || '.' || c.quality || '.' || c.revision AS version, c.loaded_at
  FROM headrace.code c
  JOIN headrace.process p ON p.id = c.process_id
  JOIN headrace.mission m ON m.id = p.mission_id
 WHERE c.state = 'held'
 ORDER BY c.loaded_at

-- name: left_in_incoming
-- Files that cannot be taken in for a reason that may pass.
SELECT host, path, problem, seen_at FROM headrace.product_arrival WHERE problem IS NOT NULL ORDER BY seen_at LIMIT %(limit)s

-- name: connections
-- Open connections of Headrace to this server.
SELECT count(*)::integer FROM pg_stat_activity WHERE application_name LIKE 'headrace %%'

-- name: builds
-- The history of builds, newest first.
SELECT b.id AS build, m.name AS mission, p.name AS process, coalesce(q.name, '') AS product, b.day, b.key, b.state, b.kind, b.problem,
       b.reason, b.detail, b.attempt, b.host, b.exit_status, b.signal, b.started_at, b.finished_at,
       extract(epoch FROM b.finished_at - b.started_at)::double precision AS seconds, b.cpu_seconds, b.peak_bytes,
       b.output_name, b.inputs, b.command, b.stdout, b.stderr,
       c.interface || '.' || c.quality || '.' || c.revision AS code
  FROM headrace.product_build b
  JOIN headrace.process p ON p.id = b.process_id
  JOIN headrace.mission m ON m.id = p.mission_id
  LEFT JOIN headrace.product q ON q.id = p.output_product
  LEFT JOIN headrace.code c ON c.id = b.code_id
 WHERE (%(mission)s::text IS NULL OR m.name = %(mission)s::text)
   AND (%(product)s::text IS NULL OR q.name = %(product)s::text OR p.name = %(product)s::text)
   AND (%(id)s::bigint IS NULL OR b.id = %(id)s::bigint)
   AND (NOT %(failed)s OR b.state IN ('failed', 'lost'))
 ORDER BY b.id DESC
 LIMIT %(limit)s

-- name: programs
-- The executables and inspectors that missions use, by mission.
SELECT m.name AS mission, m.hosts, 'code' AS kind, p.name AS owner, m.codes AS root, c.folder,
       replace(c.filename, '{CODEVERSION}', c.interface || '.' || c.quality || '.' || c.revision) AS filename
  FROM headrace.code c
  JOIN headrace.process p ON p.id = c.process_id
  JOIN headrace.mission m ON m.id = p.mission_id
 WHERE c.state IN ('active', 'held') AND p.is_active
UNION ALL
SELECT m.name, m.hosts, 'inspector', q.name, m.inspectors, q.inspector ->> 'folder', q.inspector ->> 'file'
  FROM headrace.product q
  JOIN headrace.mission m ON m.id = q.mission_id
 WHERE q.is_active AND q.inspector IS NOT NULL AND coalesce((q.inspector ->> 'is_active')::boolean, true)
 ORDER BY 1, 3, 4, 7
