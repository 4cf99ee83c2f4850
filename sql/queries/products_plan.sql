-- name: mission
-- A mission by its name.
SELECT id, name, root, incoming, codes, inspectors, quarantine, scratch, hosts, cut_off, neighbours, is_legacy
  FROM headrace.mission WHERE name = %(name)s

-- name: mission_of
-- A mission by its id.
SELECT id, name, root, incoming, codes, inspectors, quarantine, scratch, hosts, cut_off, neighbours, is_legacy
  FROM headrace.mission WHERE id = %(id)s

-- name: missions
-- All missions.
SELECT id, name, root, incoming, codes, inspectors, quarantine, scratch, hosts, cut_off, neighbours, is_legacy
  FROM headrace.mission ORDER BY name

-- name: processes
-- A mission's active processes in the order of their graph, what each reads, and how.
SELECT p.id, p.name, p.output_product, q.name AS product, p.timebase, p.rank, p.priority, p.attempts,
       coalesce(p.neighbours, m.neighbours) AS neighbours, coalesce(q.cut_off, m.cut_off) AS cut_off,
       p.extra_params, q.format, q.folder, q.level,
       coalesce(array_agg(i.product_id) FILTER (WHERE i.product_id IS NOT NULL), '{}') AS inputs,
       coalesce(bit_or(1::bigint << i.position) FILTER (WHERE i.is_required), 0) AS required,
       coalesce(max(i.yesterday), 0) AS yesterday, coalesce(max(i.tomorrow), 0) AS tomorrow
  FROM headrace.process p
  JOIN headrace.mission m ON m.id = p.mission_id
  LEFT JOIN headrace.product q ON q.id = p.output_product
  LEFT JOIN headrace.process_input i ON i.process_id = p.id
 WHERE p.mission_id = %(mission)s AND p.is_active
 GROUP BY p.id, q.id, m.id
 ORDER BY p.rank, p.id

-- name: without_nested_loops
-- For a plan of everything: thousands of slots are joined, where a plan of one slot looks up a handful. Costs that are
-- switched off look so high that the server would compile the query, which takes longer than the query.
SELECT set_config('enable_nestloop', 'off', true), set_config('jit', 'off', true),
       set_config('work_mem', greatest(pg_size_bytes(current_setting('work_mem')), 33554432) / 1024 || 'kB', true)

-- name: with_nested_loops
-- Back to the plans for few slots.
SELECT set_config('enable_nestloop', 'on', true)

-- name: lazily
-- What this transaction writes may be lost with the server: it can be found out again.
SET LOCAL synchronous_commit = off

-- name: stale
-- The outputs of a process that are not as they should be; with `everything` also those that are, and those that wait.
-- Slots are joined last: of thousands in order none is needed.
WITH codes AS MATERIALIZED (
    SELECT id, valid_from, valid_until FROM headrace.code WHERE process_id = %(process)s AND state = 'active'
),
found AS MATERIALIZED (
    SELECT e.day, e.key, e.start_at, e.stop_at, e.inputs, e.own, e.has_pending,
           (e.found & %(required)s) = %(required)s AND (e.found <> 0 OR %(required)s = 0) AS is_complete, e.found,
           c.id AS code_id, o.id AS output_id, o.inputs AS had_inputs, o.code_id AS had_code, b.id AS broken_id, b.state AS broken_state
      FROM headrace.product_expected(%(process)s, %(since)s::date, %(until)s::date, %(products)s::integer[], %(days)s::date[],
                                     %(keys)s::text[], %(starts)s::timestamptz[], %(stops)s::timestamptz[], %(from_due)s) e
      LEFT JOIN codes c ON e.day BETWEEN c.valid_from AND c.valid_until
      LEFT JOIN headrace.product_file o
        ON o.product_id = %(output)s::integer AND o.day = e.day AND o.key = e.key AND o.is_newest
      LEFT JOIN (
          SELECT DISTINCT ON (f.day, f.key) f.id, f.state, f.day, f.key, f.interface, f.quality, f.revision
            FROM headrace.product_file f
           WHERE f.product_id = %(output)s::integer AND f.state IN ('missing', 'corrupt')
           ORDER BY f.day, f.key, f.interface DESC, f.quality DESC, f.revision DESC
      ) b ON b.day = e.day AND b.key = e.key
         AND (o.id IS NULL OR (b.interface, b.quality, b.revision) > (o.interface, o.quality, o.revision))
     WHERE (%(key)s::text IS NULL OR e.key = %(key)s::text)
       AND (%(everything)s
            OR (c.id IS NOT NULL AND (e.found & %(required)s) = %(required)s
                AND (e.has_pending OR b.id IS NOT NULL
                     OR CASE
                            WHEN %(output)s::integer IS NULL OR o.id IS NULL THEN true
                            -- Delivered, not built: it stands until an input comes after it.
                            WHEN o.inputs IS NULL THEN coalesce(e.inputs[cardinality(e.inputs)] > o.id, false)
                            ELSE o.code_id IS DISTINCT FROM c.id
                                 OR CASE WHEN %(neighbours)s THEN o.inputs <> e.inputs ELSE NOT (e.own <@ o.inputs) END
                        END
                     OR (e.day, e.key) IN (SELECT f.day, f.key FROM headrace.product_slot f
                                            WHERE f.process_id = %(process)s AND f.force IS NOT NULL))))
)
SELECT e.day, e.key, e.start_at, e.stop_at, e.inputs, e.own, e.has_pending, e.is_complete, e.found, e.code_id, e.output_id,
       e.had_inputs, e.had_code, e.broken_id, e.broken_state, s.id AS slot_id, s.force, s.due_at, s.priority AS slot_priority,
       s.inputs AS ran_on, s.code_id AS ran_by,
       coalesce(s.has_given_up AND s.force IS NULL AND s.failed_inputs = e.inputs AND s.failed_code = e.code_id
                -- What the definition did not allow it may allow since it was loaded anew.
                AND NOT (s.kind = 'definition' AND s.updated_at < (
                    SELECT m.loaded_at FROM headrace.mission m JOIN headrace.process p ON p.mission_id = m.id
                     WHERE p.id = %(process)s)), false)
           AS is_given_up,
       coalesce(s.failed_inputs = e.inputs AND s.failed_code = e.code_id, false) AS has_failed_so, s.problem
  FROM found e
  LEFT JOIN headrace.product_slot s ON s.process_id = %(process)s AND s.day = e.day AND s.key = e.key
 WHERE %(everything)s OR %(output)s::integer IS NOT NULL OR e.has_pending OR s.force IS NOT NULL
    OR s.inputs IS DISTINCT FROM e.inputs OR s.code_id IS DISTINCT FROM e.code_id
 ORDER BY e.day, e.key

