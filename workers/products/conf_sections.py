"""The sections and keys of dbprocessing's configuration files: there or missing, known or not."""

from __future__ import annotations

import configparser
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from workers.errors import SettingsError
from workers.products.definition import with_names

FOLDERS = ("codedir", "inspectordir", "errordir")
KEYS: dict[str, tuple[str, ...]] = {
    "mission": ("mission_name", "rootdir", "incoming_dir", *FOLDERS),
    "satellite": ("satellite_name",),
    "instrument": ("instrument_name",),
    "product": (
        "product_name", "relative_path", "level", "format", "product_description", "inspector_filename",
        "inspector_relative_path", "inspector_description", "inspector_version", "inspector_output_interface",
        "inspector_active", "inspector_date_written", "inspector_newest_version", "inspector_arguments",
    ),
    "process": (
        "process_name", "output_product", "output_timebase", "extra_params", "code_filename", "code_relative_path",
        "code_start_date", "code_stop_date", "code_description", "code_version", "code_output_interface",
        "code_active", "code_date_written", "code_newest_version", "code_arguments", "code_cpu", "code_ram",
    ),
}  # fmt: skip
INPUTS = ("required_input", "optional_input")


@dataclass(slots=True)
class Sections:
    """One file. What is wrong is collected, a line each, and what is right is gone on with."""

    path: Path
    parser: configparser.ConfigParser = field(default_factory=configparser.ConfigParser)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def open(self) -> None:
        """Read and check it. Raises SettingsError with every section and key that is missing or out of place."""
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError([f"{self.path}: cannot be read: {error}"]) from error
        self.parser = _parsed(self.path, text)
        self._check()
        if self.problems:
            raise SettingsError(self.problems)
        # As addFromConfig.py did: in the whole text, so in names of sections as well.
        self.parser = _parsed(self.path, with_names(text, self.names()))

    def names(self) -> dict[str, str]:
        """What {MISSION} and the like stand for in this file."""
        mission = self.parser["mission"].get("mission_name", "")
        satellite = with_names(self.parser["satellite"].get("satellite_name", ""), {"MISSION": mission})
        instrument = with_names(
            self.parser["instrument"].get("instrument_name", ""), {"MISSION": mission, "SPACECRAFT": satellite}
        )
        return {"MISSION": mission, "SPACECRAFT": satellite, "INSTRUMENT": instrument}

    def of_kind(self, kind: str) -> list[str]:
        """The sections of products, or of processes."""
        return [section for section in self.parser.sections() if _kind(section) == kind]

    def problem(self, section: str, text: str) -> None:
        """Something is wrong in a section."""
        self.problems.append(f"{self.path}: [{section}] {text}")

    def warn(self, section: str, text: str) -> None:
        """Something in a section is not used, or not as it was meant."""
        self.warnings.append(f"{self.path}: [{section}] {text}")

    def _check(self) -> None:
        """Every section and key that is needed must be there; a key that is too much is a warning."""
        for section in self.parser.sections():
            if _kind(section) is None:
                known = "[mission], [satellite], [instrument], [product_...] or [process_...]"
                self.problem(section, f"is no section of these files; expected {known}")
        for kind in ("mission", "satellite", "instrument"):
            if not self.parser.has_section(kind):
                self.problems.append(f"{self.path}: the section [{kind}] is missing")
        used: set[str] = set()
        for section in self.parser.sections():
            known_keys = KEYS[_kind(section) or "process"]
            content = self.parser[section]
            for key in known_keys if _kind(section) else ():
                if key not in content and key not in FOLDERS:
                    self.problem(section, f"{key} is missing; each key must be there, though it may be blank")
            for key in content:
                if key in known_keys or (section.startswith("process") and key.startswith(INPUTS)):
                    used.add(key)
                elif content.get(key, raw=True) != self.parser.defaults().get(key):
                    self.warn(section, f"{key} is not known, and not used{_hint(key, known_keys)}")
        for key in self.parser.defaults():
            if key not in used:
                self.warn("DEFAULT", f"{key} is not known in any section, and not used")


def _parsed(path: Path, text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    try:
        parser.read_string(text, source=str(path))
        for section in parser.sections():
            parser.items(section)
    except configparser.Error as error:
        raise SettingsError([f"{path}: {' '.join(str(error).split())}"]) from error
    return parser


def _kind(section: str) -> str | None:
    if section in ("mission", "satellite", "instrument"):
        return section
    return next((kind for kind in ("product", "process") if section.startswith(kind)), None)


def _hint(key: str, known: tuple[str, ...]) -> str:
    near = get_close_matches(key, known, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""
