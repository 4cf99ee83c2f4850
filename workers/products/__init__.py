"""Products: what a file is, and every product derived from it, with versions and provenance."""
