"""A dbprocessing mission as a definition: unique names, absolute folders, one active code for a process and day."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workers.errors import SettingsError
from workers.products import graph_rules
from workers.products.definition import Code, Input, Inspector, Mission, Process, Product, Timebase, with_names
from workers.products.legacy_rows import Legacy, LegacyCode, LegacyMission, LegacyProcess, LegacyProduct
from workers.products.versions import Version

_RAN = {"FILE", "DAILY", "RUN"}  # the timebases that dbprocessing implements
_TIMEBASES: tuple[Timebase, ...] = ("FILE", "RUN", "HOURLY", "DAILY", "WEEKLY", "MONTHLY", "YEARLY", "ORBIT")
_NAMED = 5  # of many alike in one warning


@dataclass(slots=True)
class Warnings:
    """Sentences, each with the things that it is true of: a hundred thousand files must not make as many lines."""

    of: dict[str, list[str]] = field(default_factory=dict)

    def add(self, sentence: str, *names: str) -> None:
        """Say it, of these things or in general."""
        self.of.setdefault(sentence, []).extend(names)

    def lines(self) -> Iterator[str]:
        """One for each sentence."""
        for sentence, names in self.of.items():
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            yield sentence + (": " + ", ".join(names[:_NAMED]) + more if names else "")


@dataclass(frozen=True, slots=True)
class Named:
    """What a mission's things are called here, by their ids there; several codes there may be one here."""

    mission: Mission
    products: Mapping[int, str]
    processes: Mapping[int, str]
    codes: Mapping[int, tuple[str, Version]]


def named_of(legacy: Legacy, mission: LegacyMission, root: Path | None, warnings: Warnings) -> Named:
    """A mission's definition; `root` is where its data lie now, should they have moved.

    Raises SettingsError for what no definition can hold.
    """
    mine = {key: one for key, one in legacy.products.items() if one.mission == mission.id}
    products = _distinct({key: (one.name, one.instrument) for key, one in mine.items()}, "product", warnings)
    belong = [one for one in legacy.processes if _belongs(one, mine, lonely=len(legacy.missions) == 1)]
    processes = _distinct(
        {one.id: (one.name, products.get(one.output or 0, str(one.id))) for one in belong}, "process", warnings
    )
    codes: dict[int, tuple[str, Version]] = {}
    folders = _folders(mission, root)
    try:
        made = Mission(
            name=mission.name,
            **folders,
            cut_off=False,
            is_legacy=True,
            satellites=dict(mission.satellites),
            products=tuple(
                Product(
                    name=products[key], satellite=one.satellite, instrument=one.instrument, level=one.level,
                    format=with_names(one.format, names), folder=with_names(one.folder, names).lstrip("/"),
                    description=one.description, inspector=_inspector(legacy, key, products[key], warnings),
                )
                for key, one in mine.items()
                for names in [_names(mission, one, products[key])]
            ),
            processes=tuple(_process(legacy, one, processes[one.id], products, codes, warnings) for one in belong),
        )  # fmt: skip
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise SettingsError([f"{legacy.source}, mission {mission.name}: {line}" for line in lines]) from error
    return Named(made, products, processes, codes)


def _names(mission: LegacyMission, product: LegacyProduct, name: str) -> dict[str, str]:
    """What {PRODUCT}, {SATELLITE} and the like stand for."""
    satellite = product.satellite
    return {
        "MISSION": mission.name, "SATELLITE": satellite, "SPACECRAFT": satellite, "INSTRUMENT": product.instrument,
        "PRODUCT": name, "LEVEL": str(product.level),
    }  # fmt: skip


def _belongs(process: LegacyProcess, products: Mapping[int, Any], *, lonely: bool) -> bool:
    if process.output is not None:
        return process.output in products
    return process.inputs[0].product in products if process.inputs else lonely


def _distinct(names: Mapping[int, tuple[str, str]], what: str, warnings: Warnings) -> dict[int, str]:
    """Each its own name: the first of several has it, the others have something added to it."""
    found: dict[int, str] = {}
    for key, (name, more) in names.items():
        tries = [name, f"{name}_{more}", f"{name}_{key}"]
        found[key] = next(one for one in tries if one not in found.values())
        if found[key] != name:
            warnings.add(f"{what} {name} is there more than once; another one is called", found[key])
    return found


