-- name: legacy_schemas
-- Where a dbprocessing database in PostgreSQL keeps its tables: the session's own schema first, then public.
SELECT n.nspname
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v') AND c.relname IN ('mission', 'filefilelink', 'filecodelink', 'productprocesslink')
 GROUP BY n.nspname
HAVING count(*) = 4
 ORDER BY n.nspname <> current_user, n.nspname <> 'public', n.nspname

-- name: legacy_tables
-- The tables of a schema.
SELECT c.relname
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %(schema)s AND c.relkind IN ('r', 'p', 'v')

-- name: legacy_rows
-- Each row of a table with whatever columns it has: they differ between dbprocessing's versions.
-- slots: source
SELECT to_jsonb(t) FROM {source} t

-- name: mission
-- A mission that is here already, and whether it was loaded as dbprocessing had it.
SELECT m.id, m.root, m.is_legacy FROM headrace.mission m WHERE m.name = %(name)s

-- name: products
-- A mission's products by name.
SELECT p.name, p.id FROM headrace.product p WHERE p.mission_id = %(mission)s

-- name: processes
-- A mission's processes by name.
SELECT p.name, p.id FROM headrace.process p WHERE p.mission_id = %(mission)s

-- name: codes
-- A mission's codes by process and version; of several alike the one that counts comes last.
SELECT p.name, c.interface, c.quality, c.revision, c.id
  FROM headrace.code c
  JOIN headrace.process p ON p.id = c.process_id
 WHERE p.mission_id = %(mission)s
 ORDER BY c.state = 'active', c.id

-- name: totals
-- How many of each thing a mission has, in the order of their kinds.
SELECT (SELECT count(*) FROM headrace.mission m WHERE m.id = %(mission)s),
       (SELECT count(*) FROM headrace.product p WHERE p.mission_id = %(mission)s),
       (SELECT count(*) FROM headrace.process p WHERE p.mission_id = %(mission)s),
       (SELECT count(*) FROM headrace.code c JOIN headrace.process p ON p.id = c.process_id
         WHERE p.mission_id = %(mission)s)

-- name: wait_for_files
-- How long to wait for those who write files just now.
SELECT set_config('lock_timeout', %(patience)s, true)

-- name: hold_mark
-- Until mark_again nobody else writes files; the trigger would take a lock per file, more than a server has.
ALTER TABLE headrace.product_file DISABLE TRIGGER mark_newest

-- name: mark_again
-- The mark of the newest file is kept by its trigger again.
ALTER TABLE headrace.product_file ENABLE TRIGGER mark_newest

-- name: files
-- What a mission has: what an import must not add again, nor collide with.
SELECT f.id, f.filename, f.product_id, f.day, f.key, f.interface, f.quality, f.revision, f.sha1
  FROM headrace.product_file f
 WHERE f.mission_id = %(mission)s

-- name: reserve
-- So many ids of a table, ascending.
SELECT nextval(pg_get_serial_sequence(%(table)s, 'id')) FROM generate_series(1, %(count)s::integer) ORDER BY 1

-- name: copy_files
-- Files with ids that were reserved for them.
COPY headrace.product_file (
    id, mission_id, product_id, filename, place, day, key, start_at, stop_at, interface, quality, revision, state, sha1,
    bytes, modified_at, keywords, notes, inputs, code_id, build_id, host
) FROM STDIN

-- name: copy_builds
-- Builds with ids that were reserved for them.
COPY headrace.product_build (
    id, process_id, code_id, day, key, reason, inputs, state, command, exit_status, started_at, finished_at, output_id,
    output_name
) FROM STDIN

-- name: copy_links
-- Lineage.
COPY headrace.product_link (parent, child) FROM STDIN

