-- name: lock
-- Be the only one who changes a mission's definition until the transaction ends.
SELECT pg_advisory_xact_lock(hashtext('headrace.mission'), hashtext(%(name)s))

-- name: mission
-- A mission as it was last loaded.
SELECT id, name, root, incoming, codes, inspectors, quarantine, scratch, hosts, cut_off, neighbours, is_legacy, definition
  FROM headrace.mission
 WHERE name = %(name)s

-- name: names
-- The missions there are.
SELECT name FROM headrace.mission ORDER BY name

-- name: products
-- A mission's products, retired ones too.
SELECT p.name, s.name AS satellite, i.name AS instrument, p.level, p.format, p.folder, p.description, p.covers, p.min_bytes,
       p.trailer, p.marker, p.inspector, p.cut_off, p.is_active
  FROM headrace.product p
  JOIN headrace.instrument i ON i.id = p.instrument_id
  JOIN headrace.satellite s ON s.id = i.satellite_id
 WHERE p.mission_id = %(mission)s
 ORDER BY p.id

-- name: processes
-- A mission's processes, retired ones too.
SELECT p.id, p.name, o.name AS output, p.timebase, s.name AS satellite, p.extra_params, p.neighbours, p.on_code_change,
       p.attempts, p.priority, p.rank, p.is_active
  FROM headrace.process p
  LEFT JOIN headrace.product o ON o.id = p.output_product
  LEFT JOIN headrace.satellite s ON s.id = p.satellite_id
 WHERE p.mission_id = %(mission)s
 ORDER BY p.id

-- name: inputs
-- What a mission's processes read, of several products at one position the preferred one first.
SELECT i.process_id, i.position, o.name AS product, i.is_required, i.yesterday, i.tomorrow
  FROM headrace.process_input i
  JOIN headrace.process p ON p.id = i.process_id
  JOIN headrace.product o ON o.id = i.product_id
 WHERE p.mission_id = %(mission)s
 ORDER BY i.process_id, i.position, i.preference

-- name: codes
-- The codes of a mission's processes.
SELECT c.id, c.process_id, c.state, c.filename, c.folder, c.description, c.interface, c.quality, c.revision,
       c.output_interface, nullif(c.valid_from, '-infinity') AS valid_from, nullif(c.valid_until, 'infinity') AS valid_until,
       c.arguments, c.environment, extract(epoch FROM c.timeout)::double precision AS timeout_seconds, c.memory_bytes,
       c.output_bytes, c.cpu, c.written
  FROM headrace.code c
  JOIN headrace.process p ON p.id = c.process_id
 WHERE p.mission_id = %(mission)s
 ORDER BY c.id

-- name: orbits
-- The numbered intervals of a mission's satellites.
SELECT s.name AS satellite, o.number, o.start_at, o.stop_at
  FROM headrace.orbit o
  JOIN headrace.satellite s ON s.id = o.satellite_id
 WHERE s.mission_id = %(mission)s
 ORDER BY s.id, o.number

-- name: missions_of_process
-- The missions that have an active process of this name.
SELECT m.name
  FROM headrace.process p
  JOIN headrace.mission m ON m.id = p.mission_id
 WHERE p.name = %(process)s AND p.is_active
 ORDER BY m.name

-- name: save_mission
-- A mission's folders and rules, and its definition as a whole.
INSERT INTO headrace.mission AS m (name, root, incoming, codes, inspectors, quarantine, scratch, hosts, cut_off, neighbours,
                                   is_legacy, definition)
VALUES (%(name)s, %(root)s, %(incoming)s, %(codes)s, %(inspectors)s, %(quarantine)s, %(scratch)s, %(hosts)s::text[],
        %(cut_off)s, %(neighbours)s, %(is_legacy)s, %(definition)s)
ON CONFLICT (name) DO UPDATE
   SET root = excluded.root, incoming = excluded.incoming, codes = excluded.codes, inspectors = excluded.inspectors,
       quarantine = excluded.quarantine, scratch = excluded.scratch, hosts = excluded.hosts, cut_off = excluded.cut_off,
       neighbours = excluded.neighbours, is_legacy = excluded.is_legacy, definition = excluded.definition,
       loaded_at = clock_timestamp()

