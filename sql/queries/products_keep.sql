-- Keeping: the files of a mission against the disk, releases of them, and what is cleaned and forgotten.

-- name: mission
-- A mission's folders, and whether any file is said to be there.
SELECT m.id, m.name, m.root, m.incoming,
       EXISTS (SELECT FROM headrace.product_file f WHERE f.mission_id = m.id AND f.state = 'present') AS has_files
  FROM headrace.mission m
 WHERE m.id = %(mission)s;

-- name: other_folders
-- The folders of every mission that hold no files of products.
SELECT DISTINCT x.folder
  FROM headrace.mission m
 CROSS JOIN LATERAL unnest(ARRAY[m.incoming, m.codes, m.inspectors, m.quarantine, m.scratch]) AS x (folder);

-- name: product_folders
-- Where the files of a mission's products lie, as templates.
SELECT DISTINCT p.folder FROM headrace.product p WHERE p.mission_id = %(mission)s ORDER BY p.folder;

-- name: unknown_products
-- Those of some names that no product of a mission has.
SELECT x.name
  FROM unnest(%(names)s::text[]) AS x (name)
 WHERE NOT EXISTS (SELECT FROM headrace.product p WHERE p.mission_id = %(mission)s AND p.name = x.name)
 ORDER BY x.name;

-- name: count_files
-- How many files a check of some days looks at.
SELECT count(*)
  FROM headrace.product_file f
 WHERE f.mission_id = %(mission)s
   AND f.day BETWEEN coalesce(%(since)s::date, '-infinity') AND coalesce(%(until)s::date, 'infinity');

-- name: files_after
-- The next files in the order of their ids, and which of the files that they were built from have no row any more.
SELECT f.id, f.mission_id, m.root, p.name AS product, f.filename, f.place, f.day, f.state, f.sha256, f.sha1, f.bytes,
       f.modified_at, f.build_id, f.host, f.inputs IS NOT NULL AS is_built,
       EXISTS (SELECT FROM headrace.product_file n
                WHERE n.product_id = f.product_id AND n.day = f.day AND n.key = f.key AND n.is_newest
                  AND (n.interface, n.quality, n.revision) > (f.interface, f.quality, f.revision)) AS is_superseded,
       f.state = 'placing' AND f.registered_at < clock_timestamp() - interval '1 minute' AS is_half_placed,
       ARRAY(SELECT i.id FROM unnest(f.inputs) AS i (id)
              WHERE NOT EXISTS (SELECT FROM headrace.product_file o WHERE o.id = i.id) ORDER BY i.id) AS vanished
  FROM headrace.product_file f
  JOIN headrace.mission m ON m.id = f.mission_id
  JOIN headrace.product p ON p.id = f.product_id
 WHERE f.mission_id = %(mission)s AND f.id > %(after)s
   AND f.day BETWEEN coalesce(%(since)s::date, '-infinity') AND coalesce(%(until)s::date, 'infinity')
 ORDER BY f.id
 LIMIT %(limit)s;

-- name: files_by_id
-- Some files, as they are now.
SELECT f.id, f.mission_id, m.root, p.name AS product, f.filename, f.place, f.day, f.state, f.sha256, f.sha1, f.bytes,
       f.modified_at, f.build_id, f.host, f.inputs IS NOT NULL AS is_built,
       EXISTS (SELECT FROM headrace.product_file n
                WHERE n.product_id = f.product_id AND n.day = f.day AND n.key = f.key AND n.is_newest
                  AND (n.interface, n.quality, n.revision) > (f.interface, f.quality, f.revision)) AS is_superseded,
       false AS is_half_placed, '{}'::bigint[] AS vanished
  FROM headrace.product_file f
  JOIN headrace.mission m ON m.id = f.mission_id
  JOIN headrace.product p ON p.id = f.product_id
 WHERE f.id = ANY (%(ids)s::bigint[])
 ORDER BY f.id;

-- name: known_places
-- Where the files of some names lie, of whichever mission and in whatever state.
SELECT f.filename, m.root, f.place
  FROM headrace.mission m
  JOIN headrace.product_file f ON f.mission_id = m.id
 WHERE f.filename = ANY (%(names)s::text[]);

-- name: temporaries
-- What files are called while they are being placed.
SELECT f.temporary FROM headrace.product_file f WHERE f.state = 'placing' AND f.temporary IS NOT NULL;

-- name: unchanged
-- Those of some files whose rows still say what they said.
SELECT f.id
  FROM unnest(%(ids)s::bigint[], %(states)s::text[], %(hashes)s::text[], %(builds)s::bigint[])
       AS seen (id, state, sha256, build_id)
  JOIN headrace.product_file f ON f.id = seen.id
 WHERE f.state = seen.state AND f.sha256 IS NOT DISTINCT FROM seen.sha256
   AND f.build_id IS NOT DISTINCT FROM seen.build_id;