-- name: unmark_newest
-- Take the mark off files that a higher version has come for.
UPDATE headrace.product_file f
   SET is_newest = false
 WHERE f.mission_id = %(mission)s AND f.is_newest
   AND EXISTS (
       SELECT FROM headrace.product_file h
        WHERE h.product_id = f.product_id AND h.day = f.day AND h.key = f.key AND h.state = 'present'
          AND (h.interface, h.quality, h.revision) > (f.interface, f.quality, f.revision))

-- name: mark_newest
-- Mark the highest version that is present of each product, day and key.
UPDATE headrace.product_file f
   SET is_newest = true
  FROM (
      SELECT DISTINCT ON (h.product_id, h.day, h.key) h.id
        FROM headrace.product_file h
       WHERE h.mission_id = %(mission)s AND h.state = 'present'
       ORDER BY h.product_id, h.day, h.key, h.interface DESC, h.quality DESC, h.revision DESC
  ) best
 WHERE f.id = best.id AND NOT f.is_newest

-- name: releases
-- A mission's releases and how many files each has.
SELECT r.name, count(f.file_id)
  FROM headrace.product_release r
  LEFT JOIN headrace.product_release_file f ON f.release_id = r.id
 WHERE r.mission_id = %(mission)s
 GROUP BY r.name

-- name: add_release
-- A release, still open.
INSERT INTO headrace.product_release (mission_id, name, comment, tagged_by)
VALUES (%(mission)s, %(name)s, %(comment)s, %(by)s)
RETURNING id

-- name: seal_release
-- Its manifest makes it final.
UPDATE headrace.product_release SET manifest_sha256 = %(manifest)s WHERE id = %(release)s

-- name: add_release_files
-- The files of a release as they are now.
INSERT INTO headrace.product_release_file (release_id, file_id, filename, place, sha256, bytes)
SELECT %(release)s, f.id, f.filename, f.place, coalesce(f.sha256, 'sha1 ' || f.sha1, ''), f.bytes
  FROM headrace.product_file f
 WHERE f.id = ANY(%(files)s::bigint[])

-- name: release_members
-- What a release's manifest is made of: checksum and name of each file.
SELECT coalesce(f.sha256, 'sha1 ' || f.sha1, ''), f.filename
  FROM headrace.product_file f
 WHERE f.id = ANY(%(files)s::bigint[])

-- name: settle_runs
-- Processes without an output count as run on all that there is, but where one of the named files waits to be looked at.
INSERT INTO headrace.product_slot AS s (process_id, day, key, start_at, stop_at, rank, inputs, code_id)
SELECT p.id, e.day, e.key, e.start_at, e.stop_at, p.rank, e.inputs, c.id
  FROM headrace.process p
 CROSS JOIN LATERAL headrace.product_expected(p.id, NULL, NULL, '{}', '{}', '{}', '{}', '{}', false) e
  JOIN headrace.code c ON c.process_id = p.id AND c.state = 'active' AND e.day BETWEEN c.valid_from AND c.valid_until
 WHERE p.mission_id = %(mission)s AND p.is_active AND p.output_product IS NULL
   AND NOT e.inputs && %(queued)s::bigint[]
    ON CONFLICT (process_id, day, key) DO UPDATE SET inputs = EXCLUDED.inputs, code_id = EXCLUDED.code_id
 WHERE s.build_id IS NULL

-- name: force
-- What was asked to be made again with a certain bump, of outputs that there are.
INSERT INTO headrace.product_slot (process_id, day, key, start_at, stop_at, rank, force)
SELECT DISTINCT ON (p.id, f.day, f.key) p.id, f.day, f.key, f.start_at, f.stop_at, p.rank, w.force
  FROM unnest(%(processes)s::integer[], %(files)s::bigint[], %(forces)s::text[]) AS w(process_id, file_id, force)
  JOIN headrace.process p ON p.id = w.process_id
  JOIN headrace.product_file f ON f.id = w.file_id AND f.is_newest
 ORDER BY p.id, f.day, f.key, w.force
    ON CONFLICT (process_id, day, key) DO UPDATE SET force = EXCLUDED.force
