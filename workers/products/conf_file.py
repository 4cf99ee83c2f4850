"""dbprocessing's configuration files, as addFromConfig.py took them: one instrument of a mission."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from workers.errors import SettingsError
from workers.products import graph_rules, versions
from workers.products.conf_sections import INPUTS, Sections
from workers.products.definition import (
    Code,
    Input,
    Inspector,
    Mission,
    Part,
    Process,
    Product,
    Timebase,
    folder,
    text_of,
    with_names,
)
from workers.settings import did_you_mean

P = TypeVar("P", bound=Part)

_WITHOUT_EFFECT = (
    "inspector_output_interface", "inspector_date_written", "inspector_newest_version", "code_ram",
)  # fmt: skip
_TRUE = ("true", "yes", "y", "1")
_FALSE = ("false", "no", "n", "0", "")
_NOTHING = ("", "None", "none", "NONE")


def read(path: Path) -> tuple[Mission, list[str]]:
    """The part of a mission that a file describes, and what of it is not as it was meant, a line each.

    Raises SettingsError with every problem, a line each.
    """
    file = _File(path)
    file.open()
    mission = file.mission()
    if mission is not None and not file.problems:
        file.problems += [f"{path}: {problem}" for problem in graph_rules.problems(mission)]
    if mission is None or file.problems:
        raise SettingsError(file.problems)
    return mission, [*file.warnings, *(f"{path}: {doubt}" for doubt in graph_rules.doubts(mission))]


@dataclass(slots=True)
class _File(Sections):
    """The reading of one file. What is wrong is collected, and what is right is gone on with."""

    products: dict[str, str] = field(default_factory=dict)  # names by section

    def mission(self) -> Mission | None:
        """All of it; None if something is wrong."""
        content = self.parser["mission"]
        names = self.names()
        given = os.path.expanduser(content["rootdir"])
        root = folder(given) if os.path.isabs(given) else folder(os.path.abspath(given))
        if not os.path.isabs(given):
            self.warn("mission", f"rootdir {given!r} is taken from the current folder: {text_of(root)}")
        codes = root / folder(content.get("codedir", ""))
        inspectors = root / folder(content["inspectordir"]) if "inspectordir" in content else codes
        quarantine = root / folder(content["errordir"]) if content.get("errordir") else codes / "errors"
        names |= {"SATELLITE": names["SPACECRAFT"], "ROOTDIR": text_of(root)}
        products = [self._product(section, names) for section in self.of_kind("product")]
        processes = [self._process(section) for section in self.of_kind("process")]
        ignored = [key for key in _WITHOUT_EFFECT if any(key in self.parser[one] for one in self.parser.sections())]
        if ignored:
            self.warnings.append(f"{self.path}: without effect, as in dbprocessing: {', '.join(ignored)}")
        return self._part("mission", Mission, {
            "name": names["MISSION"], "root": root, "incoming": root / folder(content["incoming_dir"]), "codes": codes,
            "inspectors": inspectors, "quarantine": quarantine, "cut_off": False, "is_legacy": True, "is_part": True,
            "satellites": {names["SATELLITE"]: (names["INSTRUMENT"],)},
            "products": [one for one in products if one is not None],
            "processes": [one for one in processes if one is not None],
        })  # fmt: skip

    def _product(self, section: str, names: Mapping[str, str]) -> Product | None:
        content = self.parser[section]
        level = self._value(section, "level", float)
        names = {**names, "LEVEL": str(level)}
        name = with_names(content["product_name"], names)
        self.products[section] = name
        names["PRODUCT"] = name
        inspector = self._inspector(section, names)
        return self._part(section, Product, {
            "name": name, "satellite": names["SATELLITE"], "instrument": names["INSTRUMENT"], "level": level,
            "format": with_names(content["format"], names), "folder": with_names(content["relative_path"], names),
            "description": content["product_description"], "inspector": inspector,
        })  # fmt: skip

    def _inspector(self, section: str, names: Mapping[str, str]) -> Inspector | None:
        content = self.parser[section]
        if not content["inspector_filename"]:
            self.warn(section, "inspector_filename is blank: the names of its files tell what they are")
            return None
        return self._part(section, Inspector, {
            "file": content["inspector_filename"],
            "folder": with_names(content["inspector_relative_path"], names),
            "arguments": self._arguments(section, with_names(content["inspector_arguments"], names)),
            "version": self._value(section, "inspector_version", versions.parse),
            "description": with_names(content["inspector_description"], names),
            "is_active": self._flag(section, "inspector_active"),
        }, "inspector_")  # fmt: skip

    def _process(self, section: str) -> Process | None:
        content = self.parser[section]
        timebase, output = content["output_timebase"], content["output_product"]
        if timebase not in get_args(Timebase) or timebase == "HOURLY":
            known = [one for one in get_args(Timebase) if one != "HOURLY"]
            self.problem(section, f"output_timebase {timebase!r} is not known{did_you_mean(timebase, known)}")
            timebase = "FILE"
        if timebase == "RUN" and output:
            self.warn(section, f"output_product {output!r} is not used: RUN has no output")
            output = ""
        code = self._part(section, Code, {
            "version": self._value(section, "code_version", versions.parse),
            "filename": content["code_filename"], "folder": content["code_relative_path"],
            "description": content["code_description"],
            "output_interface": self._value(section, "code_output_interface", int),
            "valid_from": self._value(section, "code_start_date", _day),
            "valid_until": self._value(section, "code_stop_date", _day),
            "arguments": tuple(_something(content["code_arguments"]).split()), "cpu": self._cpu(section),
            "written": self._value(section, "code_date_written", _day),
            "is_active": self._flag(section, "code_active") & self._flag(section, "code_newest_version"),
        }, "code_")  # fmt: skip
        extra = _something(content["extra_params"])
        return self._part(section, Process, {
            "name": content["process_name"],
            "output": self._product_name(section, "output_product", output) if output else None,
            "timebase": timebase, "inputs": list(self._inputs(section)), "codes": [code] if code is not None else [],
            "extra_params": extra.split("|") if extra else (),
        })  # fmt: skip

    def _inputs(self, section: str) -> Iterator[Input]:
        for key, value in self.parser[section].items():
            if not key.startswith(INPUTS):
                continue
            given: Any = (value, 0, 0)
            if "(" in value:
                try:
                    given = ast.literal_eval(value)
                except (ValueError, SyntaxError):
                    given = None
            match given:
                case (str(name), int(before), int(after)):
                    one = self._part(section, Input, {
                        "products": (self._product_name(section, key, name),), "yesterday": before, "tomorrow": after,
                        "is_required": "optional" not in key,
                    })  # fmt: skip
                    if one is not None:
                        yield one
                case _:
                    self.problem(section, f'{key}: {value!r} is no section, and not ("section", before, after)')

    def _product_name(self, section: str, key: str, text: str) -> str:
        if text not in self.products and text not in self.products.values():
            hint = did_you_mean(text, self.products) if self.products else "; there is none"
            self.problem(section, f"{key}: there is no section [{text}] of a product{hint}")
        return self.products.get(text, text)

    def _arguments(self, section: str, text: str) -> dict[str, str]:
        words = _something(text).split()
        first = next((number for number, word in enumerate(words) if "=" not in word), len(words))
        if first < len(words):
            lost = " ".join(words[first:])
            self.warn(section, f"inspector_arguments: {lost!r} is not used, as in dbprocessing: not key=value")
        return dict(word.split("=", 1) for word in words[:first])

    def _flag(self, section: str, key: str) -> bool:
        value = self.parser[section][key]
        if value.lower() not in (*_TRUE, *_FALSE):
            self.warn(section, f"{key} {value!r} is taken for False, as in dbprocessing; write True or False")
        return value.lower() in _TRUE

    def _cpu(self, section: str) -> int:
        value = self.parser[section]["code_cpu"]
        try:
            return max(1, int(float(value)))
        except (ValueError, OverflowError):
            if value:
                self.warn(section, f"code_cpu {value!r} is no number; taken for 1")
            return 1

    def _value(self, section: str, key: str, read: Callable[[str], Any]) -> Any:
        value = self.parser[section][key].strip()
        try:
            return read(value)
        except ValueError as error:
            self.problem(section, f"{key}: {value!r} cannot be read: {error}")
            return None

    def _part(self, section: str, model: type[P], values: dict[str, Any], prefix: str = "") -> P | None:
        wrong = sum(one.startswith(f"{self.path}: [{section}]") for one in self.problems)
        try:
            return model(**values)
        except ValidationError as error:
            for one in error.errors(include_url=False) if not wrong else ():
                at = ".".join(str(part) for part in one["loc"])
                self.problem(section, f"{prefix}{at}: {one['msg'].removeprefix('Value error, ')}")
            return None


def _something(text: str) -> str:
    return "" if text in _NOTHING else text


def _day(text: str) -> date:
    return datetime.strptime(text, "%Y-%m-%d").date()  # noqa: DTZ007 - a day has no zone