-- name: lock_unchanged
-- The same, and nobody else writes or reads them for a change until this transaction ends; those in use are left out.
SELECT f.id
  FROM unnest(%(ids)s::bigint[], %(states)s::text[], %(hashes)s::text[], %(builds)s::bigint[])
       AS seen (id, state, sha256, build_id)
  JOIN headrace.product_file f ON f.id = seen.id
 WHERE f.state = seen.state AND f.sha256 IS NOT DISTINCT FROM seen.sha256
   AND f.build_id IS NOT DISTINCT FROM seen.build_id
   FOR UPDATE OF f SKIP LOCKED;

-- name: lock_groups
-- Those of some files whose product, day and key nobody else is changing. The lock is the one that the trigger
-- mark_newest takes after the row's own: who has both beforehand, and waits for neither, cannot be part of a deadlock.
SELECT f.id
  FROM headrace.product_file f
 WHERE f.id = ANY (%(ids)s::bigint[])
   AND pg_try_advisory_xact_lock(hashtext('headrace.newest'),
                                 hashtext(f.product_id || ' ' || f.day || ' ' || f.key));

-- name: set_states
-- Say of files what the disk says.
UPDATE headrace.product_file f
   SET state = new.state, checked_at = clock_timestamp()
  FROM unnest(%(ids)s::bigint[], %(states)s::text[]) AS new (id, state)
 WHERE f.id = new.id;

-- name: verified
-- These files were read and are what they should be: keep the hash and size where there was none. A row that is in
-- use, or says something else by now, is left as it is.
WITH held AS (
    SELECT f.id, seen.sha256, seen.bytes, seen.modified_at
      FROM unnest(%(ids)s::bigint[], %(states)s::text[], %(builds)s::bigint[], %(hashes)s::text[],
                  %(sizes)s::bigint[], %(times)s::timestamptz[])
           AS seen (id, state, build_id, sha256, bytes, modified_at)
      JOIN headrace.product_file f ON f.id = seen.id
     WHERE f.state = seen.state AND coalesce(f.sha256, seen.sha256) = seen.sha256
       AND f.build_id IS NOT DISTINCT FROM seen.build_id
       FOR NO KEY UPDATE OF f SKIP LOCKED
)
UPDATE headrace.product_file f
   SET sha256 = held.sha256, bytes = held.bytes, modified_at = held.modified_at, checked_at = clock_timestamp()
  FROM held
 WHERE f.id = held.id;

-- name: new_release
-- Begin a release; nothing is returned when the mission has one of this name.
INSERT INTO headrace.product_release (mission_id, name, comment, tagged_by)
VALUES (%(mission)s, %(name)s, %(comment)s, %(by)s)
ON CONFLICT (mission_id, name) DO NOTHING
RETURNING id;

-- name: choose_for_release
-- The present files that a release is asked for: those that were named, else the newest of some products and days.
-- The lock is one that cleaning and forgetting do not get past: what is being tagged stays.
SELECT f.id
  FROM headrace.product_file f
  JOIN headrace.product p ON p.id = f.product_id
 WHERE f.mission_id = %(mission)s AND f.state = 'present'
   AND CASE WHEN %(files)s::bigint[] IS NULL THEN f.is_newest ELSE f.id = ANY (%(files)s::bigint[]) END
   AND (%(products)s::text[] IS NULL OR p.name = ANY (%(products)s::text[]))
   AND f.day BETWEEN coalesce(%(since)s::date, '-infinity') AND coalesce(%(until)s::date, 'infinity')
   FOR SHARE OF f;

-- name: add_to_release
-- Put files into a release, as they are now.
INSERT INTO headrace.product_release_file (release_id, file_id, filename, place, sha256, bytes)
SELECT %(release)s, f.id, f.filename, f.place, coalesce(f.sha256, 'sha1 ' || f.sha1, ''), f.bytes
  FROM headrace.product_file f
 WHERE f.id = ANY (%(ids)s::bigint[]);

-- name: seal_release
-- Give a release the hash of its manifest: from now on nobody can change it.
UPDATE headrace.product_release SET manifest_sha256 = %(manifest)s WHERE id = %(release)s AND manifest_sha256 IS NULL;

-- name: releases
-- The releases of a mission, or the one of a name, oldest first.
SELECT r.id, r.mission_id, r.name, r.comment, r.tagged_by, r.tagged_at, r.manifest_sha256,
       count(f.file_id) AS files, coalesce(sum(f.bytes), 0)::bigint AS bytes
  FROM headrace.product_release r
  LEFT JOIN headrace.product_release_file f ON f.release_id = r.id
 WHERE r.mission_id = %(mission)s AND r.name = coalesce(%(name)s, r.name)
 GROUP BY r.id
 ORDER BY r.tagged_at, r.id;