-- name: save_satellite
-- A satellite that may be there already.
INSERT INTO headrace.satellite (mission_id, name)
SELECT id, %(satellite)s FROM headrace.mission WHERE name = %(mission)s
ON CONFLICT (mission_id, name) DO NOTHING

-- name: save_instrument
-- An instrument that may be there already.
INSERT INTO headrace.instrument (satellite_id, name)
SELECT s.id, %(instrument)s
  FROM headrace.satellite s
  JOIN headrace.mission m ON m.id = s.mission_id
 WHERE m.name = %(mission)s AND s.name = %(satellite)s
ON CONFLICT (satellite_id, name) DO NOTHING

-- name: save_product
-- A product as the definition has it; a retired one is active again.
INSERT INTO headrace.product AS p (mission_id, instrument_id, name, level, format, folder, description, covers, min_bytes,
                                   trailer, marker, inspector, cut_off)
SELECT m.id, i.id, %(name)s, %(level)s, %(format)s, %(folder)s, %(description)s, %(covers)s, %(min_bytes)s, %(trailer)s::bytea,
       %(marker)s, %(inspector)s::jsonb, %(cut_off)s::boolean
  FROM headrace.mission m
  JOIN headrace.satellite s ON s.mission_id = m.id AND s.name = %(satellite)s
  JOIN headrace.instrument i ON i.satellite_id = s.id AND i.name = %(instrument)s
 WHERE m.name = %(mission)s
ON CONFLICT (mission_id, name) DO UPDATE
   SET instrument_id = excluded.instrument_id, level = excluded.level, format = excluded.format, folder = excluded.folder,
       description = excluded.description, covers = excluded.covers, min_bytes = excluded.min_bytes,
       trailer = excluded.trailer, marker = excluded.marker, inspector = excluded.inspector, cut_off = excluded.cut_off,
       is_active = true

-- name: retire_product
-- No file of this product is expected any more.
UPDATE headrace.product p
   SET is_active = false
  FROM headrace.mission m
 WHERE m.id = p.mission_id AND m.name = %(mission)s AND p.name = %(name)s

-- name: save_process
-- A process as the definition has it; a retired one is active again.
INSERT INTO headrace.process AS p (mission_id, name, output_product, timebase, satellite_id, neighbours, on_code_change,
                                   extra_params, attempts, priority)
SELECT m.id, %(name)s, o.id, %(timebase)s, s.id, %(neighbours)s::boolean, %(on_code_change)s, %(extra_params)s::text[],
       %(attempts)s, %(priority)s
  FROM headrace.mission m
  LEFT JOIN headrace.product o ON o.mission_id = m.id AND o.name = %(output)s
  LEFT JOIN headrace.satellite s ON s.mission_id = m.id AND s.name = %(satellite)s
 WHERE m.name = %(mission)s
ON CONFLICT (mission_id, name) DO UPDATE
   SET output_product = excluded.output_product, timebase = excluded.timebase, satellite_id = excluded.satellite_id,
       neighbours = excluded.neighbours, on_code_change = excluded.on_code_change, extra_params = excluded.extra_params,
       attempts = excluded.attempts, priority = excluded.priority, is_active = true

-- name: forget_inputs
-- What a process read until now.
DELETE FROM headrace.process_input i
 USING headrace.process p, headrace.mission m
 WHERE p.id = i.process_id AND m.id = p.mission_id AND m.name = %(mission)s AND p.name = %(process)s

-- name: save_inputs
-- What a process reads.
INSERT INTO headrace.process_input (process_id, position, preference, product_id, is_required, yesterday, tomorrow)
SELECT p.id, t.position, t.preference, o.id, t.is_required, t.yesterday, t.tomorrow
  FROM headrace.mission m
  JOIN headrace.process p ON p.mission_id = m.id AND p.name = %(process)s
 CROSS JOIN unnest(%(positions)s::integer[], %(preferences)s::integer[], %(products)s::text[], %(required)s::boolean[],
                   %(yesterdays)s::integer[], %(tomorrows)s::integer[])
            AS t(position, preference, product, is_required, yesterday, tomorrow)
  JOIN headrace.product o ON o.mission_id = m.id AND o.name = t.product
 WHERE m.name = %(mission)s

