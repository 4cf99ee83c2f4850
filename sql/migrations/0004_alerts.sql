-- Alerts that wait to be told: written in the transaction of what they tell about, in whatever database that is.

CREATE TABLE headrace.alert (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    room text NOT NULL,
    event text NOT NULL,
    subject text NOT NULL,
    facts jsonb NOT NULL DEFAULT '{}',
    told jsonb NOT NULL DEFAULT '{}',
    attempts integer NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT now(),
    done_at timestamptz,
    problem text
);
COMMENT ON TABLE headrace.alert IS 'One row per thing that somebody has to hear of; told at least once by every configured channel.';
COMMENT ON COLUMN headrace.alert.subject IS 'What it is about, such as hdb: job 7 (public.daily).';
COMMENT ON COLUMN headrace.alert.told IS 'Channel -> when it took the alert.';
COMMENT ON COLUMN headrace.alert.problem IS 'Why the last attempt of some channel failed.';

CREATE INDEX alert_waiting ON headrace.alert (due_at) WHERE done_at IS NULL;
CREATE INDEX alert_done ON headrace.alert (done_at) WHERE done_at IS NOT NULL;
