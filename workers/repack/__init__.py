"""Bloated tables rewritten online, without extension or superuser, losing nothing."""
