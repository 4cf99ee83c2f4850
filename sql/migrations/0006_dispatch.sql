-- Dispatch: how far each PgQ consumer has come, what could not be applied, and the partitions that were made.
-- Lives in each database that events are dispatched into: a position commits with the rows of its batch.

CREATE TABLE headrace.dispatch_position (
    consumer text PRIMARY KEY,
    queue text NOT NULL,
    registered_as text NOT NULL,
    tick bigint,
    tick_at timestamptz,
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'parked')),
    problem text,
    parked_at timestamptz,
    sent_tick bigint,
    sent_at timestamptz,
    sliced_tick bigint,
    slices integer CHECK (slices > 0),
    batches bigint NOT NULL DEFAULT 0,
    events bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE headrace.dispatch_position IS
    'One row per consumer. Its lock is what makes a doubled message harmless; only register, adopt and rewind insert it.';
COMMENT ON COLUMN headrace.dispatch_position.tick IS 'The last PgQ tick whose batch is applied here; null: not known, parked.';
COMMENT ON COLUMN headrace.dispatch_position.tick_at IS 'When that tick was made, by the source''s clock.';
COMMENT ON COLUMN headrace.dispatch_position.sent_tick IS 'The end tick of the batch whose message is on its way.';
COMMENT ON COLUMN headrace.dispatch_position.sliced_tick IS 'The end tick of the batch that is being applied in slices.';

CREATE TABLE headrace.dispatch_late (
    consumer text PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE headrace.dispatch_late IS
    'Consumers of which people were told that they are late. Beside the position, whose row a long batch locks.';

CREATE TABLE headrace.dispatch_leaf (
    consumer text NOT NULL,
    leaf_schema text NOT NULL,
    leaf_name text NOT NULL,
    root_schema text NOT NULL,
    root_name text NOT NULL,
    PRIMARY KEY (consumer, leaf_schema, leaf_name)
);
COMMENT ON TABLE headrace.dispatch_leaf IS
    'Partitions of the source''s tables: events of one that is dropped there meanwhile still find their destination.';

CREATE TABLE headrace.dispatch_slice (
    consumer text NOT NULL REFERENCES headrace.dispatch_position ON DELETE CASCADE,
    tick bigint NOT NULL,
    slice integer NOT NULL,
    events bigint NOT NULL,
    failed bigint NOT NULL,
    committed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, tick, slice)
);
COMMENT ON TABLE headrace.dispatch_slice IS 'Slices of the batch in hand that are applied; gone once the position has moved.';

CREATE TABLE headrace.failed_event (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer text NOT NULL,
    tick bigint NOT NULL,
    batch_end timestamptz NOT NULL,
    ev_id bigint NOT NULL,
    ev_time timestamptz,
    ev_txid bigint,
    ev_retry integer,
    ev_type text,
    ev_data text,
    ev_extra1 text,
    ev_extra2 text,
    ev_extra3 text,
    ev_extra4 text,
    destination text,
    key text,
    sqlstate text,
    error text NOT NULL,
    failed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'replayed', 'superseded', 'dropped')),
    settled_at timestamptz,
    UNIQUE (consumer, tick, batch_end, ev_id)
);
COMMENT ON TABLE headrace.failed_event IS 'Events that could not be applied, whole, with the reason; `headrace dispatch replay` tries again.';
COMMENT ON COLUMN headrace.failed_event.batch_end IS 'The time of the tick that ended its batch: where it belongs if partitions go by batch time.';
COMMENT ON COLUMN headrace.failed_event.key IS 'The row''s key as a JSON array of texts; null where the event has none.';
COMMENT ON COLUMN headrace.failed_event.state IS 'superseded: a later event of the same row was applied, so that a replay would bring an old version back.';

CREATE INDEX failed_event_waiting ON headrace.failed_event (consumer, destination, id) WHERE state = 'waiting';
CREATE INDEX failed_event_settled ON headrace.failed_event (settled_at) WHERE settled_at IS NOT NULL;

CREATE TABLE headrace.dispatch_partition (
    table_schema text NOT NULL,
    table_name text NOT NULL,
    parent_schema text NOT NULL,
    parent_name text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('like', 'native')),
    covers_from timestamptz NOT NULL,
    covers_until timestamptz,
    made_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    detached_at timestamptz,
    PRIMARY KEY (table_schema, table_name)
);
COMMENT ON TABLE headrace.dispatch_partition IS 'Partitions that Headrace made; retention touches no other table.';
COMMENT ON COLUMN headrace.dispatch_partition.covers_from IS
    'native: its lower bound. like: the moment of the first row, somewhere inside its period.';
COMMENT ON COLUMN headrace.dispatch_partition.covers_until IS 'native: its upper bound. like: null, it ends before the next one of its parent begins.';

CREATE INDEX dispatch_partition_parent ON headrace.dispatch_partition (parent_schema, parent_name, covers_from);
