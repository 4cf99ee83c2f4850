-- A job that does what hdbpp-ttl did by cron: delete what is older than the time to live of its attribute.
--
-- att_conf.ttl is in hours and is rounded up to N whole days; rows of table_name from before the midnight that began
-- the day N days ago go. Null or 0: kept for ever. Every config key may be left out, and so may config:
--   batch_rows               rows per transaction (10000)
--   max_rows                 rows per run; the next run goes on (no bound)
--   dry_run                  true: only count, in NOTICEs
--   compress_threshold_days  rows older than so many days stay: their chunks are compressed (0: none are)
--   timezone                 whose midnight (the session's TimeZone)
--   schema                   where att_conf is (the first of the search_path that has one)
--   db_report                true: write ttl_jobs and ttl_stats, beside att_conf (false)
--
-- The old script's rest_endpoint has no successor here: SQL cannot send an HTTP PUT. Headrace's alerts and metrics
-- take its place.
--
-- Unlike the old script: an attribute that fails makes the job fail, after the others are done and committed; a
-- negative ttl is such a failure, and deletes nothing; a config key that does not exist is refused (a misspelt dry_run
-- would delete); ttl_stats also has rows of attributes that failed.
--
-- The caller needs SELECT on att_conf, SELECT and DELETE on the data tables, and an index (att_conf_id, data_time).
-- It commits: not for jobs with `atomic`. No SET clause and no SECURITY DEFINER, which forbid COMMIT: hence pg_catalog
-- before everything. Nothing from a table or from config becomes SQL unless it is a quoted identifier.
CREATE OR REPLACE PROCEDURE headrace.hdbpp_ttl(job_id integer, config jsonb) LANGUAGE plpgsql AS $body$
DECLARE
    -- Beyond two thousand years a date may overflow; no archive is older.
    longest_days CONSTANT integer := 730000;
    given jsonb := '{}';
    wrong text;
    batch_rows bigint;
    max_rows bigint;
    dry_run boolean;
    zone text;
    att_conf regclass;
    home text;
    today date;
    oldest timestamptz := '-infinity';
    newest timestamptz;
    floor_time timestamptz;
    attribute record;
    target text;
    column_type text;
    room bigint;
    seen bigint;
    gone bigint;
    deleted bigint;
    total bigint := 0;
    attributes bigint := 0;
    touched bigint := 0;
    trouble text;
    failures text[] := '{}';
    run_start timestamptz := pg_catalog.clock_timestamp();
    attribute_start timestamptz;
    report_id bigint;
BEGIN
    IF pg_catalog.jsonb_typeof(config) = 'object' THEN
        given := pg_catalog.jsonb_strip_nulls(config);
    ELSIF pg_catalog.jsonb_typeof(config) <> 'null' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('the config of job %s is not a JSON object', job_id),
            HINT = 'Write for example {"batch_rows": 10000}, or leave it null.';
    END IF;
    SELECT pg_catalog.string_agg(
               CASE WHEN known.key IS NULL THEN pg_catalog.format('hdbpp_ttl knows no %s', entry.key)
                    ELSE pg_catalog.format('%s must be %s', entry.key, known.meaning) END, '; ')
      INTO wrong
      FROM pg_catalog.jsonb_each_text(given) AS entry (key, value)
      LEFT JOIN (VALUES ('batch_rows', '^[1-9][0-9]{0,8}$', 'a whole number from 1'),
                        ('max_rows', '^[1-9][0-9]{0,14}$', 'a whole number from 1'),
                        ('dry_run', '^(true|false)$', 'true or false'),
                        ('compress_threshold_days', '^[0-9]{1,5}$', 'a whole number of days'),
                        ('timezone', '.', 'the name of a time zone'),
                        ('schema', '.', 'the name of a schema'),
                        ('db_report', '^(true|false)$', 'true or false')) AS known (key, pattern, meaning)
        ON known.key = entry.key
     WHERE known.key IS NULL OR entry.value !~ known.pattern;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('the config of job %s is not valid: %s', job_id, wrong),
            HINT = 'Its keys: batch_rows, max_rows, dry_run, compress_threshold_days, timezone, schema, db_report.';
    END IF;
    batch_rows := coalesce((given ->> 'batch_rows')::bigint, 10000);
    max_rows := (given ->> 'max_rows')::bigint;
    dry_run := coalesce((given ->> 'dry_run')::boolean, false);
    zone := coalesce(given ->> 'timezone', pg_catalog.current_setting('TimeZone'));

    att_conf := pg_catalog.to_regclass(
        CASE WHEN given ? 'schema' THEN pg_catalog.format('%I.att_conf', given ->> 'schema') ELSE 'att_conf' END);
    IF att_conf IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_table',
            MESSAGE = CASE WHEN given ? 'schema'
                           THEN pg_catalog.format('schema %I has no table att_conf', given ->> 'schema')
                           ELSE 'no schema of the search_path has a table att_conf' END,
            HINT = 'Name the schema of the HDB++ tables in the config of the job: {"schema": "hdb"}.';
    END IF;
    SELECT space.nspname::text INTO home
      FROM pg_catalog.pg_class AS class JOIN pg_catalog.pg_namespace AS space ON space.oid = class.relnamespace
     WHERE class.oid = att_conf;

    -- A run that goes on past midnight keeps the day it began in.
    today := pg_catalog.timezone(zone, run_start)::date;
    IF (given ->> 'compress_threshold_days')::integer > 0 THEN
        oldest := pg_catalog.timezone(zone, (today - (given ->> 'compress_threshold_days')::integer)::timestamp);
    END IF;

    IF (given ->> 'db_report')::boolean AND NOT dry_run THEN
        BEGIN
            EXECUTE pg_catalog.format('INSERT INTO %I.ttl_jobs (start_time) VALUES ($1) RETURNING ttl_job_id', home)
               INTO report_id USING run_start;
        EXCEPTION WHEN OTHERS THEN
            -- Not a reason to keep old data; but who asked for the report learns that there is none.
            failures := pg_catalog.array_append(failures, pg_catalog.format('db_report (%s)', SQLERRM));
            RAISE WARNING 'hdbpp_ttl: no report is written: %', SQLERRM;
        END;
    END IF;
    -- Inside somebody's transaction this fails, before anything is deleted.
    COMMIT;

    -- The first COMMIT in the loop makes PostgreSQL read the whole list: what changes later is for the next run.
    FOR attribute IN EXECUTE pg_catalog.format(
        'SELECT att_conf_id::bigint AS id, coalesce(att_name::text, att_conf_id::text) AS name,'
        ' table_name::text AS table_name, ttl::numeric AS hours'
        ' FROM %I.att_conf WHERE ttl IS NOT NULL AND ttl <> 0 ORDER BY att_conf_id', home)
    LOOP
        attributes := attributes + 1;
        attribute_start := pg_catalog.clock_timestamp();
        deleted := 0;
        trouble := NULL;

        BEGIN
            IF attribute.hours < 0 THEN
                RAISE EXCEPTION 'its ttl is negative: % hours', attribute.hours;
            END IF;
            newest := pg_catalog.timezone(zone,
                (today - least(pg_catalog.ceil(attribute.hours / 24), longest_days)::integer)::timestamp);
            floor_time := oldest;

            -- A name beside att_conf, one on the search_path, or schema.table, each exactly as written; at last what
            -- SQL would make of it, folded or with its own quotes.
            SELECT pg_catalog.format('%I.%I', space.nspname, class.relname), column_of.typname
              INTO target, column_type
              FROM (SELECT coalesce(
                        pg_catalog.to_regclass(pg_catalog.format('%I.%I', home, attribute.table_name)),
                        pg_catalog.to_regclass(pg_catalog.quote_ident(attribute.table_name)),
                        CASE WHEN attribute.table_name ~ '^[^.]+[.][^.]+$' THEN
                            pg_catalog.to_regclass(pg_catalog.format('%I.%I',
                                pg_catalog.split_part(attribute.table_name, '.', 1),
                                pg_catalog.split_part(attribute.table_name, '.', 2))) END,
                        pg_catalog.to_regclass(attribute.table_name)) AS oid) AS found
              JOIN pg_catalog.pg_class AS class ON class.oid = found.oid AND class.relkind IN ('r', 'p')
              JOIN pg_catalog.pg_namespace AS space ON space.oid = class.relnamespace
              LEFT JOIN LATERAL (
                    SELECT pg_catalog.max(pg_catalog.format_type(a.atttypid, NULL))
                               FILTER (WHERE a.attname = 'data_time') AS typname
                      FROM pg_catalog.pg_attribute AS a
                     WHERE a.attrelid = class.oid AND a.attname IN ('att_conf_id', 'data_time') AND NOT a.attisdropped
                    HAVING pg_catalog.count(*) = 2) AS column_of ON true;
            IF target IS NULL THEN
                RAISE EXCEPTION 'there is no table %', coalesce(pg_catalog.quote_ident(attribute.table_name), '(null)');
            ELSIF column_type IS NULL THEN
                RAISE EXCEPTION 'table % lacks the column att_conf_id or data_time', target;
            ELSIF column_type <> 'timestamp with time zone' THEN
                RAISE EXCEPTION 'data_time of table % is a %, not a timestamp with time zone', target, column_type;
            END IF;
        EXCEPTION WHEN OTHERS THEN
            trouble := SQLERRM;
        END;

        WHILE trouble IS NULL LOOP
            room := least(batch_rows, max_rows - total);
            BEGIN
                IF dry_run THEN
                    EXECUTE pg_catalog.format(
                        'SELECT pg_catalog.count(*), 0 FROM %s'
                        ' WHERE att_conf_id = $1 AND data_time >= $2 AND data_time < $3', target)
                       INTO gone, seen USING attribute.id, floor_time, newest;
                ELSE
                    -- ctid is unique in one partition only. The batch's last moment bounds the second look at the
                    -- table, and is where the next batch starts: it need not read past what the earlier ones deleted.
                    EXECUTE pg_catalog.format(
                        'WITH batch AS MATERIALIZED ('
                        '    SELECT tableoid AS part, ctid AS place, data_time AS at FROM %1$s'
                        '     WHERE att_conf_id = $1 AND data_time >= $2 AND data_time < $3'
                        '     ORDER BY data_time LIMIT $4),'
                        ' gone AS ('
                        '    DELETE FROM %1$s AS doomed USING batch'
                        '     WHERE doomed.tableoid = batch.part AND doomed.ctid = batch.place'
                        '       AND doomed.att_conf_id = $1 AND doomed.data_time >= $2 AND doomed.data_time < $3'
                        '       AND doomed.data_time <= (SELECT pg_catalog.max(at) FROM batch) RETURNING 1)'
                        ' SELECT (SELECT pg_catalog.count(*) FROM gone), pg_catalog.count(*), pg_catalog.max(at)'
                        '   FROM batch', target)
                       INTO gone, seen, floor_time USING attribute.id, floor_time, newest, room;
                    IF gone = 0 AND seen > 0 THEN
                        RAISE EXCEPTION 'a trigger, a policy or another session keeps its rows in table %', target;
                    END IF;
                END IF;
                deleted := deleted + gone;
                total := total + gone;
            EXCEPTION WHEN OTHERS THEN
                trouble := SQLERRM;
            END;
            -- Not inside the block above, whose handler is a subtransaction.
            COMMIT;
            EXIT WHEN trouble IS NOT NULL OR seen < room OR total >= max_rows OR dry_run;
        END LOOP;

        IF deleted > 0 THEN
            touched := touched + 1;
            RAISE NOTICE 'hdbpp_ttl: %: % rows from before % %', attribute.name, deleted, newest,
                CASE WHEN dry_run THEN 'would be deleted' ELSE 'deleted' END;
        END IF;
        IF trouble IS NOT NULL THEN
            failures := pg_catalog.array_append(failures, pg_catalog.format('%s (%s)', attribute.name, trouble));
            RAISE WARNING 'hdbpp_ttl: %: %', attribute.name, trouble;
        END IF;
        IF report_id IS NOT NULL THEN
            BEGIN
                EXECUTE pg_catalog.format(
                    'INSERT INTO %I.ttl_stats (ttl_job_id, att_conf_id, deleted_rows, duration, error_desc)'
                    ' VALUES ($1, $2, $3, $4, $5)', home)
                  USING report_id, attribute.id, deleted, pg_catalog.clock_timestamp() - attribute_start, trouble;
            EXCEPTION WHEN OTHERS THEN
                failures := pg_catalog.array_append(
                    failures, pg_catalog.format('db_report of %s (%s)', attribute.name, SQLERRM));
                RAISE WARNING 'hdbpp_ttl: %: no row in the report: %', attribute.name, SQLERRM;
            END;
            COMMIT;
        END IF;
        IF total >= max_rows AND NOT dry_run THEN
            RAISE NOTICE 'hdbpp_ttl: max_rows is reached; the next run goes on';
            EXIT;
        END IF;
    END LOOP;

    RAISE NOTICE 'hdbpp_ttl: % rows of % attributes %; % attributes looked at, % failures', total, touched,
        CASE WHEN dry_run THEN 'would be deleted' ELSE 'deleted' END, attributes, pg_catalog.cardinality(failures);
    IF pg_catalog.cardinality(failures) > 0 THEN
        trouble := pg_catalog.format('hdbpp_ttl: %s failures in %s attributes: %s%s',
            pg_catalog.cardinality(failures), attributes, pg_catalog.array_to_string(failures[1:5], '; '),
            CASE WHEN pg_catalog.cardinality(failures) > 5 THEN '; ...' END);
    END IF;
    IF report_id IS NOT NULL THEN
        BEGIN
            EXECUTE pg_catalog.format(
                'UPDATE %I.ttl_jobs SET duration = $2, error_desc = $3 WHERE ttl_job_id = $1', home)
              USING report_id, pg_catalog.clock_timestamp() - run_start,
                    CASE WHEN pg_catalog.cardinality(failures) > 0 THEN trouble END;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'hdbpp_ttl: the report is not closed: %', SQLERRM;
        END;
        COMMIT;
    END IF;
    IF pg_catalog.cardinality(failures) > 0 THEN
        RAISE EXCEPTION USING MESSAGE = trouble,
            DETAIL = pg_catalog.array_to_string(failures[1:100], E'\n'),
            HINT = 'Everything else is done and committed. Each failure is also a warning of this run.';
    END IF;
END
$body$;

COMMENT ON PROCEDURE headrace.hdbpp_ttl(integer, jsonb) IS
    'Deletes rows that are older than the ttl of their attribute in att_conf, in batches that commit; a nightly job.';
