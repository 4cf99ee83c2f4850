-- name: count_dead_letters
-- How many stretches of telemetry files were no record.
SELECT count(*) FROM headrace.dead_letter
