"""Loading a mission: what its file changes, found by comparing it with the tables, shown, and done."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workers import logs
from workers.database import Connection
from workers.errors import PermanentFailure, SettingsError
from workers.products import conf_file, graph_rules, load_steps, mission_file
from workers.products import definition_store as store
from workers.products.definition import Mission, Process
from workers.products.definition_store import Stored
from workers.products.load_steps import Change, Step
from workers.products.versions import Version
from workers.settings import did_you_mean

__all__ = ["Change", "approve", "load", "read_back", "read_mission"]

log = logs.get(__name__)


def read_mission(path: Path) -> tuple[Mission, list[str]]:
    """The mission of our YAML file or of a dbprocessing configuration file, and warnings, a line each.

    Raises SettingsError with every problem of the file.
    """
    if path.suffix not in (".yaml", ".yml") and _is_conf(path):
        return conf_file.read(path)
    return mission_file.read(path), []


def load(
    conn: Connection, mission: Mission, *, host: str | None = None, by: str = "", dry_run: bool = False
) -> list[Change]:
    """Make the tables say what a mission's file says; what changes, or with `dry_run` would. The caller commits.

    What the file has no more is retired, never deleted. `host` sees the files of a mission that names no hosts.
    Raises SettingsError for a mission that cannot work.
    """
    store.lock(conn, mission.name)
    stored = store.read(conn, mission.name)
    wanted = _whole(mission, stored, host)
    if problems := graph_rules.problems(wanted):
        raise SettingsError([f"mission {mission.name}: {problem}" for problem in problems])
    steps = list(load_steps.of_mission(stored, wanted))
    changes = [step.change for step in steps if step.change is not None]
    if not dry_run and steps:
        _write(conn, steps)
        store.save_ranks(conn, wanted.name, graph_rules.ranks(wanted))
        log.info("products.loaded", mission=wanted.name, by=by, changes=len(changes))
    return changes


def approve(conn: Connection, process: str, version: Version, by: str, *, mission: str | None = None) -> list[Change]:
    """Let a held code be used from now on; those that it stands in for become what the file says. The caller commits.

    `mission` is needed if several have a process of this name. Raises PermanentFailure if nothing of the kind is held.
    """
    among = store.missions_of(conn, process)
    if not among or (mission is not None and mission not in among):
        raise PermanentFailure(f"no process is called {process!r}" + (f" in mission {mission!r}" if mission else ""))
    if mission is None and len(among) > 1:
        raise PermanentFailure(f"several missions have a process {process!r}: {', '.join(among)}; name the mission")
    name = mission or among[0]
    store.lock(conn, name)
    stored = store.read(conn, name)
    assert stored is not None  # missions are never deleted
    rows = stored.codes[process]
    row = next((one for one in rows if one.code.version == version), None)
    if row is None or row.state != "held":
        held = ", ".join(str(one.code.version) for one in rows if one.state == "held") or "none"
        is_what = f"is {row.state}, not held" if row is not None else "is not there"
        raise PermanentFailure(f"code {process} {version} {is_what}; held: {held}")
    wanted = next(one for one in stored.definition.processes if one.name == process)
    steps = list(load_steps.of_codes(name, wanted, rows, approved={version}))
    _write(conn, steps)
    store.approved(conn, row.id, by)
    log.info("products.approved", mission=name, process=process, version=str(version), by=by)
    return [step.change for step in steps if step.change is not None]


def read_back(conn: Connection, mission: str) -> Mission:
    """A mission as it is loaded. Raises PermanentFailure for an unknown one."""
    stored = store.read(conn, mission)
    if stored is None:
        names = store.names(conn)
        raise PermanentFailure(f"no mission is called {mission!r}" + (did_you_mean(mission, names) if names else ""))
    return stored.mission


def _write(conn: Connection, steps: Iterable[Step]) -> None:
    for step in steps:
        if step.write is not None:
            step.write(conn)


def _is_conf(path: Path) -> bool:
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error}"]) from error
    first = next((line for line in lines if line.strip() and not line.lstrip().startswith(("#", ";"))), "")
    return first.startswith("[")


def _whole(mission: Mission, stored: Stored | None, host: str | None) -> Mission:
    """The mission with what its file leaves to others: hosts, and what other files of the same mission say."""
    hosts = mission.hosts or (stored.mission.hosts if stored else (host,) if host else ())
    products = {product.name: product for product in mission.products}
    settled = [
        process.model_copy(update={"satellite": graph_rules.orbit_satellite(process, products)})
        if process.timebase == "ORBIT" else process
        for process in mission.processes
    ]  # fmt: skip
    changed: dict[str, Any] = {"hosts": hosts, "processes": tuple(settled), "is_part": False}
    if not mission.is_part or stored is None:
        return mission.model_copy(update=changed)
    before = stored.mission
    own = {(satellite, name) for satellite, names in mission.satellites.items() for name in names}
    where = {product.name: (product.satellite, product.instrument) for product in before.products}

    def is_foreign(process: Process) -> bool:
        named = [process.output] if process.output else [name for one in process.inputs for name in one.products]
        return not named or any(where.get(name) not in own for name in named)

    anew = {process.name for process in settled}
    kept = [one for one in before.products if where[one.name] not in own and one.name not in products]
    going_on = [one for one in before.processes if is_foreign(one) and one.name not in anew]
    satellites = {**before.satellites}
    for satellite, names in mission.satellites.items():
        satellites[satellite] = tuple(dict.fromkeys((*satellites.get(satellite, ()), *names)))
    orbits = [one for one in before.orbits if one.satellite not in {orbit.satellite for orbit in mission.orbits}]
    changed |= {"products": (*kept, *mission.products), "processes": (*going_on, *settled), "satellites": satellites}
    return mission.model_copy(update={**changed, "orbits": (*orbits, *mission.orbits)})
