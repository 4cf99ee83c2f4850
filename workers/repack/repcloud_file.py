"""repcloud's TOML files, configuration and tables' rules, as settings, with a note on every key that changes."""

from __future__ import annotations

import glob
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import yaml

from workers.errors import SettingsError
from workers.repack_settings import DeadlockResolution
from workers.settings import did_you_mean
from workers.targets import CONTROL

DEFAULT = "default"  # the configuration that repcloud took when none was named
_CONNECTION = ("user", "password", "host", "port", "database", "sslmode")
_LISTS = ("schemas", "tables")
_LIMITS = {
    "lock_timeout": "lock_timeout_seconds",
    "check_time": "check_seconds",
    "max_replay_rows": "max_replay_rows",
    "analyze_tables": "analyze",
    "deadlock_resolution": "deadlock_resolution",
}
_MAIL = ("mailfrom", "mailto", "smtp_server", "smtp_port", "smtp_ssl", "smtp_username", "smtp_password")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_DEADLOCK: tuple[str, ...] = get_args(DeadlockResolution)  # the mildest first
_LEVELS = {"debug": "DEBUG", "info": "INFO", "warning": "WARNING"}
_PIDS = {"pid_dir": "not needed: a lock in the database keeps two from rewriting the same table"}
_LOGGING = {
    "log_dir": "replaced by logs.file",
    "log_dest": "replaced by `logs:`, standard error always and a file if logs.file names one",
    "log_days_keep": "replaced by logs.max_bytes and logs.keep: files are rotated by size",
}
_EVERYTHING = {"min_bloat_percent": 0, "min_bloat_bytes": 0, "min_bytes": 0}  # what is listed is rewritten
_PLAIN = re.compile(r"[\w-]+", re.ASCII)  # a key that TOML needs no quotes for
_PART = r'(?:"(?:[^"]|"")+"|[^".*?\[]+)'
_TABLE = re.compile(rf"({_PART})\.({_PART})")
_MILLISECONDS = {"us": 0.001, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
# A leading 0 would make it octal to PostgreSQL.
_TIME = re.compile(r"\s*\+?((?!0\d)(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(us|ms|s|min|h|d)?\s*", re.ASCII)
_LONGEST_SECONDS = 60.0  # of repack.limits.lock_timeout_seconds


@dataclass(frozen=True, slots=True)
class RepcloudFile:
    """What the old files say. `overrides` has the connections' passwords; notes and messages have none."""

    path: Path
    connections: tuple[str, ...]  # those chosen, by their names below `databases:`
    overrides: dict[str, Any] = field(repr=False)
    notes: list[str]

    def line(self) -> str:
        """All notes in one line, for the start of a run."""
        return f"{self.path.name!r}: " + ("; ".join(self.notes) or "every setting is used as it is")


def find(name_or_path: str | Path = DEFAULT) -> Path:
    """The file of a configuration: a path, or a name (with or without .toml) below ~/.repcloud/config.

    A word without a slash is a name first, as it was for repcloud. Raises SettingsError when there is no such file.
    """
    text = str(name_or_path)
    path = Path(os.path.expanduser(text))
    folder = Path.home() / ".repcloud" / "config"
    named = folder / (text if text.endswith(".toml") else f"{text}.toml")
    is_name = isinstance(name_or_path, str) and "/" not in text
    for candidate in (named, path) if is_name else (path,):
        if candidate.is_file():
            return candidate
    if not is_name:
        raise SettingsError([f"{path}: no such file; name a file, or a configuration of {folder}"])
    known = sorted(file.stem for file in folder.glob("*.toml"))
    advice = did_you_mean(text.removesuffix(".toml"), known) if known else "; name the file with its path"
    raise SettingsError([f"{named}: there is no such configuration of repcloud{advice}"])


def read(path: Path, *, connection: str | None = None, table_conf: Sequence[Path] = ()) -> RepcloudFile:
    """The file as overrides for `workers.settings.load`: of one connection, or of all of them (None, or "all").

    The tables' rules are in `table_conf/<file>_<connection>.toml` beside the file, unless files are given; those
    belong to the connection that their name ends with. Raises SettingsError with every problem of all files at once.
    """
    report = _Report([], [])
    document = _Section(path, "", _toml(path, report), report)
    if report.problems:
        raise SettingsError(report.problems)
    document = _for_every_connection(document)
    below = document.section("connections")
    sections = below.sections("a section such as [connections.hdb]") if below else {}
    if not sections and not report.problems:
        document.problem("connections", "there is none; each is a section such as [connections.hdb]")
    chosen = [*sections] if connection in (None, *({"all"} - {*sections})) else [str(connection)]
    if sections and not {*chosen} <= {*sections}:
        document.problem("connections", f"none is named {connection!r}{did_you_mean(str(connection), sections)}")
    chosen = [name for name in chosen if name in sections]
    databases = {name: f"{name}-repcloud" if name == CONTROL else name for name in chosen}
    if below and CONTROL in databases:
        below.note(CONTROL, f"called {databases[CONTROL]!r}, {CONTROL!r} is Headrace's own")
    rules = {
        databases[name]: _rules(_Section(file, "", _toml(file, report), report, prefix=f"{file.name!r}: "))
        for name, file in _table_files(path, [*sections], chosen, table_conf, report).items()
    }
    repack = {
        "plans": _plans(path.stem, sections, databases),
        "limits": _limits([_limits_of(sections[name]) for name in chosen], report),
        "databases": {name: one for name, one in rules.items() if one},
    }
    overrides = {
        "databases": {databases[name]: {"connection": _connection(sections[name])} for name in chosen},
        "repack": {key: value for key, value in repack.items() if value},
        **_alerts(document),
    }
    _note_the_rest(document, [sections[name] for name in chosen])
    if report.problems:
        raise SettingsError(report.problems)
    return RepcloudFile(path, tuple(databases.values()), overrides, report.notes)


def as_yaml(file: RepcloudFile) -> str:
    """The part of headrace.yaml that says the same, the notes as comments; for UTF-8 files. Passwords are in it."""
    comments = [
        f"What {file.path.name!r} of repcloud says.",
        *file.notes,
        "A plan that is to begin by itself, as repcloud never did: `enabled: true`, with `windows:` and thresholds.",
    ]
    if any("password" in one["connection"] for one in file.overrides["databases"].values()):
        comments.append("A password is in it: better put it into a file, and name that by `password_file:` instead.")
    body = yaml.safe_dump(file.overrides, sort_keys=False, allow_unicode=True, width=10_000)
    if re.search("[\x85\u2028\u2029]", body):  # line ends to YAML, which would turn them into blanks
        body = yaml.safe_dump(file.overrides, sort_keys=False, width=10_000)
    return "".join(f"# {comment}\n" for comment in comments) + body


@dataclass(frozen=True, slots=True)
class _Report:
    problems: list[str]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class _Section:
    """One table of a TOML file, read by type: what has a wrong one becomes a problem, told without its value."""

    file: Path
    place: str
    content: dict[str, Any] = field(repr=False)
    report: _Report
    prefix: str = ""  # of notes: the file's name, if it is not the configuration itself

    def problem(self, key: str, text: str) -> None:
        self.report.problems.append(f"{self.file}: {self.at(key)}: {text}")

    def note(self, key: str, text: str) -> None:
        self.report.notes.append(f"{self.prefix}{self.at(key)}: {text}")

    def at(self, key: str) -> str:
        shown = key if _PLAIN.fullmatch(key) else repr(key)
        return f"{self.place}.{shown}" if self.place else shown

    def wrong(self, key: str, wanted: str) -> None:
        if key in self.content:
            self.problem(key, f"expected {wanted}, found {_kind(self.content[key])}")

    def section(self, key: str, wanted: str = "a section") -> _Section | None:
        value = self.content.get(key)
        if isinstance(value, dict):
            return _Section(self.file, self.at(key), value, self.report, self.prefix)
        self.wrong(key, wanted)
        return None

    def sections(self, wanted: str) -> dict[str, _Section]:
        """All that is below, which must be sections."""
        found = {key: self.section(key, wanted) for key in self.content}
        return {key: one for key, one in found.items() if one is not None}

    def text(self, key: str) -> str | None:
        """A text, or a whole number written without quotes; an empty one is as good as none."""
        value = self.content.get(key)
        if isinstance(value, str) or type(value) is int:
            return str(value) or None
        self.wrong(key, "a text in quotes")
        return None

    def number(self, key: str, low: int, high: int | None = None) -> int | None:
        """A whole number, in quotes too as in repcloud's example; an empty text is as good as none."""
        value = self.content.get(key)
        if value in (None, ""):
            return None
        if isinstance(value, str) and re.fullmatch(r"\s*\d{1,18}\s*", value, re.ASCII):
            value = int(value)
        if type(value) is int and low <= value and (high is None or value <= high):
            return value
        upward = "on" if high is None else f"to {high}"
        self.problem(key, f"expected a whole number from {low} {upward}, found {_kind(value)}")
        return None

    def flag(self, key: str) -> bool | None:
        value = self.content.get(key)
        if isinstance(value, bool):
            return value
        self.wrong(key, "true or false without quotes")
        return None

    def texts(self, key: str) -> list[str]:
        value = self.content.get(key)
        if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
            return list(value)
        self.wrong(key, 'a list of texts such as ["one", "two"]')
        return []

    def one_of(self, key: str, known: Sequence[str]) -> str | None:
        text = self.text(key)
        if text is None or text in known:
            return text
        self.problem(key, f"{text!r} is not known{did_you_mean(text, known)}")
        return None

    def unused(self, used: Sequence[str], replaced: Mapping[str, str] = MappingProxyType({})) -> None:
        """Note each key that is not used, with what replaces it, or as unknown."""
        for key in self.content:
            near = get_close_matches(key, (*used, *replaced), n=1, cutoff=0.7)
            if key in replaced:
                self.note(key, replaced[key])
            elif key not in used:
                self.note(key, "unknown, not used" + (f" (did you mean {near[0]!r}?)" if near else ""))


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "a list with something else in it"
    return {str: "a text", float: "a decimal number", dict: "a section"}.get(type(value), "a date or time")


def _toml(path: Path, report: _Report) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        report.problems.append(f"{path}: cannot be read: {error}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        report.problems.append(f"{path}: not valid TOML: {error}")
    return {}


def _for_every_connection(document: _Section) -> _Section:
    """The same with what stands above all connections put into each that does not say it itself.

    repcloud reads these keys of a connection only; unread, such a list of tables would become "every table".
    """
    above = {key: document.content[key] for key in (*_LISTS, *_LIMITS) if key in document.content}
    below = document.content.get("connections")
    if not above or not isinstance(below, dict):
        return document
    for key in above:
        document.note(key, "above all connections: taken for each that does not say it itself")
    given = {name: {**above, **one} if isinstance(one, dict) else one for name, one in below.items()}
    rest = {key: value for key, value in document.content.items() if key not in above}
    return replace(document, content={**rest, "connections": given})


def _connection(section: _Section) -> dict[str, Any]:
    words = {key: section.text(key) for key in _CONNECTION if key not in ("port", "sslmode")}
    # repcloud pasted them into a connection string: quotes around and backslashes within were libpq's.
    found: dict[str, Any] = {key: _unquoted(text) for key, text in words.items() if text is not None}
    found |= {"port": section.number("port", 1, 65535), "sslmode": section.one_of("sslmode", _SSL_MODES)}
    return {key: found[key] for key in _CONNECTION if found.get(key) is not None}


def _unquoted(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == "'":
        text = text[1:-1]
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _plans(stem: str, sections: Mapping[str, _Section], databases: Mapping[str, str]) -> dict[str, Any]:
    # One plan if all connections of the file list the same, chosen or not: its name must not hang on the choice.
    lists = [[section.content.get(key) or [] for key in _LISTS] for section in sections.values()]
    alike = all(one == lists[0] for one in lists)
    plans: dict[str, Any] = {}
    for name, database in databases.items():
        key = stem if alike else f"{stem}_{name}"
        if key in plans:
            plans[key]["databases"].append(database)
            continue
        plans[key] = {
            "enabled": False,  # repcloud never began by itself; without thresholds this would begin again each hour
            "databases": [database],
            "schemas": sections[name].texts("schemas"),
            "tables": list(_tables(sections[name])),
            "thresholds": dict(_EVERYTHING),
        }
    return plans


def _tables(section: _Section) -> Iterator[str]:
    # repcloud compared them with names as SQL writes them, so with quotes in part; nothing was a pattern.
    for name in section.texts("tables"):
        found = _TABLE.fullmatch(name)
        if found is None:
            # It stays in the list: an empty one would mean every table.
            section.note("tables", f"{name!r} is no name such as schema.table; nothing matches it, as in repcloud")
            yield glob.escape(name)
        else:
            parts = (part[1:-1].replace('""', '"') if part[0] == '"' else part for part in found.groups())
            yield glob.escape(".".join(parts))


def _limits_of(section: _Section) -> dict[str, Any]:
    analyze = section.content.get("analyze_tables", True)
    if not isinstance(analyze, bool | str):
        section.flag("analyze_tables")
    elif str(analyze).lower() in ("no", "n", "false", "off", "0") and analyze is not False:
        section.note("analyze_tables", "any text counts as yes, as in repcloud, this one too; write false for no")
    found = {
        "lock_timeout": _lock_seconds(section),
        "check_time": section.number("check_time", 1),
        "max_replay_rows": section.number("max_replay_rows", 1),
        "analyze_tables": bool(analyze),
        "deadlock_resolution": section.one_of("deadlock_resolution", _DEADLOCK),
    }
    return {key: value for key, value in found.items() if value is not None}


def _lock_seconds(section: _Section) -> float | None:
    value = section.content.get("lock_timeout")
    if value is None:
        return None
    said = _TIME.fullmatch(str(value)) if isinstance(value, str | int | float) else None
    milliseconds = float(said[1]) * _MILLISECONDS[said[2] or "ms"] if said else -1.0
    if not 0 <= milliseconds < 2**31:
        section.problem("lock_timeout", "not a time as PostgreSQL writes it; set '3s', '500ms', or milliseconds")
        return None
    seconds = round(milliseconds) / 1000
    if 0 < seconds <= _LONGEST_SECONDS:
        return seconds
    given = f"{seconds:g} s are too long" if seconds else "0 is no limit to PostgreSQL"
    section.note("lock_timeout", f"{given}, others would wait as well; {_LONGEST_SECONDS:g} s per attempt are used")
    return _LONGEST_SECONDS


def _limits(found: Sequence[Mapping[str, Any]], report: _Report) -> dict[str, Any]:
    # Here they are the same for all databases: where connections differ, what does least harm is used.
    careful: dict[str, Callable[[list[Any]], Any]] = {
        "lock_timeout": min,
        "check_time": max,
        "max_replay_rows": min,
        "analyze_tables": max,
        "deadlock_resolution": lambda given: min(given, key=_DEADLOCK.index),
    }
    limits = {}
    for key, choose in careful.items():
        if given := [one[key] for one in found if key in one]:
            value = limits[_LIMITS[key]] = choose(given)
            if len(set(given)) > 1:
                shown = str(value).lower() if isinstance(value, bool) else value
                alone = "one connection alone has its own"
                report.notes.append(f"{key}: differs between the connections, {shown} is used for all; {alone}")
    return limits


def _alerts(document: _Section) -> dict[str, Any]:
    if (notifier := document.section("notifier")) is None:
        return {}
    notifier.unused(("enable_email", "email"))
    email = notifier.section("email")
    if not notifier.flag("enable_email"):
        if email is not None:
            notifier.note("email", "not used, enable_email is not true")
        return {}
    if email is None:
        if "email" not in notifier.content:
            notifier.problem("email", "is missing; add the section, or set enable_email = false")
        return {}
    email.unused(_MAIL)
    mail = {
        "host": email.text("smtp_server"),
        "port": email.number("smtp_port", 1, 65535),
        "security": email.one_of("smtp_ssl", ("none", "starttls")),
        "user": email.text("smtp_username"),
        "password": email.text("smtp_password"),
        "sender": email.text("mailfrom"),
        "to": email.texts("mailto"),
    }
    for key in ("smtp_server", "mailto"):
        if email.content.get(key) in (None, "", []):
            email.problem(key, "is missing; set it, or set enable_email = false")
    if mail["password"]:
        email.note("smtp_password", "better put it into a file, and name that by alerts.mail.password_file")
    # repcloud told of what it had done; here of failures, too.
    told = ["success", "failure"]
    return {"alerts": {"on": told, "mail": {key: value for key, value in mail.items() if value}}}


def _note_the_rest(document: _Section, connections: Sequence[_Section]) -> None:
    document.unused(("connections", "logging", "notifier"), _PIDS)
    if (logging := document.section("logging")) is not None:
        logging.unused(("log_level",), _LOGGING)
        if (level := logging.text("log_level")) is not None:
            same = f"the same is {_LEVELS[level]}" if level in _LEVELS else "this one was unknown to repcloud too"
            logging.note("log_level", f"replaced by logs.level, {same}")
    known = (*_CONNECTION, *_LISTS, *_LIMITS)
    for one in connections:
        one.unused(known)
        if not {*_LISTS} & {*one.content}:
            one.note("schemas", "missing, and tables too: every table is meant")
        for key in one.content:
            near = get_close_matches(key, _LISTS, n=1, cutoff=0.7)
            if key not in known and near and near[0] not in one.content:
                one.problem(key, f"unknown key; did you mean {near[0]!r}? That decides what is rewritten")


def _table_files(
    path: Path, names: Sequence[str], chosen: Sequence[str], given: Sequence[Path], report: _Report
) -> dict[str, Path]:
    if not given:
        beside = {name: path.parent / "table_conf" / f"{path.stem}_{name}.toml" for name in chosen}
        return {name: file for name, file in beside.items() if file.is_file()}
    found: dict[str, Path] = {}
    for file in given:
        ends = [name for name in names if file.stem.endswith(f"_{name}")]
        exact = [name for name in ends if file.stem == f"{path.stem}_{name}"]
        name = max(exact or ends, key=len, default=chosen[0] if len(chosen) == 1 else None)
        if name is None:
            report.problems.append(f"{file}: its name ends with no connection's; call it {path.stem}_<connection>.toml")
        elif name in found:
            report.problems.append(f"{file}: connection {name!r} has {found[name]} already; join the two")
        elif name in chosen:
            found[name] = file
        else:
            report.notes.append(f"{file.name!r}: not used, connection {name!r} is not chosen")
    return found


def _rules(file: _Section) -> dict[str, Any]:
    """What repack.databases.<name> says after a table file: each level's fillfactor counts without the others."""
    rules: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    if (storage := file.section("storage")) is not None:
        rules |= _fillfactor(storage)
        for schema, section in _levels(storage):
            if own := _fillfactor(section):
                rules.setdefault("schemas", {})[schema] = own
            for table, one in _levels(section):
                tables[f"{schema}.{table}"] = _fillfactor(one)
                one.unused(("fillfactor",))
    schemas = replace(file, content={key: value for key, value in file.content.items() if key != "storage"})
    for schema, section in _filtered(schemas, "[<schema>.<table>]"):
        for table, one in _filtered(section, "[<schema>.<table>]"):
            tables.setdefault(f"{schema}.{table}", {}).update(_columns(one))
    if tables := {name: one for name, one in tables.items() if one}:
        rules["tables"] = tables
    return rules


def _levels(storage: _Section) -> Iterator[tuple[str, _Section]]:
    below = {key: value for key, value in storage.content.items() if isinstance(value, dict) and key != "fillfactor"}
    replace(storage, content={key: value for key, value in storage.content.items() if key not in below}).unused(
        ("fillfactor",)
    )
    yield from replace(storage, content=below).sections("a section").items()


def _filtered(section: _Section, wanted: str) -> Iterator[tuple[str, _Section]]:
    for key, value in section.content.items():
        if key == "fillfactor" and not isinstance(value, dict):
            section.note(key, "not used here, as in repcloud; it belongs below [storage]")
        elif (one := section.section(key, wanted)) is not None:
            yield key, one


def _fillfactor(section: _Section) -> dict[str, Any]:
    value = section.number("fillfactor", 10, 100)
    return {} if value is None else {"fillfactor": value}


def _columns(table: _Section) -> dict[str, Any]:
    nulls: list[str] = []
    keys: dict[str, list[str]] = {}
    for name, column in _filtered(table, "cleanup_nulls = true or remove_keys = [...] of a column"):
        column.unused(("cleanup_nulls", "remove_keys"))
        cleanup, remove = column.flag("cleanup_nulls"), column.texts("remove_keys")
        if cleanup:
            nulls.append(name)
        if remove and "cleanup_nulls" in column.content:
            column.note("remove_keys", "not used, cleanup_nulls is there too and goes before it, as in repcloud")
        elif remove:
            keys[name] = remove
    return {key: value for key, value in (("cleanup_nulls", nulls), ("remove_keys", keys)) if value}
