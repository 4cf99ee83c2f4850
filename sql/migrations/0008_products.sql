-- Products: what a mission's files are, which there are, from what and by which code each was built, and what is due.
-- Lives in the database that `products.database` names: a file's row and its mark "done" are one.

CREATE TABLE headrace.mission (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    root text NOT NULL,
    incoming text NOT NULL,
    codes text NOT NULL,
    inspectors text NOT NULL,
    quarantine text NOT NULL,
    scratch text NOT NULL,
    hosts text[] NOT NULL DEFAULT '{}',
    cut_off boolean NOT NULL DEFAULT true,
    neighbours boolean NOT NULL DEFAULT true,
    is_legacy boolean NOT NULL DEFAULT false,
    definition jsonb NOT NULL,
    loaded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    planned_at timestamptz,
    plan_asked_at timestamptz,
    ingest_asked_at timestamptz,
    plan_seconds double precision NOT NULL DEFAULT 0,
    checked_at timestamptz,
    check_asked_at timestamptz
);
COMMENT ON TABLE headrace.mission IS 'A mission and its folders, all absolute; definition: the file as it was loaded, what the next one is compared with.';
COMMENT ON COLUMN headrace.mission.hosts IS 'The hosts that see its files; empty: every one.';

CREATE TABLE headrace.satellite (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mission_id integer NOT NULL REFERENCES headrace.mission ON DELETE CASCADE,
    name text NOT NULL,
    UNIQUE (mission_id, name)
);

CREATE TABLE headrace.instrument (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    satellite_id integer NOT NULL REFERENCES headrace.satellite ON DELETE CASCADE,
    name text NOT NULL,
    UNIQUE (satellite_id, name)
);

CREATE TABLE headrace.product (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mission_id integer NOT NULL REFERENCES headrace.mission ON DELETE CASCADE,
    instrument_id integer NOT NULL REFERENCES headrace.instrument,
    name text NOT NULL,
    level double precision NOT NULL,
    format text NOT NULL,
    folder text NOT NULL,
    description text NOT NULL DEFAULT '',
    covers text CHECK (covers IN ('hour', 'day', 'month', 'year')),
    min_bytes bigint NOT NULL DEFAULT 0,
    trailer bytea,
    marker text,
    inspector jsonb,
    cut_off boolean,
    is_active boolean NOT NULL DEFAULT true,
    UNIQUE (mission_id, name)
);
COMMENT ON COLUMN headrace.product.inspector IS 'file, arguments, version and description of the module that tells its files; NULL: the name says it all.';
COMMENT ON COLUMN headrace.product.cut_off IS 'NULL: as the mission.';

CREATE TABLE headrace.process (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mission_id integer NOT NULL REFERENCES headrace.mission ON DELETE CASCADE,
    name text NOT NULL,
    output_product integer REFERENCES headrace.product,
    timebase text NOT NULL
        CHECK (timebase IN ('FILE', 'RUN', 'HOURLY', 'DAILY', 'WEEKLY', 'MONTHLY', 'YEARLY', 'ORBIT')),
    rank integer NOT NULL DEFAULT 0,
    satellite_id integer REFERENCES headrace.satellite,
    neighbours boolean,
    on_code_change text NOT NULL DEFAULT 'rebuild' CHECK (on_code_change IN ('rebuild', 'hold')),
    extra_params text[] NOT NULL DEFAULT '{}',
    attempts integer NOT NULL DEFAULT 3 CHECK (attempts >= 1),
    priority integer NOT NULL DEFAULT 0,
    is_active boolean NOT NULL DEFAULT true,
    UNIQUE (mission_id, name)
);
COMMENT ON COLUMN headrace.process.rank IS 'Its place in the topological order of the graph: inputs have lower ones.';
COMMENT ON COLUMN headrace.process.satellite_id IS 'ORBIT: whose intervals.';

