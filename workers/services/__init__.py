"""The embedded PostgreSQL and Valkey of one machine, and the small supervisor behind `headrace up`."""
