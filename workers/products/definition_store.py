"""Missions' definitions in their tables, as typed functions. The caller commits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workers.database import Connection
from workers.products.definition import Code, Input, Inspector, Mission, Orbit, Process, Product, folder, text_of
from workers.products.versions import Version
from workers.sql_files import queries

SQL = queries("products_definition")

State = Literal["active", "held", "retired"]


@dataclass(frozen=True, slots=True)
class StoredCode:
    """A code as its row has it."""

    id: int
    code: Code
    state: State


@dataclass(frozen=True, slots=True)
class Stored:
    """A mission as its rows have it: `definition` is what was last loaded, without orbits."""

    mission: Mission
    definition: Mission
    retired_products: Mapping[str, Product]
    retired_processes: Mapping[str, Process]
    codes: Mapping[str, Sequence[StoredCode]]  # by process


def lock(conn: Connection, mission: str) -> None:
    """Be the only one who changes this mission until the transaction ends."""
    SQL["lock"].run(conn, {"name": mission})


def names(conn: Connection) -> list[str]:
    """The missions there are."""
    return [row[0] for row in SQL["names"].rows(conn)]


def missions_of(conn: Connection, process: str) -> list[str]:
    """The missions that have an active process of this name."""
    return [row[0] for row in SQL["missions_of_process"].rows(conn, {"process": process})]


def read(conn: Connection, name: str) -> Stored | None:
    """A mission, None if there is none. Its products, processes and codes are in the order of its definition.

    While a code is held, the codes of its process are as the definition has them: what is wanted, not what is in force.
    """
    found = SQL["mission"].records(conn, {"name": name})
    if not found:
        return None
    row = found[0]
    definition = Mission.model_validate_json(json.dumps(row["definition"]))
    products, retired_products = _products(conn, row["id"])
    processes, retired_processes, codes = _processes(conn, row["id"], definition)
    orbits = [Orbit(**orbit) for orbit in SQL["orbits"].records(conn, {"mission": row["id"]})]
    places = {key: folder(row[key]) for key in ("root", "incoming", "codes", "inspectors", "quarantine", "scratch")}
    mission = Mission(
        name=row["name"], **{**places, "scratch": _scratch(places)}, hosts=row["hosts"], cut_off=row["cut_off"],
        neighbours=row["neighbours"], is_legacy=row["is_legacy"], satellites=definition.satellites,
        products=_in_order(products, definition.products), processes=_in_order(processes, definition.processes),
        orbits=tuple(orbits),
    )  # fmt: skip
    return Stored(mission, definition, retired_products, retired_processes, codes)


def save_mission(conn: Connection, mission: Mission) -> None:
    """A mission's folders and rules, and its definition as a whole."""
    places = {key: getattr(mission, key) for key in ("root", "incoming", "codes", "inspectors", "quarantine")}
    places["scratch"] = mission.scratch or mission.root / ".headrace"
    facts = {key: text_of(place) for key, place in places.items()}
    rules = {key: getattr(mission, key) for key in ("name", "cut_off", "neighbours", "is_legacy")}
    document = json.dumps(mission.document())
    SQL["save_mission"].run(conn, {**facts, **rules, "hosts": list(mission.hosts), "definition": document})


def save_satellites(conn: Connection, mission: Mission) -> None:
    """Satellites and instruments that may be there already."""
    for satellite, instruments in mission.satellites.items():
        facts = {"mission": mission.name, "satellite": satellite}
        SQL["save_satellite"].run(conn, facts)
        for instrument in instruments:
            SQL["save_instrument"].run(conn, {**facts, "instrument": instrument})


def save_product(conn: Connection, mission: str, product: Product) -> None:
    """A product, active from now on."""
    inspector = product.inspector and product.inspector.model_dump_json()
    SQL["save_product"].run(conn, {**product.model_dump(), "mission": mission, "inspector": inspector})


def retire_product(conn: Connection, mission: str, name: str) -> None:
    """No file of it is expected any more."""
    SQL["retire_product"].run(conn, {"mission": mission, "name": name})


def save_process(conn: Connection, mission: str, process: Process) -> None:
    """A process and what it reads, active from now on; its codes are saved one by one."""
    facts = process.model_dump(exclude={"inputs", "codes"})
    facts["extra_params"] = list(process.extra_params)
    SQL["save_process"].run(conn, {**facts, "mission": mission})
    SQL["forget_inputs"].run(conn, {"mission": mission, "process": process.name})
    rows = [
        (position, preference, product, one.is_required, one.yesterday, one.tomorrow)
        for position, one in enumerate(process.inputs)
        for preference, product in enumerate(one.products)
    ]
    columns = ("positions", "preferences", "products", "required", "yesterdays", "tomorrows")
    arrays = {name: [row[number] for row in rows] for number, name in enumerate(columns)}
    SQL["save_inputs"].run(conn, {"mission": mission, "process": process.name, **arrays})


def retire_process(conn: Connection, mission: str, name: str) -> None:
    """It builds nothing any more."""
    SQL["retire_process"].run(conn, {"mission": mission, "name": name})