CREATE TABLE headrace.process_input (
    process_id integer NOT NULL REFERENCES headrace.process ON DELETE CASCADE,
    position integer NOT NULL CHECK (position BETWEEN 0 AND 62),
    preference integer NOT NULL DEFAULT 0,
    product_id integer NOT NULL REFERENCES headrace.product,
    is_required boolean NOT NULL DEFAULT true,
    yesterday integer NOT NULL DEFAULT 0 CHECK (yesterday >= 0),
    tomorrow integer NOT NULL DEFAULT 0 CHECK (tomorrow >= 0),
    PRIMARY KEY (process_id, position, preference)
);
CREATE INDEX process_input_product ON headrace.process_input (product_id);
COMMENT ON COLUMN headrace.process_input.preference IS 'Of several products at one position the lowest that is there for a day is taken.';

CREATE TABLE headrace.code (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    process_id integer NOT NULL REFERENCES headrace.process ON DELETE CASCADE,
    filename text NOT NULL,
    folder text NOT NULL DEFAULT '',
    description text NOT NULL DEFAULT '',
    interface integer NOT NULL CHECK (interface >= 1),
    quality integer NOT NULL CHECK (quality >= 0),
    revision integer NOT NULL CHECK (revision >= 0),
    output_interface integer NOT NULL DEFAULT 1 CHECK (output_interface >= 1),
    valid_from date NOT NULL DEFAULT '-infinity',
    valid_until date NOT NULL DEFAULT 'infinity',
    arguments text[] NOT NULL DEFAULT '{}',
    environment jsonb NOT NULL DEFAULT '{}',
    timeout interval,
    memory_bytes bigint,
    output_bytes bigint,
    cpu integer NOT NULL DEFAULT 1 CHECK (cpu >= 1),
    written date,
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'held', 'retired')),
    sha256 text,
    loaded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    approved_at timestamptz,
    approved_by text,
    CHECK (valid_from <= valid_until),
    UNIQUE (process_id, interface, quality, revision)
);
CREATE INDEX code_of_process ON headrace.code (process_id, state);
COMMENT ON COLUMN headrace.code.state IS 'held: not used until a person approves it. For a process and a day at most one is active.';
COMMENT ON COLUMN headrace.code.sha256 IS 'Of the executable when it was first run.';

CREATE TABLE headrace.orbit (
    satellite_id integer NOT NULL REFERENCES headrace.satellite ON DELETE CASCADE,
    number integer NOT NULL,
    start_at timestamptz NOT NULL,
    stop_at timestamptz NOT NULL,
    PRIMARY KEY (satellite_id, number),
    CHECK (start_at < stop_at)
);
CREATE INDEX orbit_span ON headrace.orbit USING gist (tstzrange(start_at, stop_at));

CREATE TABLE headrace.product_build (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    process_id integer NOT NULL REFERENCES headrace.process,
    slot_id bigint,
    code_id integer REFERENCES headrace.code,
    day date NOT NULL,
    key text NOT NULL DEFAULT '',
    reason text NOT NULL,
    detail text NOT NULL DEFAULT '',
    inputs bigint[] NOT NULL DEFAULT '{}',
    state text NOT NULL CHECK (state IN ('running', 'succeeded', 'unchanged', 'failed', 'lost', 'cancelled', 'imported')),
    kind text,
    problem text,
    attempt integer NOT NULL DEFAULT 1,
    host text,
    worker text,
    lane integer,
    run bigint,
    token text,
    process_group integer,
    group_started bigint,
    cpu integer NOT NULL DEFAULT 1,
    memory_bytes bigint,
    scratch text,
    command text[] NOT NULL DEFAULT '{}',
    environment jsonb NOT NULL DEFAULT '{}',
    code_sha256 text,
    exit_status integer,
    signal integer,
    stdout text NOT NULL DEFAULT '',
    stderr text NOT NULL DEFAULT '',
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    cpu_seconds double precision,
    peak_bytes bigint,
    output_id bigint,
    output_name text
);
CREATE INDEX product_build_running ON headrace.product_build (host) WHERE state = 'running';
-- Two workers never build one output at once: the second one cannot write this row.
CREATE UNIQUE INDEX product_build_one_per_slot ON headrace.product_build (slot_id) WHERE state = 'running';
CREATE INDEX product_build_slot ON headrace.product_build (slot_id, id DESC);
CREATE INDEX product_build_output ON headrace.product_build (output_id);
CREATE INDEX product_build_history ON headrace.product_build (process_id, id DESC);
COMMENT ON TABLE headrace.product_build IS 'Each run of a code: inputs in their order, command, host, how long, how it ended, what it wrote.';
COMMENT ON COLUMN headrace.product_build.worker IS 'Boot, namespace, pid and start of the process that is responsible: while it lives nobody else ends the build.';
COMMENT ON COLUMN headrace.product_build.token IS 'Stands in the environment of every process of the run, so that survivors are found.';
COMMENT ON COLUMN headrace.product_build.group_started IS 'Start of the group''s leader in clock ticks after boot: its pid may come again.';