-- name: retire_process
-- This process builds nothing any more.
UPDATE headrace.process p
   SET is_active = false
  FROM headrace.mission m
 WHERE m.id = p.mission_id AND m.name = %(mission)s AND p.name = %(name)s

-- name: save_ranks
-- The places of processes in the order of the graph.
UPDATE headrace.process p
   SET rank = t.rank
  FROM headrace.mission m, unnest(%(names)s::text[], %(ranks)s::integer[]) AS t(name, rank)
 WHERE m.name = %(mission)s AND p.mission_id = m.id AND p.name = t.name AND p.rank <> t.rank

-- name: add_code
-- A new version of a process' executable.
INSERT INTO headrace.code (process_id, filename, folder, description, interface, quality, revision, output_interface,
                           valid_from, valid_until, arguments, environment, timeout, memory_bytes, output_bytes, cpu, written,
                           state)
SELECT p.id, %(filename)s, %(folder)s, %(description)s, %(interface)s, %(quality)s, %(revision)s, %(output_interface)s,
       coalesce(%(valid_from)s::date, '-infinity'), coalesce(%(valid_until)s::date, 'infinity'), %(arguments)s::text[],
       %(environment)s::jsonb, make_interval(secs => %(timeout_seconds)s::double precision), %(memory_bytes)s::bigint,
       %(output_bytes)s::bigint, %(cpu)s, %(written)s::date, %(state)s
  FROM headrace.process p
  JOIN headrace.mission m ON m.id = p.mission_id
 WHERE m.name = %(mission)s AND p.name = %(process)s

-- name: change_code
-- A known version of a process' executable, and whether it is used.
UPDATE headrace.code
   SET filename = %(filename)s, folder = %(folder)s, description = %(description)s, output_interface = %(output_interface)s,
       valid_from = coalesce(%(valid_from)s::date, '-infinity'), valid_until = coalesce(%(valid_until)s::date, 'infinity'),
       arguments = %(arguments)s::text[], environment = %(environment)s::jsonb,
       timeout = make_interval(secs => %(timeout_seconds)s::double precision), memory_bytes = %(memory_bytes)s::bigint,
       output_bytes = %(output_bytes)s::bigint, cpu = %(cpu)s, written = %(written)s::date, state = %(state)s
 WHERE id = %(id)s

-- name: approved
-- Who let a held code be used.
UPDATE headrace.code SET approved_at = clock_timestamp(), approved_by = %(by)s WHERE id = %(id)s

-- name: forget_orbits
-- Intervals that a satellite's table has no more.
DELETE FROM headrace.orbit o
 USING headrace.satellite s, headrace.mission m
 WHERE s.id = o.satellite_id AND m.id = s.mission_id AND m.name = %(mission)s AND s.name = %(satellite)s
   AND NOT o.number = ANY(%(numbers)s::integer[])

-- name: save_orbits
-- Intervals of a satellite, new and changed ones.
INSERT INTO headrace.orbit AS o (satellite_id, number, start_at, stop_at)
SELECT s.id, t.number, t.start_at, t.stop_at
  FROM headrace.mission m
  JOIN headrace.satellite s ON s.mission_id = m.id AND s.name = %(satellite)s
 CROSS JOIN unnest(%(numbers)s::integer[], %(starts)s::timestamptz[], %(stops)s::timestamptz[]) AS t(number, start_at, stop_at)
 WHERE m.name = %(mission)s
ON CONFLICT (satellite_id, number) DO UPDATE
   SET start_at = excluded.start_at, stop_at = excluded.stop_at
 WHERE (o.start_at, o.stop_at) IS DISTINCT FROM (excluded.start_at, excluded.stop_at)
