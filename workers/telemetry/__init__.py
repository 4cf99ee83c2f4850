"""The telemetry room: what instruments write, inventoried and read into PostgreSQL."""