-- name: displaced
-- Files that stand behind these in some process' order of preference, and may reach into other days than they do.
SELECT DISTINCT f.product_id, f.start_at::date, f.stop_at::date
  FROM unnest(%(products)s::integer[], %(days)s::date[]) AS t(product, day)
  JOIN headrace.process_input a ON a.product_id = t.product
  JOIN headrace.process_input b
    ON b.process_id = a.process_id AND b.position = a.position AND b.preference > a.preference
  JOIN headrace.product_file f ON f.product_id = b.product_id AND f.day = t.day AND f.is_newest

-- name: facts_of_files
-- What verdicts need to know of input files.
SELECT id, product_id, day, key, interface, quality, revision, filename, is_forced
  FROM headrace.product_file WHERE id = ANY(%(ids)s)

-- name: facts_of_codes
-- Versions of codes.
SELECT id, filename, interface, quality, revision FROM headrace.code WHERE id = ANY(%(ids)s)

-- name: mark_due
-- Slots that are to be built now. What failed before with other inputs or another code begins anew. Rows are locked
-- in the order of ranks, as a build does that ends and then marks what follows: so neither waits for the other.
INSERT INTO headrace.product_slot AS s (process_id, day, key, start_at, stop_at, due_at, reason, detail, rank, priority)
SELECT t.process, t.day, t.key, t.start_at, t.stop_at, clock_timestamp(), t.reason, t.detail, t.rank, t.priority
  FROM unnest(%(processes)s::integer[], %(days)s::date[], %(keys)s::text[], %(starts)s::timestamptz[], %(stops)s::timestamptz[],
              %(reasons)s::text[], %(details)s::text[], %(ranks)s::integer[], %(priorities)s::integer[])
       AS t(process, day, key, start_at, stop_at, reason, detail, rank, priority)
 ORDER BY t.rank, t.process, t.day, t.key
ON CONFLICT (process_id, day, key) DO UPDATE
   SET due_at = least(s.due_at, excluded.due_at), reason = excluded.reason, detail = excluded.detail,
       rank = excluded.rank, start_at = excluded.start_at, stop_at = excluded.stop_at,
       priority = CASE WHEN s.due_at IS NULL THEN excluded.priority ELSE greatest(s.priority, excluded.priority) END,
       failures = 0, has_given_up = false, failed_inputs = NULL, failed_code = NULL, kind = NULL, problem = NULL, updated_at = clock_timestamp()
 -- What is being built for this very reason stays as it is: that build would take this for news, and be done again.
 WHERE NOT EXISTS (SELECT FROM headrace.product_build b
                    WHERE b.slot_id = s.id AND b.state = 'running' AND b.reason = excluded.reason AND b.detail = excluded.detail)

-- name: settle_imported
-- Imported outputs count as up to date with what there is now: their users held them so.
UPDATE headrace.product_file f
   SET inputs = e.inputs, code_id = coalesce(c.id, f.code_id)
  FROM headrace.product_expected(%(process)s, NULL, NULL, '{}', '{}', '{}', '{}', '{}', false) e
  LEFT JOIN headrace.code c
    ON c.process_id = %(process)s AND c.state = 'active' AND e.day BETWEEN c.valid_from AND c.valid_until
 WHERE f.product_id = %(output)s AND f.is_newest AND f.day = e.day AND f.key = e.key AND f.inputs IS NOT NULL
   AND (f.inputs <> e.inputs OR f.code_id IS DISTINCT FROM coalesce(c.id, f.code_id))
   AND NOT (f.id = ANY(%(but)s))
