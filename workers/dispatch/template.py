"""part_template: the SQL that makes a destination table, with the magic words of cube_dispatcher."""

from __future__ import annotations

import re
from dataclasses import dataclass

from workers.dispatch.names import Table

_WORDS = re.compile("_SCHEMA_TABLE|_DEST_TABLE|_PARENT|_PKEY")  # the longest first
_LIKE = "CREATE TABLE _DEST_TABLE (LIKE _PARENT);"
_UNIQUE = f"{_LIKE} ALTER TABLE ONLY _DEST_TABLE ADD PRIMARY KEY (_PKEY);"
_PLAIN = f"{_LIKE} CREATE INDEX ON _DEST_TABLE (_PKEY);"


@dataclass(frozen=True, slots=True)
class Words:
    """What the magic words stand for: SQL, quoted already, but for `schema_table`; an empty `key`: there is none."""

    destination: str
    parent: str
    key: str
    schema_table: str


def default(mode: str, *, has_key: bool) -> str:
    """What stands where the settings have no part_template: a table like its parent, found by its key.

    In keep_all a row comes in many versions, which a primary key would refuse.
    """
    if not has_key:
        return _LIKE
    return _PLAIN if mode == "keep_all" else _UNIQUE


def render(template: str, words: Words) -> str:
    """The template with its magic words replaced, in one pass, so that a name which contains one stays as it is.

    As in Skytools they are replaced within longer names, too: people write `_SCHEMA_TABLE_idx`.
    Raises ValueError for _PKEY where there is no key.
    """
    if "_PKEY" in template and not words.key:
        raise ValueError("its part_template has _PKEY, but its events have no key; set `key`, or leave _PKEY out")
    meanings = {
        "_SCHEMA_TABLE": words.schema_table,
        "_DEST_TABLE": words.destination,
        "_PARENT": words.parent,
        "_PKEY": words.key,
    }
    return _WORDS.sub(lambda word: meanings[word.group()], template)


def schema_table(table: Table) -> str:
    """What _SCHEMA_TABLE stands for: schema and table joined by `__`, fit to be a part of an unquoted name."""
    joined = re.sub(r"[^A-Za-z0-9_$\u0080-\U0010ffff]", "_", f"{table.schema}.{table.name}".replace(".", "__"))
    return joined if re.match(r"[^0-9$]", joined) else f"_{joined}"
