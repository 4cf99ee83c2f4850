"""The events of pgq.jsontriga: operation, table and key as JSON in ev_type, the row as a flat JSON object in ev_data.

The trigger writes most values as their type's output text in a JSON string. Bare are NULL, booleans, and int2, int4
and int8; date, timestamp and timestamptz are ISO 8601 whatever DateStyle the session has (dates in arrays and ranges
are not). So nothing is nested: json and jsonb columns are strings that hold JSON.
"""

from __future__ import annotations

import json
from json import JSONDecoder
from typing import Any, NoReturn

Row = dict[str, str | None]

_OPERATIONS = {"INSERT": "I", "UPDATE": "U", "DELETE": "D", "TRUNCATE": "R"}


def decode_type(ev_type: str) -> tuple[str, tuple[str, str], tuple[str, ...]]:
    """Operation (I, U, D or R), (schema, table) and key columns that an ev_type says; no key columns: ().

    Raises ValueError, with what is wrong, for anything that jsontriga does not write.
    """
    try:
        said = json.loads(ev_type)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(said, dict):
        raise ValueError("it is no object")
    op: Any = said.get("op")
    table: Any = said.get("table")
    keys: Any = said.get("pkey")
    if not isinstance(op, str) or op not in _OPERATIONS:
        raise ValueError(f'"op" is {_excerpt(op)}; known are {", ".join(_OPERATIONS)}')
    if not (_are_names(table) and len(table) == 2):
        raise ValueError(f'"table" is {_excerpt(table)} instead of [schema, name]')
    if not _are_names(keys):
        raise ValueError(f'"pkey" is {_excerpt(keys)} instead of a list of columns')
    return _OPERATIONS[op], (table[0], table[1]), tuple(keys)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def decode(data: str) -> Row:
    """One row: column names and, as text for PostgreSQL's input functions, values; None for NULL; {} of a TRUNCATE.

    Numbers keep every digit; booleans are t and f. Raises ValueError for what jsontriga cannot have written:
    no JSON object, nested values, a column that comes twice, text that PostgreSQL cannot hold.
    """
    try:
        row = _DECODER.decode(data)
    except RecursionError as error:
        raise ValueError("the row is nested too deeply: jsontriga did not write it") from error
    if not isinstance(row, dict):
        raise ValueError(f"the row is no JSON object: jsontriga did not write {_excerpt(row)}")
    # Raw characters came through PostgreSQL; an escape can smuggle in a surrogate (refused by encode) or a zero.
    if "\\u" in data and b"\0" in "".join([*row, *filter(None, row.values())]).encode():
        raise ValueError("the row has a character 0, which no PostgreSQL text has: jsontriga did not write it")
    return row


def _row(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs) or "" in row:
        raise ValueError("a column comes twice or has no name: jsontriga did not write this row")
    for name, value in pairs:
        if value is True or value is False:
            row[name] = "t" if value else "f"
        elif value is not None and value.__class__ is not str:
            raise ValueError(f"column {name!r} holds a nested value: jsontriga did not write {_excerpt(value)}")
    return row


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON: jsontriga writes it as a string")


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"


# Numbers stay the text that they are: a float would lose digits, and int() refuses more than 4300 of them.
_DECODER = JSONDecoder(object_pairs_hook=_row, parse_float=str, parse_int=str, parse_constant=_no_number)