CREATE TABLE headrace.product_file (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mission_id integer NOT NULL REFERENCES headrace.mission ON DELETE CASCADE,
    product_id integer NOT NULL REFERENCES headrace.product,
    filename text NOT NULL,
    place text NOT NULL,
    day date NOT NULL,
    key text NOT NULL DEFAULT '',
    start_at timestamptz NOT NULL,
    stop_at timestamptz NOT NULL,
    interface integer NOT NULL,
    quality integer NOT NULL,
    revision integer NOT NULL,
    state text NOT NULL CHECK (state IN ('placing', 'present', 'missing', 'corrupt', 'removed')),
    is_newest boolean NOT NULL DEFAULT false,
    is_forced boolean NOT NULL DEFAULT false,
    sha256 text,
    sha1 text,
    bytes bigint,
    modified_at timestamptz,
    keywords text NOT NULL DEFAULT '',
    notes jsonb,
    inputs bigint[],
    code_id integer REFERENCES headrace.code,
    build_id bigint REFERENCES headrace.product_build,
    host text,
    source text,
    temporary text,
    registered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    checked_at timestamptz,
    CHECK (start_at <= stop_at),
    UNIQUE (mission_id, filename),
    UNIQUE (product_id, day, key, interface, quality, revision)
);
-- The one file of a product, day and key that others are built from: the highest version that is present.
CREATE UNIQUE INDEX product_file_newest ON headrace.product_file (product_id, day, key) WHERE is_newest;
CREATE INDEX product_file_span ON headrace.product_file USING gist (tstzrange(start_at, stop_at, '[]')) WHERE is_newest;
CREATE INDEX product_file_trouble ON headrace.product_file (product_id, day, key) WHERE state IN ('missing', 'corrupt');
CREATE INDEX product_file_inputs ON headrace.product_file USING gin (inputs) WHERE inputs IS NOT NULL;
CREATE INDEX product_file_placing ON headrace.product_file (host) WHERE state = 'placing';
COMMENT ON COLUMN headrace.product_file.place IS 'Path below the mission''s root, escaped as workers.paths describes; absolute where it lies outside.';
COMMENT ON COLUMN headrace.product_file.state IS 'placing: the move into its place is not known to be done; nobody may read it.';
COMMENT ON COLUMN headrace.product_file.key IS 'What tells apart files of one product and day: hour, orbit, keywords; empty where there is one.';
COMMENT ON COLUMN headrace.product_file.inputs IS 'Ids of the files that it was last built, or confirmed, from, ascending; NULL: delivered.';

-- Keeps is_newest true whoever writes. The advisory lock makes two writers of one product take turns; one lock for each
-- product, day and key would be finer, but a transaction that places many files would fill the server's lock table.
CREATE FUNCTION headrace.product_file_mark_newest() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    one headrace.product_file := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
    best bigint;
BEGIN
    IF TG_OP = 'INSERT' AND one.state <> 'present' THEN
        RETURN NULL;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('headrace.newest'), one.product_id);
    SELECT f.id INTO best FROM headrace.product_file f
     WHERE f.product_id = one.product_id AND f.day = one.day AND f.key = one.key AND f.state = 'present'
     ORDER BY f.interface DESC, f.quality DESC, f.revision DESC LIMIT 1;
    UPDATE headrace.product_file f SET is_newest = false
     WHERE f.product_id = one.product_id AND f.day = one.day AND f.key = one.key AND f.is_newest
       AND f.id IS DISTINCT FROM best;
    UPDATE headrace.product_file f SET is_newest = true WHERE f.id = best AND NOT f.is_newest;
    RETURN NULL;
