"""A mission's YAML file, and a mission as such a file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from workers.errors import SettingsError
from workers.products import graph_rules
from workers.products import mission_keys as keys
from workers.products import mission_values as values
from workers.products.definition import (
    Code,
    Input,
    Inspector,
    Mission,
    Orbit,
    Process,
    Product,
    folder,
    text_of,
    with_names,
)
from workers.settings import did_you_mean
from workers.yaml_files import read_yaml

_FOLDERS = ("incoming", "codes", "inspectors", "quarantine", "scratch")
_MISSION = ("mission", "root", *_FOLDERS, *keys.RULES, "satellites", "products", "processes", "orbits")


def read(path: Path) -> Mission:
    """The mission that a file describes. Raises SettingsError with every problem, a line each."""
    file = _File(path)
    mission = file.mission(read_yaml(path))
    if mission is not None and not file.problems:
        file.problems += [f"{path}: {problem}" for problem in graph_rules.problems(mission)]
    if mission is None or file.problems:
        raise SettingsError(file.problems)
    return mission


def as_yaml(mission: Mission) -> str:
    """A file that reads as this mission; what is as by default is left out."""
    bare = [name for instruments in mission.satellites.values() for name in instruments]
    document: dict[str, Any] = {"mission": mission.name, "root": text_of(mission.root)}
    for key in _FOLDERS:
        place = getattr(mission, key)
        if place not in (None, _default_folder(key, mission.root, mission.codes)):
            is_below = place.is_relative_to(mission.root)
            document[key] = text_of(place.relative_to(mission.root) if is_below else place)
    document |= keys.written(mission, keys.RULES)
    document["satellites"] = {name: list(instruments) for name, instruments in mission.satellites.items()}
    document["products"] = {}
    for product in mission.products:
        is_clear = bare.count(product.instrument) == 1 and "/" not in product.instrument
        instrument = product.instrument if is_clear else f"{product.satellite}/{product.instrument}"
        document["products"][product.name] = {"instrument": instrument, **keys.written(product, keys.PRODUCT)}
        if product.inspector is not None:
            document["products"][product.name]["inspector"] = keys.written(product.inspector, keys.INSPECTOR)
    for process in mission.processes:
        entry = document.setdefault("processes", {})[process.name] = keys.written(process, keys.PROCESS)
        if process.inputs:
            entry["inputs"] = [keys.written_input(one) for one in process.inputs]
        if process.codes:
            entry["codes"] = [keys.written(code, keys.CODE) for code in process.codes]
    for orbit in mission.orbits:
        document.setdefault("orbits", {}).setdefault(orbit.satellite, []).append(keys.written(orbit, keys.ORBIT))
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    if yaml.safe_load(text) == document:
        return text
    # Some characters are line ends to YAML, which would turn them into blanks.
    return yaml.safe_dump(document, sort_keys=False, width=120)


def _default_folder(key: str, root: Path, codes: Path) -> Path:
    own = {"codes": root, "inspectors": codes, "scratch": root / ".headrace"}
    return own.get(key, root / key)


def _filled(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return with_names(value, names)
    if isinstance(value, list):
        return [_filled(one, names) for one in value]
    if isinstance(value, dict):
        return {key: _filled(one, names) for key, one in value.items()}
    return value


@dataclass(slots=True)
class _File(keys.Reading):
    """The reading of one file. What is wrong is collected, and what is right is gone on with."""

    names: dict[str, str] = field(default_factory=dict)
    satellites: dict[str, tuple[str, ...]] = field(default_factory=dict)
    products: dict[str, Product] = field(default_factory=dict)  # by their names as written, and as filled in

    def mission(self, content: dict[str, Any]) -> Mission | None:
        """All of it; None if not even that can be said."""
        self.refuse_unknown("", content, _MISSION)
        name = self.value("mission", content, values.text)
        root_text = self.value("root", content, values.text)
        if not name or not root_text:
            return None
        self.names = {"MISSION": name}
        root = folder(with_names(root_text, self.names))
        if not root.is_absolute():
            self.problem("root", f"{root_text!r} is not absolute; write it from / on")
        self.names["ROOTDIR"] = text_of(root)
        folders: dict[str, Path] = {}
        for key in _FOLDERS:
            default = _default_folder(key, root, folders.get("codes", root))
            given = self.value(key, content, values.text, needed=False)
            folders[key] = root / folder(with_names(given, self.names)) if given else default
        for satellite, instruments in self.section("satellites", content.get("satellites")).items():
            found = self.value(f"satellites.{satellite}", {satellite: instruments or []}, values.texts, key=satellite)
            self.satellites[with_names(satellite, self.names)] = tuple(
                with_names(instrument, self.names) for instrument in found or ()
            )
        if not self.satellites:
            self.problem("satellites", "there is none; name each with a list of its instruments")
        given_products = self.section("products", content.get("products")).items()
        products = [self._product(f"products.{key}", key, one) for key, one in given_products]
        given_processes = self.section("processes", content.get("processes")).items()
        processes = [self._process(f"processes.{key}", key, one) for key, one in given_processes]
        given_orbits = self.section("orbits", content.get("orbits")).items()
        orbits = [orbit for key, one in given_orbits for orbit in self._orbits(f"orbits.{key}", key, one)]
        return self.part("", Mission, keys.RULES, {key: content[key] for key in keys.RULES if key in content}, {
            "name": name, "root": root, **folders,
            "scratch": folders["scratch"] if folders["scratch"] != root / ".headrace" else None,
            "satellites": self.satellites, "products": [one for one in products if one is not None],
            "processes": [one for one in processes if one is not None], "orbits": orbits,
        })  # fmt: skip

    def _product(self, place: str, key: str, given: Any) -> Product | None:
        content = self.section(place, given)
        instrument = self.value(f"{place}.instrument", content, values.text, key="instrument")
        satellite, instrument = self._instrument(f"{place}.instrument", instrument or "")
        names = self.names | {"SATELLITE": satellite, "SPACECRAFT": satellite, "INSTRUMENT": instrument}
        try:
            names["LEVEL"] = f"{values.number(content.get('level')):g}"
        except ValueError:
            pass  # it is told with the other keys
        names["PRODUCT"] = name = with_names(key, names)
        for one in ("format", "folder", "description", "inspector"):
            content[one] = _filled(content.get(one), names)
        inspector = content.pop("inspector")
        own: dict[str, Any] = {"name": name, "satellite": satellite, "instrument": instrument}
        if inspector is not None:
            inside = self.section(f"{place}.inspector", inspector)
            own["inspector"] = self.part(f"{place}.inspector", Inspector, keys.INSPECTOR, inside)
        content.pop("instrument", None)
        product = self.part(place, Product, keys.PRODUCT, content, own)
        if product is not None:
            self.products |= {key: product, name: product}
        return product

    def _instrument(self, place: str, text: str) -> tuple[str, str]:
        """Satellite and instrument of `instrument` or `satellite/instrument`; empty texts if it is none."""
        text = with_names(text, self.names)
        known = [(satellite, name) for satellite, names in self.satellites.items() for name in names]
        found = [one for one in known if text == "/".join(one)] or [one for one in known if text == one[1]]
        if len(found) == 1:
            return found[0]
        if found:
            choice = " or ".join("/".join(one) for one in found)
            self.problem(place, f"several satellites have a {text!r}; write {choice}")
        elif text:
            names = [name for _, name in known]
            self.problem(place, f"there is no {text!r}" + (did_you_mean(text, names) if names else ""))
        return "", ""

    def _process(self, place: str, key: str, given: Any) -> Process | None:
        content = self.section(place, given)
        inputs = self.items(f"{place}.inputs", content.pop("inputs", None))
        parts = [self._input(f"{place}.inputs.{number}", one) for number, one in enumerate(inputs, start=1)]
        own: dict[str, Any] = {"output": None, "inputs": [one for one in parts if one is not None]}
        if isinstance(content.get("output"), str):
            content["output"] = self._product_name(content["output"])
        involved = [content.get("output"), *(name for one in own["inputs"] for name in one.products)]
        product = next((self.products[name] for name in involved if name in self.products), None)
        names = self.names
        if product is not None:
            of = product.satellite
            names = names | {"SATELLITE": of, "SPACECRAFT": of, "INSTRUMENT": product.instrument}
        # {ROOTDIR} there is for the command line, which may be run where the root is another.
        names = {word: text for word, text in names.items() if word != "ROOTDIR"}
        content = _filled(content, names)
        own["codes"] = []
        for number, one in enumerate(self.items(f"{place}.codes", content.pop("codes", None)), start=1):
            at = f"{place}.codes.{number}"
            code = self.part(at, Code, keys.CODE, self.section(at, one))
            own["codes"] += [code] if code is not None else []
        if content.get("output") is None:
            own["timebase"] = "RUN"
        elif content.get("timebase") == "ORBIT" and product is not None:
            own["satellite"] = product.satellite
        return self.part(place, Process, keys.PROCESS, content, {"name": with_names(key, names), **own})

    def _input(self, place: str, given: Any) -> Input | None:
        content = {"product": given} if isinstance(given, str) else self.section(place, given)
        if ("product" in content) == ("prefer" in content):
            self.problem(place, "expected `product:` with one, or `prefer:` with a list of them, the best first")
            return None
        one = self.part(place, Input, keys.INPUT, content)
        return one and one.model_copy(update={"products": tuple(self._product_name(name) for name in one.products)})

    def _product_name(self, text: str) -> str:
        return self.products[text].name if text in self.products else with_names(text, self.names)

    def _orbits(self, place: str, satellite: str, given: Any) -> list[Orbit]:
        own = {"satellite": with_names(satellite, self.names)}
        if isinstance(given, str):
            place, given = f"{place} ({given})", self._table(place, self.path.parent / folder(given))
        found = [
            self.part(f"{place}.{number}", Orbit, keys.ORBIT, self.section(f"{place}.{number}", one), own)
            for number, one in enumerate(self.items(place, given), start=1)
        ]
        return [one for one in found if one is not None]

    def _table(self, place: str, path: Path) -> list[Any]:
        """The lines `number,start,stop` of a file; a first line with these words is a heading."""
        try:
            with path.open(encoding="utf-8", newline="") as file:
                lines = [[word.strip() for word in line] for line in csv.reader(file) if any(line)]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            self.problem(place, f"{path} cannot be read: {error}")
            return []
        for number, line in enumerate(lines, start=1):
            if len(line) != 3 or not (line[0].lstrip("-").isdecimal() or number == 1):
                self.problem(place, f"{path}: {','.join(line)!r} is not number,start,stop")
                return []
        lines = [line for line in lines if line[0].lstrip("-").isdecimal()]
        return [{"number": int(line[0]), "start": line[1], "stop": line[2]} for line in lines]