-- name: release_files
-- The files of a release as they were tagged, and what their rows say now. An imported one has its files' sha1 only.
SELECT t.file_id, t.filename, t.place, coalesce(t.sha256, 'sha1 ' || f.sha1, '') AS checksum, t.bytes, m.root, p.name AS product, f.day, f.key,
       f.interface || '.' || f.quality || '.' || f.revision AS version, f.state
  FROM headrace.product_release_file t
  JOIN headrace.product_file f ON f.id = t.file_id
  JOIN headrace.product p ON p.id = f.product_id
  JOIN headrace.mission m ON m.id = f.mission_id
 WHERE t.release_id = %(release)s
 ORDER BY p.level, p.name, f.day, f.key, t.filename;

-- name: candidates
-- Superseded files that are registered for longer than an age, oldest day first.
SELECT f.id, f.mission_id, m.root, p.name AS product, f.filename, f.place, f.day,
       f.interface || '.' || f.quality || '.' || f.revision AS version, f.state, f.bytes, f.registered_at,
       n.filename AS superseded_by
  FROM headrace.product_file f
  JOIN headrace.product p ON p.id = f.product_id
  JOIN headrace.mission m ON m.id = f.mission_id
  JOIN headrace.product_file n ON n.product_id = f.product_id AND n.day = f.day AND n.key = f.key AND n.is_newest
   AND (n.interface, n.quality, n.revision) > (f.interface, f.quality, f.revision)
 WHERE f.mission_id = %(mission)s AND f.state IN ('present', 'missing', 'corrupt') AND NOT f.is_newest
   AND f.registered_at < clock_timestamp() - %(older_than)s::interval
   AND (%(products)s::text[] IS NULL OR p.name = ANY (%(products)s::text[]))
 ORDER BY f.day, p.name, f.id;

-- name: kept_although_superseded
-- Files that are not newest and stay: what newest ones were built from, what is released, what running builds and
-- outputs that are due or have failed read.
SELECT f.id
  FROM headrace.product_link l
  JOIN headrace.product_file c ON c.id = l.child AND c.is_newest AND c.mission_id = %(mission)s
  JOIN headrace.product_file f ON f.id = l.parent AND NOT f.is_newest
UNION
SELECT f.id
  FROM headrace.product_file c
 CROSS JOIN LATERAL unnest(c.inputs) AS i (id)
  JOIN headrace.product_file f ON f.id = i.id AND NOT f.is_newest
 WHERE c.is_newest AND c.mission_id = %(mission)s
UNION
SELECT t.file_id FROM headrace.product_release_file t
UNION
SELECT i.id FROM headrace.product_build b CROSS JOIN LATERAL unnest(b.inputs) AS i (id) WHERE b.state = 'running'
UNION
SELECT i.id
  FROM headrace.product_slot s
 CROSS JOIN LATERAL unnest(s.failed_inputs || s.inputs) AS i (id)
 WHERE s.due_at IS NOT NULL OR s.failures > 0;

-- name: parents
-- What some files were built from, by their lineage or by what they were last confirmed from.
SELECT l.parent FROM headrace.product_link l WHERE l.child = ANY (%(ids)s::bigint[])
UNION
SELECT i.id
  FROM headrace.product_file f
 CROSS JOIN LATERAL unnest(f.inputs) AS i (id)
 WHERE f.id = ANY (%(ids)s::bigint[]);

-- name: superseded
-- Those of some files that are there, or should be, and of which a higher version is present.
SELECT f.id
  FROM headrace.product_file f
 WHERE f.id = ANY (%(ids)s::bigint[]) AND f.state IN ('present', 'missing', 'corrupt') AND NOT f.is_newest
   AND EXISTS (SELECT FROM headrace.product_file n
                WHERE n.product_id = f.product_id AND n.day = f.day AND n.key = f.key AND n.is_newest
                  AND (n.interface, n.quality, n.revision) > (f.interface, f.quality, f.revision));

-- name: marked
-- Those of some files that are newest or released, or inputs of a running build or of an output that is due or failed.
SELECT f.id FROM headrace.product_file f WHERE f.id = ANY (%(ids)s::bigint[]) AND f.is_newest
UNION
SELECT t.file_id FROM headrace.product_release_file t WHERE t.file_id = ANY (%(ids)s::bigint[])
UNION
SELECT i.id
  FROM headrace.product_build b
 CROSS JOIN LATERAL unnest(b.inputs) AS i (id)
 WHERE b.state = 'running' AND i.id = ANY (%(ids)s::bigint[])