END
$$;
CREATE TRIGGER mark_newest AFTER INSERT OR DELETE OR UPDATE OF state ON headrace.product_file
    FOR EACH ROW EXECUTE FUNCTION headrace.product_file_mark_newest();

CREATE TABLE headrace.product_link (
    parent bigint NOT NULL REFERENCES headrace.product_file ON DELETE CASCADE,
    child bigint NOT NULL REFERENCES headrace.product_file ON DELETE CASCADE,
    PRIMARY KEY (child, parent),
    CHECK (parent <> child)
);
CREATE INDEX product_link_parent ON headrace.product_link (parent);
COMMENT ON TABLE headrace.product_link IS 'Lineage: parent was an input of child.';

CREATE TABLE headrace.product_slot (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    process_id integer NOT NULL REFERENCES headrace.process ON DELETE CASCADE,
    day date NOT NULL,
    key text NOT NULL DEFAULT '',
    start_at timestamptz NOT NULL,
    stop_at timestamptz NOT NULL,
    due_at timestamptz,
    reason text,
    detail text NOT NULL DEFAULT '',
    rank integer NOT NULL DEFAULT 0,
    priority integer NOT NULL DEFAULT 0,
    force text CHECK (force IN ('interface', 'quality', 'revision')),
    forced_at timestamptz,
    is_wanted boolean NOT NULL DEFAULT false,
    failures integer NOT NULL DEFAULT 0,
    failed_inputs bigint[],
    failed_code integer,
    has_given_up boolean NOT NULL DEFAULT false,
    kind text,
    problem text,
    inputs bigint[],
    code_id integer,
    build_id bigint,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (process_id, day, key)
);
CREATE INDEX product_slot_due ON headrace.product_slot (priority DESC, rank, day, id) WHERE due_at IS NOT NULL;
CREATE INDEX product_slot_trouble ON headrace.product_slot (process_id) WHERE failures > 0;
CREATE INDEX product_slot_forced ON headrace.product_slot (process_id) WHERE force IS NOT NULL;
COMMENT ON TABLE headrace.product_slot IS
    'One output that a process has to keep up to date. due_at is what the query for stale outputs last said: it is asked again before a build.';
COMMENT ON COLUMN headrace.product_slot.has_given_up IS 'These inputs and this code have failed often enough; another set of them, or a person, begins anew.';
COMMENT ON COLUMN headrace.product_slot.inputs IS 'RUN processes, which have no file to say it: what they last ran on.';
COMMENT ON COLUMN headrace.product_slot.is_wanted IS 'A process without inputs: a person asked for this day.';

CREATE TABLE headrace.product_request (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mission_id integer NOT NULL REFERENCES headrace.mission ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('backfill', 'reprocess')),
    what jsonb NOT NULL,
    requested_by text NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    cancelled_at timestamptz,
    cancelled_by text
);

CREATE TABLE headrace.product_request_slot (
    request_id bigint NOT NULL REFERENCES headrace.product_request ON DELETE CASCADE,
    slot_id bigint NOT NULL REFERENCES headrace.product_slot ON DELETE CASCADE,
    done_at timestamptz,
    build_id bigint,
    PRIMARY KEY (request_id, slot_id)
);
CREATE INDEX product_request_slot_open ON headrace.product_request_slot (slot_id) WHERE done_at IS NULL;
COMMENT ON COLUMN headrace.product_request_slot.done_at IS 'When its slot was built, found to be up to date, or given up.';

CREATE TABLE headrace.product_quarantine (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mission_id integer NOT NULL REFERENCES headrace.mission ON DELETE CASCADE,
    host text NOT NULL,
    filename text NOT NULL,
    arrived_as text NOT NULL,
    kept_as text NOT NULL,
    state text NOT NULL DEFAULT 'moving' CHECK (state IN ('moving', 'held', 'retried', 'discarded')),
    reason text NOT NULL,
    message text NOT NULL,
    candidates text[] NOT NULL DEFAULT '{}',
    suggestion text,
    sha256 text,
    bytes bigint,
    arrived_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    settled_at timestamptz,
    settled_by text
);
CREATE INDEX product_quarantine_open ON headrace.product_quarantine (mission_id) WHERE state IN ('moving', 'held');
COMMENT ON TABLE headrace.product_quarantine IS 'Files that could not be taken in, where they are kept, and why.';

