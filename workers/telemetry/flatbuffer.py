"""One FlatBuffers message, checked against its own bounds and decoded by the schema of its event.

Nothing outside of the message is ever read. How the fields lie in the bytes depends only on the vtable, which
a program writes the same way thousands of times: it is understood once, into a plan, and the plan is one
`struct` call and a few look-ups.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

from workers.telemetry.event_schemas import SCALARS, Table
from workers.telemetry.float32 import SHORT_FLOATS

MAX_PLANS = 512  # of one table; a hostile file could otherwise bring a new vtable with every record
_LONGEST_PREFIX = 256  # bytes up to the root table that are worth a look-up; real ones have 12 to 60
_U16 = struct.Struct("<H").unpack_from
_U32 = struct.Struct("<I").unpack_from
_I32 = struct.Struct("<i").unpack_from

Bytes = bytes | memoryview


class BadMessage(ValueError):
    """The bytes are not a message of this schema; the text says where it breaks."""


class _Plan(NamedTuple):
    """How to read a table: everything that is known once its vtable is."""

    unpack: Callable[..., tuple[Any, ...]]  # the stored fields and the table's whole extent
    absent: tuple[Any, ...]  # defaults, appended to what was unpacked
    pick: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None  # into schema order; None if it is that already
    names: tuple[str, ...]
    floats: tuple[str, ...]  # names of float32 fields, unpacked as bits
    references: tuple[tuple[str, int, Callable[[Bytes, int], Any]], ...]  # (name, offset in the table, reader)
    unknown: int  # stored slots beyond the schema
    nested: tuple[tuple[str, int, Table], ...]


def decode(table: Table, message: Bytes) -> tuple[dict[str, Any], int]:
    """The message as a dictionary in schema order, and how many stored slots the schema does not know.

    Scalars that are not stored have their default; strings, vectors and tables that are not stored are left
    out. A string that is not UTF-8 is `{"$hex": ...}`. NaN and infinities stay Python floats. Raises
    BadMessage if any offset, vtable, length or alignment is not what FlatBuffers allows within the message.
    """
    try:
        (root,) = _U32(message)
        prefix = bytes(message[: root + 4]) if root < _LONGEST_PREFIX else b""
        plan = table.plans.get(prefix)
        if plan is None:
            plan = _root_plan(table, message, root, prefix)
        return _read(plan, message, root)
    except (struct.error, IndexError) as error:
        raise BadMessage("an offset points out of the message") from error


def _read(plan: _Plan, message: Bytes, position: int) -> tuple[dict[str, Any], int]:
    unpack, absent, pick, names, floats, references, unknown, nested = plan
    values = unpack(message, position) + absent
    fields = dict(zip(names, values if pick is None else pick(values)))  # noqa: B905  # same length by construction
    for name in floats:
        fields[name] = SHORT_FLOATS[fields[name]]
    for name, offset, reader in references:
        distance = fields[name]
        if not distance:
            raise BadMessage(f"the field {name} refers to itself")
        fields[name] = reader(message, position + offset + distance)
    for name, offset, table in nested:
        fields[name], more = _nested(table, message, position + offset + fields[name])
        unknown += more
    return fields, unknown


def _root_plan(table: Table, message: Bytes, root: int, prefix: bytes) -> _Plan:
    plan, start = _plan_at(table, message, root)
    if prefix and start >= 4 and start < root:
        # The vtable lies before the table, as builders put it: root offset, vtable and back reference are
        # all in the prefix, so the next message that begins with these bytes has the same plan.
        _remember(table, prefix, plan)
    return plan


def _nested(table: Table, message: Bytes, position: int) -> tuple[dict[str, Any], int]:
    plan, _ = _plan_at(table, message, position)
    return _read(plan, message, position)


def _plan_at(table: Table, message: Bytes, position: int) -> tuple[_Plan, int]:
    """The plan of the table at `position`, and where its vtable starts."""
    if position & 3 or position < 4:
        raise BadMessage(f"a table at {position}: not a multiple of 4 from 4 on")
    start = position - _I32(message, position)[0]
    if start & 1 or not 0 <= start <= len(message) - 4:
        raise BadMessage(f"the vtable at {start} is out of the message of {len(message)} bytes")
    (size,) = _U16(message, start)
    vtable = bytes(message[start : start + size])
    if size & 1 or size < 4 or len(vtable) != size:
        raise BadMessage(f"a vtable of {size} bytes at {start} in a message of {len(message)} bytes")
    key = (vtable, position & 4)
    plan = table.plans.get(key)
    if plan is None:
        plan = _understand(table, vtable, position)
        _remember(table, key, plan)
    return plan, start


def _remember(table: Table, key: Any, plan: _Plan) -> None:
    if len(table.plans) >= MAX_PLANS:
        table.plans.clear()
    table.plans[key] = plan


def _understand(table: Table, vtable: bytes, position: int) -> _Plan:
    """A plan from the vtable. Fields must lie inside the table, aligned as FlatBuffers wants, without overlap."""
    _, extent, *slots = struct.unpack(f"<{len(vtable) // 2}H", vtable)
    stored: list[tuple[int, int, str, str]] = []  # (offset, bytes, struct letter, name)
    names: list[str] = []
    defaults: dict[str, Any] = {}
    floats: list[str] = []
    references: list[tuple[str, int, Callable[[Bytes, int], Any]]] = []
    nested: list[tuple[str, int, Table]] = []
    for field, offset in zip(table.fields, [*slots, *[0] * len(table.fields)], strict=False):
        letter = SCALARS.get(field.kind)
        if not offset:
            if letter is not None:
                names.append(field.name)
                defaults[field.name] = field.default
            continue
        names.append(field.name)
        width = struct.calcsize("<" + (letter or "I"))
        if (position + offset) % width:
            raise BadMessage(f"the field {field.name} is not aligned to {width} bytes")
        if letter == "f":
            floats.append(field.name)
        elif field.table is not None:
            nested.append((field.name, offset, field.table))
        elif letter is None:
            references.append((field.name, offset, _reader(field.kind)))
        stored.append((offset, width, "I" if letter in (None, "f") else str(letter), field.name))
    beyond = [offset for offset in slots[len(table.fields) :] if offset]
    if any(not 4 <= offset < extent for offset in beyond):
        raise BadMessage("an unknown field lies outside of its table")
    stored.sort()
    layout, end = "<4x", 4
    for offset, width, letter, name in stored:
        if offset < end or offset + width > extent:
            raise BadMessage(f"the field {name} lies outside of its table or on another one")
        layout += f"{offset - end}x{letter}"
        end = offset + width
    if extent < end:
        raise BadMessage(f"a table of {extent} bytes")
    order = [*(name for *_, name in stored), *defaults]
    return _Plan(
        struct.Struct(f"{layout}{extent - end}x").unpack_from,
        tuple(defaults.values()),
        None if order == names else itemgetter(*map(order.index, names)),
        tuple(names), tuple(floats), tuple(references), len(beyond), tuple(nested),
    )  # fmt: skip


def _string(message: Bytes, position: int) -> str | dict[str, str]:
    (length,) = _U32(message, position)
    start = position + 4
    end = start + length
    if message[end] or position & 3:
        raise BadMessage(f"the string at {position} does not end in a zero byte or is not aligned")
    text = message[start:end]
    try:
        return str(text, "utf-8")
    except UnicodeDecodeError:
        return {"$hex": text.hex()}


def _reader(kind: str) -> Callable[[Bytes, int], Any]:
    if kind == "string":
        return _string
    if kind == "[string]":
        return _strings
    element = kind.strip("[]")
    letter = "I" if element == "float32" else SCALARS[element]
    width = struct.calcsize("<" + letter)

    def vector(message: Bytes, position: int) -> list[Any]:
        (count,) = _U32(message, position)
        if count * width > len(message) - position - 4 or position & 3:
            raise BadMessage(f"a vector of {count} × {width} bytes at {position} in {len(message)} bytes")
        values = struct.unpack_from(f"<{count}{letter}", message, position + 4)
        return list(map(SHORT_FLOATS.__getitem__, values)) if element == "float32" else list(values)

    return vector


def _strings(message: Bytes, position: int) -> list[Any]:
    (count,) = _U32(message, position)
    start = position + 4
    if count * 4 > len(message) - start or position & 3:
        raise BadMessage(f"a vector of {count} strings at {position} in {len(message)} bytes")
    values: list[Any] = []
    room = len(message)
    for place, offset in zip(range(start, start + 4 * count, 4), struct.unpack_from(f"<{count}I", message, start)):  # noqa: B905
        if not offset:
            raise BadMessage(f"the string {place} of a vector has no place")
        # Many entries that share one long string would grow to the product of both: every writer stores
        # a string once, so all of them together cannot be longer than the message.
        room -= _U32(message, place + offset)[0]
        if room < 0:
            raise BadMessage("the strings of a vector are longer than the message")
        values.append(_string(message, place + offset))
    return values
