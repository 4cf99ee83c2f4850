"""The steps of a load: what differs between a mission and its tables, in words, and what makes it the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from workers.database import Connection
from workers.products import definition_store as store
from workers.products import graph_rules, mission_keys
from workers.products.definition import Code, Input, Inspector, Mission, Part, Process, Product, text_of
from workers.products.definition_store import State, Stored, StoredCode
from workers.products.versions import Version

_MISSION = ("root", "incoming", "codes", "inspectors", "quarantine", "scratch", "hosts", "cut_off", "neighbours",
            "is_legacy")  # fmt: skip
_KEYS = {
    Mission: mission_keys.RULES, Product: mission_keys.PRODUCT, Process: mission_keys.PROCESS, Code: mission_keys.CODE,
}  # fmt: skip
_REMARKS = {
    (Mission, "root"): "files are looked for below the new one",
    (Product, "format"): "files that are there keep their names",
    (Product, "folder"): "files that are there keep their places",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a load changes, for people."""

    kind: Literal["add", "change", "retire"]
    what: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.what}" + (f": {self.detail}" if self.detail else "")


@dataclass(frozen=True, slots=True)
class Step:
    """A change, and what does it; None where there is nothing to tell, or nothing to do."""

    change: Change | None
    write: Callable[[Connection], object] | None = None


def of_mission(stored: Stored | None, wanted: Mission) -> Iterator[Step]:
    """Everything that differs, in the order in which it can be written; nothing for a mission as it is."""
    before = stored.mission if stored else None
    what = f"mission {wanted.name}"
    detail = _differences(before, wanted, _MISSION) if before else f"root {text_of(wanted.root)}"
    if stored is None or detail or stored.definition.document() != wanted.document():
        change = Change("change" if stored else "add", what, detail) if detail else None
        yield Step(change, partial(store.save_mission, mission=wanted))
        # Satellites and instruments that are gone stay in their tables: without products they do no harm.
        yield Step(None, partial(store.save_satellites, mission=wanted))
    had, has = _instruments(before), _instruments(wanted)
    yield from (Step(Change("add", f"instrument {name}")) for name in has if name not in had)
    yield from (Step(Change("retire", f"instrument {name}")) for name in had if name not in has)
    yield from _products(stored, wanted)
    yield from _processes(stored, wanted)
    yield from _orbits(before, wanted)


def of_codes(
    mission: str, process: Process, rows: Sequence[StoredCode], *, approved: Collection[Version] = ()
) -> Iterator[Step]:
    """What makes the codes of a process as the definition has them, and as `states` allows."""
    known = {row.code.version: row for row in rows}
    for code, state, note in states(process, rows, approved):
        row = known.get(code.version)
        what = f"code {process.name} {code.version}"
        if row is None:
            add = partial(store.add_code, mission=mission, process=process.name, code=code, state=state)
            yield Step(Change("add", what, note or ("" if state == "active" else "not active")), add)
            continue
        details = [_differences(row.code, code, tuple(Code.model_fields))]
        if state != row.state:
            details = [note or (f"was {row.state}, is active" if state == "active" else ""), *details]
        if state != row.state or any(details):
            kind: Literal["change", "retire"] = "retire" if state == "retired" != row.state else "change"
            write = partial(store.change_code, code_id=row.id, code=code, state=state)
            yield Step(Change(kind, what, "; ".join(detail for detail in details if detail)), write)


def states(
    process: Process, rows: Sequence[StoredCode], approved: Collection[Version] = ()
) -> list[tuple[Code, State, str]]:
    """Each code of a process with the state it should have, and a note; those that the definition has no more, too.

    With `on_code_change: hold` a code that would stand in for an active one is held until it is approved. The active
    one stays as it is meanwhile, its days included, whatever the definition says of it.
    """
    in_force = [row.code for row in rows if row.state == "active"]
    versions_in_force = {code.version for code in in_force}
    waiting = [
        code
        for code in graph_rules.active(process)
        if process.on_code_change == "hold"
        and code.version not in versions_in_force
        and code.version not in approved
        and any(graph_rules.overlap(code, one) for one in in_force)
    ]
    running = [code for code in graph_rules.active(process) if code not in waiting]
    staying = {
        code.version: code
        for code in in_force
        if any(graph_rules.overlap(code, one) for one in waiting)
        and not any(graph_rules.overlap(code, one) for one in running if one.version != code.version)
    }
    found: list[tuple[Code, State, str]] = []
    for code in process.codes:
        if code in waiting:
            stand_in = ", ".join(str(one.version) for one in staying.values() if graph_rules.overlap(code, one))
            instead = f"; {stand_in} stays active" if stand_in else ""
            hint = f"held until `headrace products approve {process.name} {code.version}`{instead}"
            found.append((code, "held", hint))
        elif code.version in staying:
            days = {key: getattr(staying[code.version], key) for key in ("valid_from", "valid_until")}
            found.append((code.model_copy(update={**days, "is_active": True}), "active", ""))
        else:
            found.append((code, "active" if code.is_active else "retired", ""))
    wanted = {code.version for code in process.codes}
    for row in rows:
        if row.code.version not in wanted:
            found.append((row.code, "active" if row.code.version in staying else "retired", ""))
    return found