CREATE TABLE headrace.product_arrival (
    host text NOT NULL,
    path text NOT NULL,
    bytes bigint NOT NULL,
    changed_ns bigint NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    problem text,
    PRIMARY KEY (host, path)
);
COMMENT ON TABLE headrace.product_arrival IS 'Files in incoming folders that are not taken in yet: how they looked when they last changed.';

CREATE TABLE headrace.product_release (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mission_id integer NOT NULL REFERENCES headrace.mission ON DELETE CASCADE,
    name text NOT NULL,
    comment text NOT NULL DEFAULT '',
    tagged_by text NOT NULL,
    tagged_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    manifest_sha256 text,
    UNIQUE (mission_id, name)
);

CREATE TABLE headrace.product_release_file (
    release_id integer NOT NULL REFERENCES headrace.product_release,
    file_id bigint NOT NULL REFERENCES headrace.product_file,
    filename text NOT NULL,
    place text NOT NULL,
    sha256 text,
    bytes bigint,
    PRIMARY KEY (release_id, file_id)
);
CREATE INDEX product_release_file_file ON headrace.product_release_file (file_id);

CREATE FUNCTION headrace.product_release_is_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a release is never changed: tag another one' USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER is_final BEFORE UPDATE OR DELETE ON headrace.product_release_file
    FOR EACH ROW EXECUTE FUNCTION headrace.product_release_is_final();
CREATE FUNCTION headrace.product_release_is_open() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM headrace.product_release r WHERE r.id = NEW.release_id AND r.manifest_sha256 IS NOT NULL) THEN
        RAISE EXCEPTION 'a release is never changed: tag another one' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER is_open BEFORE INSERT ON headrace.product_release_file
    FOR EACH ROW EXECUTE FUNCTION headrace.product_release_is_open();
CREATE TRIGGER is_final BEFORE UPDATE OR DELETE ON headrace.product_release
    FOR EACH ROW WHEN (OLD.manifest_sha256 IS NOT NULL) EXECUTE FUNCTION headrace.product_release_is_final();

CREATE TABLE headrace.product_lane (
    host text NOT NULL,
    lane integer NOT NULL,
    sent_at timestamptz,
    PRIMARY KEY (host, lane)
);
COMMENT ON TABLE headrace.product_lane IS 'How many builds a host may have in hand, a row each; sent_at: a message for it is on its way.';

-- What each output of a process is to be built from, as the files stand: the heart of "staleness is a query".
-- since, until: days of slots, NULL for all. The arrays name outputs that are about to be built anew (product, day, key,
-- period); with from_due, so do the slots that are due or being built. What depends on one of them has_pending.
-- found: a bit per input position that has at least one file. own: of the inputs, those that cover the period itself.
CREATE FUNCTION headrace.product_expected(
    of_process integer, since date, until date,
    pending_products integer[], pending_days date[], pending_keys text[], pending_starts timestamptz[],
    pending_stops timestamptz[], from_due boolean
) RETURNS TABLE (
    day date, key text, start_at timestamptz, stop_at timestamptz, inputs bigint[], own bigint[], has_pending boolean,
    found bigint
) LANGUAGE plpgsql STABLE ROWS 10
SET search_path = pg_catalog SET timezone = 'UTC' SET plan_cache_mode = force_custom_plan AS $$
#variable_conflict use_column
DECLARE
    one headrace.process;
    unit text;
    step interval;
    low timestamptz;
    high timestamptz;
    driving integer;
    widest_before integer;
    widest_after integer;
    reads integer[];
    has_choice boolean;
    has_window boolean;
    has_several boolean;
    any_drives boolean;
