"""What a mission's graph has to keep to: no cycle, one producer for a product and day, names that can be read back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from itertools import combinations

from workers.products.definition import Code, Mission, Process, Product
from workers.products.templates import Template, TemplateError
from workers.settings import did_you_mean

MOST_INPUTS = 60


def problems(mission: Mission) -> list[str]:
    """Why a mission cannot be loaded, a line each; empty: it can. What dbprocessing allowed is in `doubts`."""
    found = [*_name_clashes(mission), *_unknown(mission)]
    for process in mission.processes:
        found += _process_problems(process)
    found += [*_cycles(mission), *_double_producers(mission)]
    return found if mission.is_legacy else [*found, *_format_problems(mission), *_without_orbits(mission)]


def doubts(mission: Mission) -> list[str]:
    """What works less well than it should in a mission that came from dbprocessing, a line each."""
    return [*_format_problems(mission), *_without_orbits(mission)] if mission.is_legacy else []


def ranks(mission: Mission) -> dict[str, int]:
    """Each process' place in the topological order of the graph: 0 for one that reads nothing but raw products.

    Processes on a cycle, and behind one, are left out.
    """
    needs = _needs(mission.processes)
    found: dict[str, int] = {}
    while ready := [name for name, before in needs.items() if name not in found and before <= found.keys()]:
        for name in ready:
            found[name] = max((found[one] + 1 for one in needs[name]), default=0)
    return found


def active(process: Process) -> list[Code]:
    """The codes of a process that may run."""
    return [code for code in process.codes if code.is_active]


def overlap(one: Code, other: Code) -> bool:
    """Whether there is a day for which both codes hold."""
    (first, last), (begin, end) = _span(one), _span(other)
    return first <= end and begin <= last


def orbit_satellite(process: Process, products: Mapping[str, Product]) -> str | None:
    """The satellite whose intervals an ORBIT process goes by: its own word, or that of its output."""
    output = products.get(process.output or "")
    return process.satellite or (output.satellite if output else None)


def _hint(word: str, known: Iterable[str]) -> str:
    known = list(known)
    return did_you_mean(word, known) if known else "; there is none at all"


def _span(code: Code) -> tuple[date, date]:
    return code.valid_from or date.min, code.valid_until or date.max


def _days(code: Code) -> str:
    since, until = code.valid_from, code.valid_until
    if since and until:
        return f"{since} to {until}"
    return f"from {since}" if since else f"until {until}" if until else "all days"


def _name_clashes(mission: Mission) -> Iterator[str]:
    yield from _twice("product", (product.name for product in mission.products))
    yield from _twice("process", (process.name for process in mission.processes))
    for satellite, instruments in mission.satellites.items():
        yield from _twice(f"satellite {satellite}: instrument", instruments)
    for process in mission.processes:
        yield from _twice(f"process {process.name}: code", (str(code.version) for code in process.codes))
    yield from _twice("orbit", (f"{orbit.number} of {orbit.satellite}" for orbit in mission.orbits))


def _twice(what: str, names: Iterable[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{what} {name} is there {count} times; give each a name of its own"


def _unknown(mission: Mission) -> Iterator[str]:
    products = {product.name for product in mission.products}
    for product in mission.products:
        instruments = mission.satellites.get(product.satellite)
        if instruments is None:
            hint = _hint(product.satellite, mission.satellites)
            yield f"product {product.name}: there is no satellite {product.satellite!r}{hint}"
        elif product.instrument not in instruments:
            hint = _hint(product.instrument, instruments)
            yield f"product {product.name}: {product.satellite} has no instrument {product.instrument!r}{hint}"
    for process in mission.processes:
        named = [process.output] if process.output else []
        named += [name for one in process.inputs for name in one.products]
        for name in dict.fromkeys(named):
            if name not in products:
                yield f"process {process.name}: there is no product {name!r}{_hint(name, products)}"
        if process.satellite is not None and process.satellite not in mission.satellites:
            hint = _hint(process.satellite, mission.satellites)
            yield f"process {process.name}: there is no satellite {process.satellite!r}{hint}"
    for name in dict.fromkeys(orbit.satellite for orbit in mission.orbits):
        if name not in mission.satellites:
            yield f"orbits: there is no satellite {name!r}{_hint(name, mission.satellites)}"
    for orbit in mission.orbits:
        if orbit.start_at >= orbit.stop_at:
            yield f"orbit {orbit.number} of {orbit.satellite} ends at {orbit.stop_at}, before it begins"


def _process_problems(process: Process) -> Iterator[str]:
    where = f"process {process.name}"
    if process.timebase == "RUN" and process.output:
        yield f"{where}: RUN has no output; leave out {process.output!r}, or name the timebase of its files"
    if process.timebase != "RUN" and not process.output:
        yield f"{where}: {process.timebase} needs an output; name the product, or let the timebase be RUN"
    if len(process.inputs) > MOST_INPUTS:
        yield f"{where}: {len(process.inputs)} inputs are more than {MOST_INPUTS}; have one made of several first"
    for one in process.inputs:
        yield from _twice(f"{where}: prefer:", one.products)
        if process.output in one.products:
            yield (
                f"{where}: reads its own output {process.output!r}, which is refused also for other days;"
                " keep what it carries over in a product of its own"
            )
    for code in process.codes:
        if _span(code)[0] > _span(code)[1]:
            yield f"{where}: code {code.version} holds until {code.valid_until}, before it begins"
    for one_code, other in combinations(active(process), 2):
        if overlap(one_code, other):
            yield (
                f"{where}: codes {one_code.version} ({_days(one_code)}) and {other.version} ({_days(other)}) are both"
                " active for the same days; let the older one end, or be inactive"
            )


def _needs(processes: Iterable[Process]) -> dict[str, set[str]]:
    """By each process those that make its inputs; one that reads its own output is not said to need itself."""
    processes = list(processes)
    makers: dict[str, set[str]] = {}
    for process in processes:
        if process.output:
            makers.setdefault(process.output, set()).add(process.name)
    return {
        process.name: {maker for one in process.inputs for name in one.products for maker in makers.get(name, ())}
        - {process.name}
        for process in processes
    }


def _cycles(mission: Mission) -> Iterator[str]:
    outputs = {process.name: process.output for process in mission.processes}
    settled = set(ranks(mission))
    needs = {name: before - settled for name, before in _needs(mission.processes).items() if name not in settled}
    while needs:
        # Each of these needs another one of these, so going back comes round in the end.
        path = [min(needs)]
        while (before := min(needs[path[-1]])) not in path:
            path.append(before)
        members = path[path.index(before) :][::-1]
        shown = " -> ".join(str(outputs[name]) for name in (members[-1], *members))
        yield f"products go round in a circle: {shown} (processes {', '.join(members)}); take one of the inputs away"
        while gone := [name for name in needs if name in members or not needs[name]]:
            needs = {name: before - set(gone) for name, before in needs.items() if name not in gone}


def _double_producers(mission: Mission) -> Iterator[str]:
    for one, other in combinations([process for process in mission.processes if process.output], 2):
        if one.output != other.output:
            continue
        for mine in active(one):
            clash = next((code for code in active(other) if overlap(mine, code)), None)
            if clash is not None:
                yield (
                    f"product {one.output} is made by two processes for the same days: {one.name} {mine.version}"
                    f" ({_days(mine)}) and {other.name} {clash.version} ({_days(clash)}); let one of them end first"
                )
                break


def _format_problems(mission: Mission) -> Iterator[str]:
    outputs = {process.output: process.name for process in mission.processes if process.output}
    for product in mission.products:
        where = f"product {product.name}"
        try:
            fields = frozenset(Template(product.format, of=where).fields)
            Template(product.folder, of=f"{where}'s folder")
        except TemplateError as error:
            yield f"{where}: {error}"
            continue
        if "/" in product.format:
            yield f"{where}: format {product.format!r} has a slash; what is before it belongs into folder"
        tells_itself = product.inspector is None or not product.inspector.is_active
        if "VERSION" not in fields and product.name in outputs:
            maker = outputs[product.name]
            yield f"{where}: its format needs {{VERSION}}, as {maker} has no other name for a rebuilt file"
        elif "VERSION" not in fields and tells_itself:
            yield f"{where}: its format needs {{VERSION}}, or the product an inspector that tells the version"
        if tells_itself and (lack := _lacks(product, fields)):
            yield f"{where}: its format needs {lack}, or the product an inspector that tells the day"


def _lacks(product: Product, fields: frozenset[str]) -> str | None:
    """The date fields that a format has to have and has not."""
    year = bool(fields & {"Y", "y"})
    month = year and bool(fields & {"m", "b"})
    day = bool(fields & {"DATE", "datetime"}) or (year and "j" in fields) or (month and "d" in fields)
    if product.covers == "year":
        return None if year or day else "{Y}"
    if product.covers == "month":
        return None if month or day else "{Y} and {m}"
    if not day:
        return "the day as {Y}{m}{d}, {Y}{j} or {DATE}" + (
            "" if product.covers else f" (or covers: {'month' if month else 'year'})" if year else ""
        )
    return "{H}" if product.covers == "hour" and "H" not in fields else None


def _without_orbits(mission: Mission) -> Iterator[str]:
    products = {product.name: product for product in mission.products}
    known = {orbit.satellite for orbit in mission.orbits}
    for process in mission.processes:
        satellite = orbit_satellite(process, products)
        if process.timebase == "ORBIT" and satellite not in known:
            yield f"process {process.name}: ORBIT goes by the orbits of {satellite}; there are none"
