"""INI files as Skytools read them: sections, values of several lines, comments, and %(name)s for another setting."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from workers.errors import SettingsError

# Skytools ran on Python 2, whose reader of INI files this follows: it saw ASCII, and white space nowhere else.
_WHITE = " \t\r\f\v"
_COMMENT = re.compile(r"[#;]|[ \t]+#|rem\s", re.ASCII | re.IGNORECASE)
_SECTION = re.compile(r"\[([^]]+)\]")
_SETTING = re.compile(r"([^:=\s][^:=]*)[:=]\s*(.*)", re.ASCII | re.DOTALL)
NAME = re.compile(r"[\w.-]+", re.ASCII)  # of a key or value that is fit to be repeated in a message
_REFERENCE = re.compile(r"%(?:(%)|\(([^)]+)\)s)?")


@dataclass(slots=True)
class Value:
    """A setting as it was written, line by line."""

    lines: list[str]
    number: int  # of the line that it starts in
    cut: bool  # whether a comment followed in that line


def parse(path: Path, expected: str) -> tuple[dict[str, dict[str, Value]], dict[str, Value]]:
    """The sections, and what [DEFAULT] shares with all of them. `expected` is the section that should be there.

    Raises SettingsError when the file cannot be read, and for every line that is out of place, by its number.
    """
    sections: dict[str, dict[str, Value]] = {}
    shared: dict[str, Value] = {}
    problems: list[str] = []
    section: dict[str, Value] | None = None
    value: Value | None = None
    for number, line in enumerate(_text(path).split("\n"), start=1):
        where = f"{path}: line {number}"
        if not line.strip(_WHITE) or _COMMENT.match(line):
            continue
        if line[0] in _WHITE and value is not None:
            value.lines.append(line.strip(_WHITE))
        elif header := _SECTION.match(line):
            name, value = header[1], None
            if name in sections:
                problems.append(f"{where}: the section {name!r} is there twice; join the two")
            section = shared if name == "DEFAULT" else sections.setdefault(name, {})
        elif section is None:
            problems.append(f"{where}: stands before the first section; [{expected}] is missing above it")
            break
        elif setting := _SETTING.match(line):
            key, text = setting[1].rstrip(_WHITE).lower(), setting[2]
            if key in section:
                shown = key if NAME.fullmatch(key) else "the key"
                problems.append(f"{where}: {shown} is in line {section[key].number} too; take one of them away")
            # Only the first semicolon counts, and only behind white space: the rest of the line is a comment then.
            end = text.find(";")
            cut = end > 0 and text[end - 1] in _WHITE
            text = (text[:end] if cut else text).strip(_WHITE)
            value = section[key] = Value([text if text != '""' else ""], number, cut)
        else:
            problems.append(f"{where}: neither `key = value` nor indented like the rest of the value above it")
    if problems:
        raise SettingsError(problems)
    return sections, shared


def filled(known: dict[str, str], key: str, used: set[str], on_the_way: tuple[str, ...] = ()) -> str:
    """A setting with each %(name)s replaced by that setting. Raises ValueError for what is no such reference."""

    def replaced(match: re.Match[str]) -> str:
        percent, name = match.groups()
        if percent:
            return "%"
        if name is None:
            raise ValueError("a lone % is no text in these files; write %% for it, or %(name)s for another setting")
        name = name.lower()
        if name not in known:
            raise ValueError(f"%({name})s is not set anywhere in the file; set it, or write %% for a plain %")
        if name in (key, *on_the_way):
            raise ValueError(f"%({name})s leads back to itself; write out one of the two settings")
        used.add(name)
        return filled(known, name, used, (*on_the_way, key))

    return _REFERENCE.sub(replaced, known[key])


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error}"]) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    # A file that is indented as a whole was pasted from the manual page.
    return textwrap.dedent(text.replace("\r\n", "\n"))