def _folders(mission: LegacyMission, root: Path | None) -> dict[str, Path]:
    """The folders as dbprocessing finds them: relative to the root, which is relative to where one stands."""
    old = os.path.abspath(os.path.expanduser(mission.root))
    new = old if root is None else os.path.abspath(root)

    def place(folder: str | None, otherwise: str) -> str:
        if folder is None:
            return otherwise
        path = os.path.abspath(os.path.join(old, os.path.expanduser(folder)))
        is_below = path == old or path.startswith(old.rstrip("/") + "/")
        return os.path.normpath(os.path.join(new, os.path.relpath(path, old))) if is_below else path

    codes = place(mission.codes, new)
    found = {
        "root": new, "incoming": place(mission.incoming, new), "codes": codes,
        "inspectors": place(mission.inspectors, codes),
        "quarantine": place(mission.errors, os.path.join(codes, "errors")),
    }  # fmt: skip
    return {name: Path(folder) for name, folder in found.items()}


def _inspector(legacy: Legacy, product: int, name: str, warnings: Warnings) -> Inspector | None:
    found = sorted((one for one in legacy.inspectors if one.product == product), key=lambda one: not one.is_active)
    if len([one for one in found if one.is_active]) > 1:
        warnings.add("several inspectors are active; the first one is taken, as dbprocessing asks it first", name)
    if not found:
        return None
    one = found[0]
    arguments: dict[str, str] = {}
    for word in one.arguments.split():
        parts = word.split("=")
        if len(parts) == 1:
            break  # dbprocessing reads no further
        arguments[parts[0]] = parts[1]
    return Inspector(
        file=one.filename, folder=one.folder.lstrip("/"), arguments=arguments, version=one.version,
        description=one.description, is_active=one.is_active,
    )  # fmt: skip


def _process(
    legacy: Legacy, one: LegacyProcess, name: str, products: Mapping[int, str],
    codes: dict[int, tuple[str, Version]], warnings: Warnings,
) -> Process:  # fmt: skip
    timebase, has_output = _timebase(one, name, warnings)
    may_run = timebase in _RAN and one.timebase == timebase
    inputs = [link for link in one.inputs if link.product in products]
    if len(inputs) < len(one.inputs):
        warnings.add("an input of another mission is left out of process", name)
    mine = [code for code in legacy.codes.values() if code.process == one.id]
    for code in mine:
        codes[code.id] = (name, code.version)
    return Process(
        name=name,
        output=products[one.output] if has_output and one.output is not None else None,
        timebase=timebase,
        inputs=tuple(
            Input(products=(products[link.product],), is_required=link.is_required, yesterday=link.yesterday,
                  tomorrow=link.tomorrow)
            for link in inputs
        ),
        codes=tuple(_codes(mine, name, may_run, warnings)),
        extra_params=tuple(one.extra_params.split("|")) if one.extra_params else (),
    )  # fmt: skip


def _timebase(one: LegacyProcess, name: str, warnings: Warnings) -> tuple[Timebase, bool]:
    """The timebase, and whether there is an output."""
    text = one.timebase
    if text == "RUN" and one.output is not None:
        warnings.add("RUN makes no file; its output is left out of process", name)
        return "RUN", False
    if one.output is None:
        if text != "RUN":
            warnings.add(f"without an output {text or 'no timebase'} is taken as RUN, with its codes retired", name)
        return "RUN", False
    known = next((timebase for timebase in _TIMEBASES if timebase == text), None)
    if known is None:
        warnings.add(f"{text or 'no timebase'} is taken as FILE, with its codes retired: it never ran", name)
    elif known not in _RAN:
        warnings.add(f"dbprocessing never ran {known}; its codes come as retired, load them as active to use", name)
    return known or "FILE", True


def _codes(mine: Sequence[LegacyCode], name: str, may_run: bool, warnings: Warnings) -> Iterator[Code]:
    """The newest come first: of codes that are active for the same days it is the one that stays so."""
    seen: set[Version] = set()
    used: list[Code] = []
    for one in sorted(mine, key=lambda code: (code.is_active, code.version, code.id), reverse=True):
        if one.version in seen:
            warnings.add("codes of one version are taken as one, so days may be without", f"{name} {one.version}")
            continue
        seen.add(one.version)
        code = Code(
            version=one.version, filename=one.filename, folder=one.folder, description=one.description,
            output_interface=one.output_interface, valid_from=one.valid_from, valid_until=one.valid_until,
            arguments=tuple(one.arguments.split()), cpu=max(1, one.cpu), written=one.written,
            is_active=one.is_active and may_run,
        )  # fmt: skip
        if code.is_active and any(graph_rules.overlap(code, other) for other in used):
            warnings.add("a newer code is active for the same days, so this one is retired", f"{name} {one.version}")
            code = code.model_copy(update={"is_active": False})
        used += [code] if code.is_active else []
        yield code
