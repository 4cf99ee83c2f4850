"""The keys of a mission's YAML file: the parts of a definition, read from them and written by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from workers.products import mission_values as values
from workers.products.definition import Input, Part, Timebase
from workers.settings import did_you_mean

P = TypeVar("P", bound=Part)


@dataclass(frozen=True, slots=True)
class Key:
    """A key's field in the definition, how its value is read, and how it is written."""

    field: str
    read: Callable[[Any], Any]
    write: Callable[[Any], Any] = lambda value: value


RULES = {
    "hosts": Key("hosts", values.texts, list),
    "cut_off": Key("cut_off", values.flag),
    "neighbours": Key("neighbours", values.flag),
    "legacy": Key("is_legacy", values.flag),
}
PRODUCT = {
    "level": Key("level", values.number, values.as_number),
    "format": Key("format", values.text),
    "folder": Key("folder", values.text),
    "description": Key("description", values.text),
    "covers": Key("covers", values.one_of(("hour", "day", "month", "year"))),
    "min_bytes": Key("min_bytes", values.size, values.as_size),
    "trailer": Key("trailer", values.trailer, values.as_trailer),
    "marker": Key("marker", values.text),
    "cut_off": Key("cut_off", values.flag),
}
INSPECTOR = {
    "file": Key("file", values.text),
    "folder": Key("folder", values.text),
    "arguments": Key("arguments", values.named_texts),
    "version": Key("version", values.version, str),
    "description": Key("description", values.text),
    "active": Key("is_active", values.flag),
}
PROCESS = {
    "output": Key("output", values.text),
    "timebase": Key("timebase", values.one_of(get_args(Timebase))),
    "satellite": Key("satellite", values.text),
    "on_code_change": Key("on_code_change", values.one_of(("rebuild", "hold"))),
    "attempts": Key("attempts", values.whole),
    "priority": Key("priority", values.whole),
    "neighbours": Key("neighbours", values.flag),
    "extra_params": Key("extra_params", values.words, list),
}
INPUT = {
    "product": Key("products", lambda value: (values.text(value),)),
    "prefer": Key("products", values.texts),
    "optional": Key("is_required", lambda value: not values.flag(value), lambda is_required: not is_required),
    "yesterday": Key("yesterday", values.whole),
    "tomorrow": Key("tomorrow", values.whole),
}
CODE = {
    "version": Key("version", values.version, str),
    "file": Key("filename", values.text),
    "folder": Key("folder", values.text),
    "description": Key("description", values.text),
    "from": Key("valid_from", values.day),
    "until": Key("valid_until", values.day),
    "output_interface": Key("output_interface", values.whole),
    "arguments": Key("arguments", values.words, list),
    "environment": Key("environment", values.environment),
    "timeout": Key("timeout_seconds", values.seconds, values.as_seconds),
    "memory": Key("memory_bytes", values.size, values.as_size),
    "output": Key("output_bytes", values.size, values.as_size),
    "cpu": Key("cpu", values.whole),
    "written": Key("written", values.day),
    "active": Key("is_active", values.flag),
}
ORBIT = {
    "number": Key("number", values.whole),
    "start": Key("start_at", values.moment),
    "stop": Key("stop_at", values.moment),
}


def written(part: Part, keys: Mapping[str, Key]) -> dict[str, Any]:
    """A part's keys; what is as by default is left out."""
    defaults = type(part).model_fields
    given = {key: (one, getattr(part, one.field)) for key, one in keys.items()}
    return {
        key: one.write(value)
        for key, (one, value) in given.items()
        if value is not None and value != defaults[one.field].default
    }


def written_input(one: Input) -> str | dict[str, Any]:
    """An input, which is no more than a name if it has no rules of its own."""
    found = written(one, {key: INPUT[key] for key in ("optional", "yesterday", "tomorrow")})
    if len(one.products) > 1:
        return {"prefer": list(one.products), **found}
    return {"product": one.products[0], **found} if found else one.products[0]


@dataclass(slots=True)
class Reading:
    """The reading of one file. What is wrong is collected, a line each, and what is right is gone on with."""

    path: Path
    problems: list[str] = field(default_factory=list)

    def part(
        self, place: str, model: type[P], keys: Mapping[str, Key], content: Mapping[str, Any],
        own: Mapping[str, Any] = MappingProxyType({}),
    ) -> P | None:  # fmt: skip
        """One part of the definition out of a section and of what else is known of it; None if something is wrong."""
        before = len(self.problems)
        self.refuse_unknown(place, content, tuple(keys))
        found = dict(own)
        for key, one in keys.items():
            value = self.value(f"{place}.{key}" if place else key, content, one.read, key=key, needed=False)
            if value is not None:
                found[one.field] = value
        if len(self.problems) > before:
            return None
        try:
            return model(**found)
        except ValidationError as error:
            for wrong in error.errors(include_url=False):
                at = [str(part) for part in wrong["loc"]]
                at[0] = next((key for key, known in keys.items() if known.field == at[0]), at[0])
                text = "is missing" if wrong["type"] == "missing" else wrong["msg"].removeprefix("Value error, ")
                self.problem(".".join([*([place] if place else []), *at]), text)
            return None

    def value(
        self, place: str, content: Mapping[str, Any], read: Callable[[Any], Any], *, key: str = "", needed: bool = True
    ) -> Any:
        """A key's value; None if it is not there, or wrong."""
        value = content.get(key or place)
        if value is None:
            if needed:
                self.problem(place, "is missing")
            return None
        try:
            return read(value)
        except ValueError as error:
            self.problem(place, str(error))
            return None

    def section(self, place: str, value: Any) -> dict[str, Any]:
        """A section, which may be left out."""
        found = {} if value is None else self.value(place, {place: value}, values.section) or {}
        for key in found:
            if not isinstance(key, str):
                self.problem(place, f"{key!r} is no text to YAML; write it in quotes")
        return {key: one for key, one in found.items() if isinstance(key, str)}

    def items(self, place: str, value: Any) -> list[Any]:
        """A list, which may be left out."""
        return [] if value is None else self.value(place, {place: value}, values.items) or []

    def refuse_unknown(self, place: str, content: Mapping[str, Any], known: tuple[str, ...]) -> None:
        """Each key that means nothing here is a problem: it may be a misspelt one that does."""
        for key in content:
            if key not in known:
                at = f"{place}.{key}" if place else str(key)
                self.problem(at, f"there is no such key{did_you_mean(str(key), known)}")

    def problem(self, place: str, text: str) -> None:
        """Something is wrong there."""
        self.problems.append(f"{self.path}: {place}: {text}")