def _products(stored: Stored | None, wanted: Mission) -> Iterator[Step]:
    before = {one.name: one for one in stored.mission.products} if stored else {}
    retired = stored.retired_products if stored else {}
    for one in wanted.products:
        change = _change(f"product {one.name}", before.get(one.name), retired.get(one.name), one)
        if change is not None:
            yield Step(change, partial(store.save_product, mission=wanted.name, product=one))
    names = {one.name for one in wanted.products}
    for name in (name for name in before if name not in names):
        yield Step(Change("retire", f"product {name}"), partial(store.retire_product, mission=wanted.name, name=name))


def _processes(stored: Stored | None, wanted: Mission) -> Iterator[Step]:
    before = {one.name: one for one in stored.mission.processes} if stored else {}
    retired = stored.retired_processes if stored else {}
    for one in wanted.processes:
        change = _change(f"process {one.name}", before.get(one.name), retired.get(one.name), one)
        if change is not None:
            yield Step(change, partial(store.save_process, mission=wanted.name, process=one))
        yield from of_codes(wanted.name, one, stored.codes.get(one.name, ()) if stored else ())
    names = {one.name for one in wanted.processes}
    for name in (name for name in before if name not in names):
        yield Step(Change("retire", f"process {name}"), partial(store.retire_process, mission=wanted.name, name=name))


def _orbits(before: Mission | None, wanted: Mission) -> Iterator[Step]:
    had = {(one.satellite, one.number): one for one in before.orbits} if before else {}
    has = {(one.satellite, one.number): one for one in wanted.orbits}
    for satellite in dict.fromkeys(satellite for satellite, _ in (*had, *has)):
        counts = {
            "new": sum(key[0] == satellite and key not in had for key in has),
            "changed": sum(key[0] == satellite and key in had and had[key] != one for key, one in has.items()),
            "removed": sum(key[0] == satellite and key not in has for key in had),
        }
        if any(counts.values()):
            own = [one for one in wanted.orbits if one.satellite == satellite]
            detail = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
            kind: Literal["add", "change", "retire"] = "change" if own else "retire"
            if not any(key[0] == satellite for key in had):
                kind = "add"
            write = partial(store.save_orbits, mission=wanted.name, satellite=satellite, orbits=own)
            yield Step(Change(kind, f"orbits of {satellite}", detail), write)


def _instruments(mission: Mission | None) -> list[str]:
    satellites: Mapping[str, Sequence[str]] = mission.satellites if mission else {}
    return [f"{satellite}/{name}" for satellite, names in satellites.items() for name in names]


def _change(what: str, before: Part | None, retired: Part | None, wanted: Part) -> Change | None:
    if before is None and retired is None:
        return Change("add", what)
    fields = tuple(name for name in type(wanted).model_fields if name != "codes")
    detail = _differences(before or retired or wanted, wanted, fields)
    if before is None:
        return Change("change", what, "; ".join(part for part in ("was retired, is active", detail) if part))
    return Change("change", what, detail) if detail else None


def _differences(old: Part, new: Part, fields: Sequence[str]) -> str:
    labels = {key.field: name for name, key in _KEYS[type(new)].items()}
    found = []
    for name in fields:
        before, after = getattr(old, name), getattr(new, name)
        if before != after and name != "is_active":
            remark = _REMARKS.get((type(new), name))
            shown = f"{labels.get(name, name)}: {_shown(before)} -> {_shown(after)}"
            found.append(f"{shown} ({remark})" if remark else shown)
    return "; ".join(found)


def _shown(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case Input():
            return str(mission_keys.written_input(value))
        case Inspector():
            return str(mission_keys.written(value, mission_keys.INSPECTOR))
        case Path():
            return text_of(value)
        case tuple():
            return f"[{', '.join(_shown(one) for one in value)}]"
        case str() | bytes():
            return repr(value)
    return str(value)