BEGIN
    SELECT * INTO STRICT one FROM headrace.process p WHERE p.id = of_process;
    -- Plans are made for these values: what a process does not have (a choice, windows, days) costs it nothing, and only
    -- the files of its own inputs are read, by their index.
    SELECT max(i.yesterday), max(i.tomorrow), coalesce(min(i.position) FILTER (WHERE i.is_required), min(i.position)),
           array_agg(DISTINCT i.product_id), bool_or(i.preference > 0), bool_or(i.yesterday > 0 OR i.tomorrow > 0),
           count(DISTINCT i.position) > 1, NOT bool_or(i.is_required)
      INTO widest_before, widest_after, driving, reads, has_choice, has_window, has_several, any_drives
      FROM headrace.process_input i WHERE i.process_id = of_process;
    IF driving IS NULL THEN
        -- Without inputs there is no query that could tell its days: a person names them.
        RETURN QUERY
        SELECT s.day, s.key, s.start_at, s.stop_at, '{}'::bigint[], '{}'::bigint[], false, 0::bigint
          FROM headrace.product_slot s
         WHERE s.process_id = of_process AND s.is_wanted
           AND (since IS NULL OR s.day >= since) AND (until IS NULL OR s.day <= until);
        RETURN;
    END IF;
    unit := CASE one.timebase WHEN 'HOURLY' THEN 'hour' WHEN 'WEEKLY' THEN 'week' WHEN 'MONTHLY' THEN 'month'
                              WHEN 'YEARLY' THEN 'year' ELSE 'day' END;
    step := ('1 ' || unit)::interval;
    low := since::timestamptz - make_interval(days => widest_before);
    high := until::timestamptz + CASE WHEN unit = 'hour' THEN '1 day'::interval ELSE step END
          + make_interval(days => widest_after);
    IF one.timebase = 'ORBIT' THEN
        -- An orbit that begins on the last day may end days later.
        SELECT greatest(high, max(o.stop_at) + make_interval(days => widest_after)) INTO high
          FROM headrace.orbit o
         WHERE until IS NOT NULL AND o.satellite_id = one.satellite_id
           AND (since IS NULL OR o.start_at >= since::timestamptz) AND o.start_at < (until + 1)::timestamptz;
    END IF;

    IF one.timebase = 'FILE' AND NOT (has_choice OR has_window OR has_several) THEN
        -- The plain case, and the most frequent one: a file, an output. As below, without joins and groups.
        RETURN QUERY
        WITH waiting AS MATERIALIZED (
            SELECT w.day, w.key, min(w.start_at) AS start_at, max(w.stop_at) AS stop_at
              FROM (SELECT w.day, w.key, w.start_at, w.stop_at
                      FROM unnest(pending_products, pending_days, pending_keys, pending_starts, pending_stops)
                           AS w(product_id, day, key, start_at, stop_at)
                     WHERE w.product_id = ANY(reads)
                    UNION ALL
                    SELECT s.day, s.key, s.start_at, s.stop_at
                      FROM headrace.product_slot s JOIN headrace.process p ON p.id = s.process_id
                     WHERE from_due AND s.due_at IS NOT NULL AND p.output_product = ANY(reads)) w
             GROUP BY w.day, w.key
        )
        SELECT f.day, f.key, f.start_at, f.stop_at, ARRAY[f.id], ARRAY[f.id], false, 1::bigint << driving
          FROM headrace.product_file f
         WHERE f.is_newest AND f.product_id = ANY(reads)
           AND f.day BETWEEN coalesce(since, '-infinity') AND coalesce(until, 'infinity')
           AND NOT EXISTS (SELECT FROM waiting w WHERE w.day = f.day AND w.key = f.key)
        UNION ALL
        SELECT w.day, w.key, w.start_at, w.stop_at, '{}', '{}', true, 1::bigint << driving
          FROM waiting w WHERE w.day BETWEEN coalesce(since, '-infinity') AND coalesce(until, 'infinity');
        RETURN;
    END IF;

    IF one.timebase IN ('FILE', 'RUN') THEN
        RETURN QUERY
        WITH i AS MATERIALIZED (SELECT * FROM headrace.process_input pi WHERE pi.process_id = of_process),
        waiting AS MATERIALIZED (
            SELECT w.product_id, w.day, w.key, w.start_at, w.stop_at
              FROM unnest(pending_products, pending_days, pending_keys, pending_starts, pending_stops)
                   AS w(product_id, day, key, start_at, stop_at)
            UNION
            SELECT p.output_product, s.day, s.key, s.start_at, s.stop_at
              FROM headrace.product_slot s JOIN headrace.process p ON p.id = s.process_id
             WHERE from_due AND s.due_at IS NOT NULL AND p.output_product = ANY(reads)
        ),
        available AS MATERIALIZED (
            SELECT i.position, i.preference, i.yesterday, i.tomorrow, f.id, f.day, f.key, f.start_at, f.stop_at
              FROM i JOIN headrace.product_file f ON f.product_id = i.product_id
             WHERE f.is_newest AND f.product_id = ANY(reads)
               AND f.day BETWEEN coalesce(low::date, '-infinity') AND coalesce(until + widest_after, 'infinity')
               AND NOT EXISTS (SELECT FROM waiting w
                                WHERE w.product_id = f.product_id AND w.day = f.day AND w.key = f.key)
            UNION ALL
            SELECT i.position, i.preference, i.yesterday, i.tomorrow, NULL, w.day, w.key, w.start_at, w.stop_at
              FROM i JOIN waiting w ON w.product_id = i.product_id
        ),
        preferred AS MATERIALIZED (
            SELECT a.position, a.day, min(a.preference) AS preference
              FROM available a WHERE has_choice GROUP BY a.position, a.day
        ),
        chosen AS (
            SELECT a.* FROM available a
             WHERE NOT has_choice OR (a.position, a.day, a.preference) IN (SELECT p.position, p.day, p.preference FROM preferred p)
        ),
        slots AS MATERIALIZED (
            SELECT c.day, CASE one.timebase WHEN 'RUN' THEN '' ELSE c.key END AS key,
                   min(c.start_at) AS start_at, max(c.stop_at) AS stop_at
              FROM chosen c WHERE c.position = driving OR one.timebase = 'RUN' OR any_drives GROUP BY 1, 2
        ),
        spread AS MATERIALIZED (
            SELECT c.position, c.id, c.key, c.day, true AS is_own FROM chosen c
            UNION ALL
            SELECT c.position, c.id, c.key, c.day + n, false
              FROM chosen c, generate_series(-c.tomorrow, c.yesterday) AS n WHERE has_window AND n <> 0
        ),
        joined AS (
            SELECT s.day, s.key, s.start_at, s.stop_at, p.id, p.position, p.is_own
              FROM slots s JOIN spread p ON p.day = s.day AND p.key = s.key
            UNION ALL
            SELECT s.day, s.key, s.start_at, s.stop_at, p.id, p.position, p.is_own
              FROM slots s JOIN spread p ON p.day = s.day
             WHERE p.key <> s.key AND (one.timebase = 'RUN' OR p.key = '' AND p.position <> driving)
        )
        SELECT j.day, j.key, j.start_at, j.stop_at,
               coalesce(array_agg(DISTINCT j.id) FILTER (WHERE j.id IS NOT NULL), '{}'),
               coalesce(CASE WHEN has_window THEN array_agg(DISTINCT j.id) FILTER (WHERE j.id IS NOT NULL AND j.is_own)
                    ELSE array_agg(DISTINCT j.id) FILTER (WHERE j.id IS NOT NULL) END, '{}'),
               bool_or(j.id IS NULL), bit_or(1::bigint << j.position)
          FROM joined j
         WHERE (since IS NULL OR j.day >= since) AND (until IS NULL OR j.day <= until)
         GROUP BY j.day, j.key, j.start_at, j.stop_at;
        RETURN;
    END IF;

    RETURN QUERY
    WITH i AS MATERIALIZED (SELECT * FROM headrace.process_input pi WHERE pi.process_id = of_process),
    waiting AS MATERIALIZED (
        SELECT w.product_id, w.day, w.key, w.start_at, w.stop_at
          FROM unnest(pending_products, pending_days, pending_keys, pending_starts, pending_stops)
               AS w(product_id, day, key, start_at, stop_at)
        UNION
        SELECT p.output_product, s.day, s.key, s.start_at, s.stop_at
          FROM headrace.product_slot s JOIN headrace.process p ON p.id = s.process_id
         WHERE from_due AND s.due_at IS NOT NULL AND p.output_product = ANY(reads)
    ),
    available AS MATERIALIZED (
        SELECT i.position, i.preference, i.yesterday, i.tomorrow, f.id, f.day, f.start_at, f.stop_at
          FROM i JOIN headrace.product_file f ON f.product_id = i.product_id
         WHERE f.is_newest AND f.product_id = ANY(reads)
           AND (since IS NULL AND until IS NULL OR tstzrange(f.start_at, f.stop_at, '[]') && tstzrange(low, high))
           AND NOT EXISTS (SELECT FROM waiting w
                            WHERE w.product_id = f.product_id AND w.day = f.day AND w.key = f.key)
        UNION ALL
        SELECT i.position, i.preference, i.yesterday, i.tomorrow, NULL, w.day, w.start_at, w.stop_at
          FROM i JOIN waiting w ON w.product_id = i.product_id
         WHERE tstzrange(w.start_at, w.stop_at, '[]') && tstzrange(low, high)
    ),
    preferred AS MATERIALIZED (
        -- Of all files of these days: a preferred one counts even where it touches none of the days asked about.
        SELECT c.position, c.day, min(c.preference) AS preference
          FROM (SELECT i.position, f.day, i.preference
                  FROM i JOIN headrace.product_file f ON f.product_id = i.product_id
                 WHERE has_choice AND f.is_newest AND f.product_id = ANY(reads)
                   AND f.day IN (SELECT a.day FROM available a)
                UNION ALL
                SELECT i.position, w.day, i.preference
                  FROM i JOIN waiting w ON w.product_id = i.product_id WHERE has_choice) c
         GROUP BY c.position, c.day
    ),
    chosen AS (
        SELECT a.* FROM available a
         WHERE NOT has_choice OR (a.position, a.day, a.preference) IN (SELECT p.position, p.day, p.preference FROM preferred p)
    ),
    spread AS (
        SELECT d.at AS start_at, d.at + step - '1 microsecond'::interval AS stop_at, d.at::date AS day,
               CASE unit WHEN 'hour' THEN 'H=' || to_char(d.at, 'HH24') ELSE '' END AS key, c.position, c.id,
               d.at BETWEEN date_trunc(unit, c.start_at) AND c.stop_at AS is_own
          FROM chosen c,
               generate_series(date_trunc(unit, c.start_at - make_interval(days => c.tomorrow)),
                               c.stop_at + make_interval(days => c.yesterday), step) AS d(at)
         WHERE one.timebase <> 'ORBIT'
        UNION ALL
        SELECT o.start_at, o.stop_at - '1 microsecond'::interval, o.start_at::date, 'ORBIT=' || o.number, c.position, c.id,
               c.start_at < o.stop_at AND c.stop_at >= o.start_at
          FROM chosen c JOIN headrace.orbit o ON o.satellite_id = one.satellite_id
               AND tstzrange(o.start_at, o.stop_at)
                   && tstzrange(c.start_at - make_interval(days => c.tomorrow),
                                c.stop_at + make_interval(days => c.yesterday), '[]')
         WHERE one.timebase = 'ORBIT'
    )
    SELECT s.day, s.key, s.start_at, s.stop_at,
           coalesce(array_agg(DISTINCT s.id) FILTER (WHERE s.id IS NOT NULL), '{}'),
           coalesce(CASE WHEN has_window THEN array_agg(DISTINCT s.id) FILTER (WHERE s.id IS NOT NULL AND s.is_own)
                    ELSE array_agg(DISTINCT s.id) FILTER (WHERE s.id IS NOT NULL) END, '{}'),
           bool_or(s.id IS NULL), bit_or(1::bigint << s.position)
      FROM spread s
     WHERE (since IS NULL OR s.day >= since) AND (until IS NULL OR s.day <= until)
     GROUP BY s.day, s.key, s.start_at, s.stop_at
    HAVING bool_or(s.is_own);
END
$$;
COMMENT ON FUNCTION headrace.product_expected IS 'The outputs that a process has to keep up to date, and the files that each is to be built from.';

REVOKE ALL ON FUNCTION headrace.product_file_mark_newest(), headrace.product_release_is_final(),
    headrace.product_release_is_open(),
    headrace.product_expected(integer, date, date, integer[], date[], text[], timestamptz[], timestamptz[], boolean)
  FROM PUBLIC;
