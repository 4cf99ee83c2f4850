"""The dispatch room: events of PgQ queues into tables cut by date, each exactly once."""
