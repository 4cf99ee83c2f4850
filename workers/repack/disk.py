"""Disk: how much a rewrite needs at most, and whether there is so much."""

from __future__ import annotations

import os

from workers.repack_settings import DatabaseRules

LOG_SHARE = 10  # one part in so many more for the change log, whose size nobody knows before


def needed_bytes(table_bytes: int, index_bytes: int, toast_bytes: int, bloat_bytes: int | None) -> int:
    """The most that a copy, its indexes and its log take. `bloat_bytes` of all three together are not copied;
    None: not known, so everything counts. A fillfactor that is lowered comes on top."""
    live = max(table_bytes + index_bytes + toast_bytes - (bloat_bytes or 0), 0)
    return live + -(-live // LOG_SHARE)


def problem(rules: DatabaseRules, needed: int, used: int) -> str | None:
    """Why there is not enough room for `needed` bytes beside the `used` ones of all requests; None: there is.

    Before a rewrite `needed` is all of it; between chunks, what is still to come.
    """
    return _over_budget(rules, needed, used) or _disk_too_full(rules, needed)


def _over_budget(rules: DatabaseRules, needed: int, used: int) -> str | None:
    budget = rules.disk_budget_bytes
    if budget is None or used + needed <= budget:
        return None
    return (
        f"{needed:,} bytes are needed and copies and logs take {used:,} already, more than disk_budget_bytes"
        f" {budget:,}: raise it, or repack smaller tables first"
    )


def _disk_too_full(rules: DatabaseRules, needed: int) -> str | None:
    if rules.disk_path is None:
        return None
    try:
        found = os.statvfs(rules.disk_path)
    except OSError as error:
        return f"disk_path {rules.disk_path}: {error.strerror}: name a folder on this host, or take disk_path away"
    # What root alone may use does not count; the server is not root.
    free = found.f_bavail * found.f_frsize
    if free - needed >= rules.min_free_bytes:
        return None
    return (
        f"{rules.disk_path} has {free:,} bytes free, {needed:,} are needed, and min_free_bytes"
        f" {rules.min_free_bytes:,} must stay: make room there, or lower min_free_bytes"
    )