def save_ranks(conn: Connection, mission: str, ranks: Mapping[str, int]) -> None:
    """The places of processes in the order of the graph."""
    SQL["save_ranks"].run(conn, {"mission": mission, "names": list(ranks), "ranks": list(ranks.values())})


def add_code(conn: Connection, mission: str, process: str, code: Code, state: State) -> None:
    """A new version of a process' executable."""
    SQL["add_code"].run(conn, {**_code_facts(code), "mission": mission, "process": process, "state": state})


def change_code(conn: Connection, code_id: int, code: Code, state: State) -> None:
    """A known version, its number aside, and whether it is used."""
    SQL["change_code"].run(conn, {**_code_facts(code), "id": code_id, "state": state})


def approved(conn: Connection, code_id: int, by: str) -> None:
    """Who let a held code be used."""
    SQL["approved"].run(conn, {"id": code_id, "by": by})


def save_orbits(conn: Connection, mission: str, satellite: str, orbits: Sequence[Orbit]) -> None:
    """All of a satellite's intervals."""
    facts = {"mission": mission, "satellite": satellite, "numbers": [orbit.number for orbit in orbits]}
    SQL["forget_orbits"].run(conn, facts)
    starts, stops = [orbit.start_at for orbit in orbits], [orbit.stop_at for orbit in orbits]
    SQL["save_orbits"].run(conn, {**facts, "starts": starts, "stops": stops})


def _scratch(places: Mapping[str, Any]) -> Any:
    return places["scratch"] if places["scratch"] != places["root"] / ".headrace" else None


def _products(conn: Connection, mission_id: int) -> tuple[dict[str, Product], dict[str, Product]]:
    active: dict[str, Product] = {}
    retired: dict[str, Product] = {}
    for row in SQL["products"].records(conn, {"mission": mission_id}):
        is_active = row.pop("is_active")
        row["trailer"] = bytes(row["trailer"]) if row["trailer"] is not None else None
        row["inspector"] = row["inspector"] and Inspector(**row["inspector"])
        (active if is_active else retired)[row["name"]] = Product(**row)
    return active, retired


def _processes(
    conn: Connection, mission_id: int, definition: Mission
) -> tuple[dict[str, Process], dict[str, Process], dict[str, list[StoredCode]]]:
    inputs = _inputs(conn, mission_id)
    rows = SQL["processes"].records(conn, {"mission": mission_id})
    names = {row["id"]: row["name"] for row in rows}
    codes: dict[str, list[StoredCode]] = {name: [] for name in names.values()}
    for row in SQL["codes"].records(conn, {"mission": mission_id}):
        state = row.pop("state")
        version = Version(row.pop("interface"), row.pop("quality"), row.pop("revision"))
        code_id, process_id = row.pop("id"), row.pop("process_id")
        code = Code(version=version, is_active=state != "retired", **row)
        codes[names[process_id]].append(StoredCode(code_id, code, state))
    wanted = {process.name: process.codes for process in definition.processes}
    active: dict[str, Process] = {}
    retired: dict[str, Process] = {}
    for row in rows:
        is_active, _rank, name = row.pop("is_active"), row.pop("rank"), row["name"]
        shown = _shown_codes(codes[name], wanted.get(name, ()))
        one = Process(inputs=tuple(inputs.get(row.pop("id"), ())), codes=shown, **row)
        (active if is_active else retired)[name] = one
    return active, retired, codes


def _inputs(conn: Connection, mission_id: int) -> dict[int, list[Input]]:
    found: dict[int, dict[int, Input]] = {}
    for row in SQL["inputs"].records(conn, {"mission": mission_id}):
        process_id, position, product = row.pop("process_id"), row.pop("position"), row.pop("product")
        of = found.setdefault(process_id, {})
        before = of[position].products if position in of else ()
        of[position] = Input(products=(*before, product), **row)
    return {process_id: list(of.values()) for process_id, of in found.items()}


def _shown_codes(rows: Sequence[StoredCode], wanted: Sequence[Code]) -> tuple[Code, ...]:
    if any(row.state == "held" for row in rows):
        return tuple(wanted)
    order = {code.version: number for number, code in enumerate(wanted)}
    # A version that the definition does not name is retired, and as good as not there.
    shown = [row.code for row in rows if row.code.version in order or row.state != "retired"]
    return tuple(sorted(shown, key=lambda code: order.get(code.version, len(order))))


def _in_order(found: Mapping[str, Any], wanted: Sequence[Product | Process]) -> tuple[Any, ...]:
    order = {one.name: number for number, one in enumerate(wanted)}
    return tuple(sorted(found.values(), key=lambda one: order.get(one.name, len(order))))


def _code_facts(code: Code) -> dict[str, Any]:
    version = code.version
    return code.model_dump(exclude={"version", "is_active"}) | {
        "interface": version.interface, "quality": version.quality, "revision": version.revision,
        "arguments": list(code.arguments), "environment": json.dumps(code.environment),
    }  # fmt: skip
