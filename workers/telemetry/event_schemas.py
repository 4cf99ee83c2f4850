"""Event schemas: which fields the message of each MagAO-X event code has, read from TOML data files."""

from __future__ import annotations

import re
import struct
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

BUILT_IN = "event_schemas.toml"
# Type name to the `struct` letter of its little-endian form.
SCALARS: Mapping[str, str] = {
    "bool": "?", "int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I",
    "int64": "q", "uint64": "Q", "float32": "f", "float64": "d",
}  # fmt: skip
_FIELD = re.compile(r"(\w+) (\w+|\[\w+\])(?: = (\S+))?", re.ASCII)
_KEYS = {"code", "fields", "tables"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field: `kind` is a scalar type, `string`, `table`, or a vector such as `[float32]`.

    `default` is what a scalar that is not stored reads as (None for other kinds); `table` the layout of a
    nested table.
    """

    name: str
    kind: str
    default: bool | int | float | None = None
    table: Table | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Fields in the order of their FlatBuffers slots. `plans` is the decoder's own bounded cache."""

    fields: tuple[Field, ...]
    plans: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Schema:
    """One event code, its name, and the layout of its message; without fields the message has no bytes."""

    code: int
    name: str
    table: Table


@cache
def load_schemas(extra: Path | None = None) -> dict[int, Schema]:
    """Schemas by event code: the built-in ones, and those of `extra` on top (a code that it repeats is replaced).

    Cached for the life of the process: treat the result as read-only. Raises ValueError that names the file
    and the key of the first mistake; OSError if `extra` cannot be read.
    """
    text = resources.files("workers.telemetry").joinpath(BUILT_IN).read_text(encoding="utf-8")
    schemas = _parse(text, BUILT_IN)
    if extra is not None:
        schemas |= _parse(extra.read_text(encoding="utf-8"), str(extra))
        owners: dict[str, int] = {}
        for schema in schemas.values():
            if owners.setdefault(schema.name, schema.code) != schema.code:
                raise ValueError(
                    f"{extra}: {schema.name}: the name belongs to the codes {owners[schema.name]} and {schema.code}"
                )
    return schemas


def _parse(text: str, source: str) -> dict[int, Schema]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{source}: not TOML: {error}") from error
    schemas: dict[int, Schema] = {}
    for name, entry in document.items():
        if not isinstance(entry, dict):
            raise ValueError(f"{source}: {name}: an event is a table with `code` and `fields`")
        unknown = sorted(entry.keys() - _KEYS)
        if unknown:
            raise ValueError(f"{source}: {name}.{unknown[0]}: unknown key; there are {', '.join(sorted(_KEYS))}")
        code = entry.get("code")
        if not isinstance(code, int) or isinstance(code, bool) or not 0 <= code <= 0xFFFF:
            raise ValueError(f"{source}: {name}.code: must be an integer from 0 to 65535, not {code!r}")
        if code in schemas:
            raise ValueError(f"{source}: {name}.code: {code} is {schemas[code].name} already")
        schemas[code] = Schema(code, name, _table(entry, f"{source}: {name}"))
    return schemas


def _table(entry: dict[str, Any], where: str) -> Table:
    nested = entry.get("tables", {})
    if not isinstance(nested, dict):
        raise ValueError(f"{where}.tables: must be a table of field lists")
    fields = _fields(entry.get("fields"), nested, f"{where}.fields")
    unused = sorted(nested.keys() - {each.name for each in fields if each.table is not None})
    if unused:
        raise ValueError(f"{where}.tables.{unused[0]}: no field is `{unused[0]} table`")
    return Table(fields)


def _fields(lines: Any, nested: dict[str, Any], where: str) -> tuple[Field, ...]:
    if not isinstance(lines, list):
        raise ValueError(f'{where}: must be a list such as ["pos float32"]')
    fields: list[Field] = []
    for number, line in enumerate(lines):
        here = f"{where}[{number}]"
        match = _FIELD.fullmatch(line) if isinstance(line, str) else None
        if match is None:
            raise ValueError(f"{here}: {line!r} is not `name type` or `name type = default`")
        name, kind, default = match.groups()
        if any(each.name == name for each in fields):
            raise ValueError(f"{here}: the field {name} is there twice")
        if kind == "table":
            if name not in nested:
                raise ValueError(f"{here}: `tables.{name}` with the fields of the nested table is missing")
            # One level is all that MagAO-X uses; a table inside a nested table has nowhere to be described.
            inner = Table(_fields(nested[name], {}, f"{where.removesuffix('.fields')}.tables.{name}"))
            fields.append(Field(name, kind, None, inner))
        elif kind not in SCALARS and kind != "string" and kind.strip("[]") not in {*SCALARS, "string"}:
            raise ValueError(f"{here}: unknown type {kind!r}")
        elif default is not None and kind not in SCALARS:
            raise ValueError(f"{here}: only a scalar has a default")
        else:
            fields.append(Field(name, kind, _default(kind, default, here) if kind in SCALARS else None))
    return tuple(fields)


def _default(kind: str, text: str | None, where: str) -> bool | int | float:
    """The default as the field's own type; one that its type cannot hold is a mistake."""
    try:
        if kind == "bool":
            return {None: False, "false": False, "true": True}[text]
        number = float(text or 0) if kind.startswith("float") else int(text or 0)
        struct.pack("<" + SCALARS[kind], number)
    except (KeyError, ValueError, OverflowError, struct.error) as error:
        raise ValueError(f"{where}: {text} is no {kind}") from error
    return number