UNION
SELECT i.id
  FROM headrace.product_slot s
 CROSS JOIN LATERAL unnest(s.failed_inputs || s.inputs) AS i (id)
 WHERE (s.due_at IS NOT NULL OR s.failures > 0) AND i.id = ANY (%(ids)s::bigint[]);

-- name: without_jit
-- Until the transaction ends, queries are not compiled: for a look into indexes that takes longer than the look.
SET LOCAL jit = off;

-- name: children
-- What was built from some files, by its lineage or by what it was last confirmed from: (parent, child).
SELECT x.id, c.id
  FROM unnest(%(ids)s::bigint[]) AS x (id)
 CROSS JOIN LATERAL (SELECT l.child FROM headrace.product_link l WHERE l.parent = x.id
                     UNION
                     SELECT f.id FROM headrace.product_file f WHERE f.inputs @> ARRAY[x.id]) AS c (id);

-- name: lock_removed
-- Those of some files whose row says removed, held so that nobody brings one back meanwhile.
SELECT f.id
  FROM headrace.product_file f
 WHERE f.id = ANY (%(ids)s::bigint[]) AND f.state = 'removed'
   FOR UPDATE SKIP LOCKED;

-- name: refusals
-- Why some files may not be forgotten: (id, file name, reason).
SELECT f.id, f.filename, 'is part of the release ' || r.name AS reason
  FROM headrace.product_file f
  JOIN headrace.product_release_file t ON t.file_id = f.id
  JOIN headrace.product_release r ON r.id = t.release_id
 WHERE f.id = ANY (%(ids)s::bigint[])
UNION
SELECT f.id, f.filename, 'is read or written by the running build ' || b.id
  FROM headrace.product_build b
  JOIN headrace.process p ON p.id = b.process_id
  JOIN headrace.product_file f
    ON f.id = ANY (b.inputs) OR (f.product_id = p.output_product AND f.day = b.day AND f.key = b.key)
 WHERE b.state = 'running' AND f.id = ANY (%(ids)s::bigint[])
UNION
SELECT f.id, f.filename, 'is being placed by ' || coalesce(f.host, 'a host')
  FROM headrace.product_file f
 WHERE f.id = ANY (%(ids)s::bigint[]) AND f.state = 'placing'
 ORDER BY 1, 3;

-- name: unname_outputs
-- Builds that made some files no longer point at them; the name of what they wrote stays.
UPDATE headrace.product_build b SET output_id = NULL WHERE b.output_id = ANY (%(ids)s::bigint[]);

-- name: reset_slots
-- Outputs that some files are, or failed with, begin anew: the query for stale outputs decides on them again.
UPDATE headrace.product_slot s
   SET due_at = NULL, reason = NULL, detail = '', failures = 0, failed_inputs = NULL, failed_code = NULL,
       has_given_up = false, kind = NULL, problem = NULL, updated_at = clock_timestamp()
 WHERE (s.due_at IS NOT NULL OR s.failures > 0)
   AND (s.failed_inputs && %(ids)s::bigint[]
        OR EXISTS (SELECT FROM headrace.product_file f
                     JOIN headrace.process p ON p.output_product = f.product_id
                    WHERE f.id = ANY (%(ids)s::bigint[]) AND p.id = s.process_id AND f.day = s.day AND f.key = s.key));

-- name: forget_arrivals
-- What is remembered of some files from when they lay in an incoming folder.
DELETE FROM headrace.product_arrival a
 USING headrace.product_file f
  JOIN headrace.mission m ON m.id = f.mission_id
 WHERE f.id = ANY (%(ids)s::bigint[]) AND a.path IN (f.source, m.incoming || '/' || f.filename);

-- name: forget_files
-- The rows of some files; their lineage goes with them.
DELETE FROM headrace.product_file f WHERE f.id = ANY (%(ids)s::bigint[]);

-- name: forget_parents
-- The lineage of some files upwards.
DELETE FROM headrace.product_link l WHERE l.child = ANY (%(ids)s::bigint[]);

-- name: count_as_delivered
-- Some files count as delivered: what they were built from is not compared with anything any more.
UPDATE headrace.product_file f SET inputs = NULL WHERE f.id = ANY (%(ids)s::bigint[]) AND f.inputs IS NOT NULL;

-- name: ask_for_a_plan
-- Missions whose stale outputs have to be looked for again.
UPDATE headrace.mission m
   SET planned_at = NULL, plan_asked_at = NULL
 WHERE m.id = ANY (%(missions)s::integer[]);

-- name: newest_places
-- The newest file of every product, day and key of a mission, and where it lies.
SELECT m.root, f.place, f.filename
  FROM headrace.product_file f
  JOIN headrace.mission m ON m.id = f.mission_id
 WHERE f.mission_id = %(mission)s AND f.is_newest;
