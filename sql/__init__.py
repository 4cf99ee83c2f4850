"""SQL as data: migrations and named queries, read with importlib.resources."""
