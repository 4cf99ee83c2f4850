"""cube_dispatcher's INI file, of Skytools 2.1 and 3, as settings of ours, with a note on every key that changes."""

from __future__ import annotations

import glob
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from workers.dispatch.skytools_ini import NAME, Value, filled, parse
from workers.errors import SettingsError
from workers.targets import redacted

SERVICE = "cube_dispatcher"  # the section's name, and what %(service_name)s stands for
SWITCHES = {
    "-d": "`headrace up`, or `headrace worker` and `headrace beat` under a service manager",
    "-r": "SIGHUP to a worker or beat: it checks the new settings and starts again with them",
    "-s": "SIGTERM to a worker: it finishes the batch in hand; `headrace pause dispatch` holds all of them",
    "-k": "SIGKILL to a worker: the batch is rolled back, and applied again by the next one",
    "-v": "logs.level: DEBUG, or HEADRACE_LOGS__LEVEL=DEBUG",
    "-q": "logs.level: WARNING, or HEADRACE_LOGS__LEVEL=WARNING",
    "--register": "headrace dispatch register",
    "--unregister": "headrace dispatch unregister",
    "--rewind": "headrace dispatch rewind",
    "--reset": "headrace dispatch rewind; a target that forgets its position could load a batch twice",
}
_USED = (
    "job_name", "src_db", "dst_db", "pgq_queue_name", "queue_name", "pgq_consumer_id", "consumer_name",
    "mode", "dateformat", "part_template", "table_filter",
)  # fmt: skip
_LOG = "replaced by `logs:`, standard error always and a file if logs.file names one"
_TICKS = "not honoured: each tick is a batch as soon as it is there, and goes into the partition of its own time"
_RETRIES = "not needed: what may pass is tried again, what never will is kept in headrace.failed_event"
_REPLACED = {
    "loop_delay": "replaced by dispatch.poll_seconds; with --here the run ends when no tick is left",
    "connection_lifetime": "not needed: a connection that broke is opened anew",
    "use_skylog": _LOG,
    "skylog_locations": _LOG,
    "logfile": "replaced by logs.file",
    "log_size": "replaced by logs.max_bytes",
    "log_count": "replaced by logs.keep",
    "pidfile": "not needed: a lock at the target keeps two from applying the same batch",
    "pgq_lazy_fetch": "replaced by dispatch.chunk_bytes: events are always read piece by piece",
    "pgq_batch_collect_events": _TICKS,
    "pgq_batch_collect_interval": _TICKS,
    "pgq_keep_lag": _TICKS,
    "pgq_autocommit": "not needed: reading holds no transaction open at the source between batches",
    "keepalive_stats": "replaced by `headrace dispatch status`",
}
_GROUPS = {
    "logfmt_": _LOG,
    "logdatefmt_": _LOG,
    "exception_": _RETRIES,
    "sql_retry": _RETRIES,
}


@dataclass(frozen=True, slots=True)
class CubeFile:
    """What an old file says. `overrides` has passwords as they are in it; notes and messages have none."""

    file: Path
    name: str
    overrides: dict[str, Any] = field(repr=False)
    notes: list[str]

    def line(self) -> str:
        """All notes in one line, for the start of a run."""
        return f"{self.file.name!r}: " + ("; ".join(self.notes) or "every setting is used as it is")


def read(path: Path) -> CubeFile:
    """The file as overrides for `workers.settings.load`, by the rules that Skytools read it with.

    `~` and environment variables are left alone: Skytools expanded `~` in logfile and pidfile only, which have no
    use here. Raises SettingsError with every problem of the file at once.
    """
    sections, shared = parse(path, SERVICE)
    section, notes = _section_of(path, list(sections))
    given = {**shared, **sections[section]}
    texts = {key: "\n".join(value.lines) for key, value in given.items()}
    folder = path.absolute()
    ours = {"host_name": socket.gethostname(), "config_dir": str(folder.parent), "config_file": str(folder)}
    known = {"job_name": path.stem, "service_name": SERVICE, **ours, **texts}
    problems: list[str] = []
    used: set[str] = set()
    says: dict[str, str] = {}
    for key in (key for key in _USED if key in given):
        try:
            says[key] = filled(known, key, used)
        except ValueError as error:
            problems.append(f"{path}: [{section}] {key} (line {given[key].number}): {error}")
    for key in ("src_db", "dst_db"):
        if key not in given or says.get(key) == "":
            problems.append(f"{path}: [{section}] {key} is missing; set it to a libpq string such as dbname=x host=y")
    if not {"pgq_queue_name", "queue_name"} & {key for key in given if says.get(key) != ""}:
        problems.append(f"{path}: [{section}] the queue is missing; set pgq_queue_name (Skytools 3: queue_name)")
    mode = says.get("mode", "keep_latest")
    if mode not in ("keep_latest", "keep_all"):
        shown = mode if NAME.fullmatch(mode) else "its value"
        problems.append(f"{path}: [{section}] mode: {shown} is neither keep_latest nor keep_all; set one of the two")
    if problems:
        raise SettingsError(problems)
    name = says.get("job_name") or path.stem
    notes += _notes(given, says, used, name)
    return CubeFile(path, name, _overrides(name, says, mode), notes)


def as_yaml(cube: CubeFile) -> str:
    """The part of headrace.yaml that says the same, the notes as comments; for UTF-8 files. Passwords are in it."""
    databases = cube.overrides["databases"]
    comments = [f"What {cube.file.name!r} of cube_dispatcher says.", *cube.notes]
    if any(redacted(dsn) != dsn or "password" in dsn for dsn in _dsns(databases)):
        comments.append("A dsn has a password: better take it out, and name its file by `password_file:` below `dsn:`.")
    document = _without_none(cube.overrides)
    body = _dumped(document, readable=True)
    if re.search("[\x85\u2028\u2029]", body):  # line ends to YAML, which would turn them into blanks
        body = _dumped(document, readable=False)
    return "".join(f"# {comment}\n" for comment in comments) + body


def _overrides(name: str, says: dict[str, str], mode: str) -> dict[str, Any]:
    source, target = f"{name}.src", f"{name}.dst"
    dateformat = says.get("dateformat", "YYYY_MM_DD")
    consumer: dict[str, Any] = {
        "source": source,
        "target": target,
        "queue": says.get("pgq_queue_name") or says["queue_name"],
        "registered_as": says.get("pgq_consumer_id") or says.get("consumer_name") or name,
        "mode": mode,
        "partition": {
            "kind": "like" if dateformat else "none",
            "by": "batch_time",
            "dateformat": dateformat,
            "part_template": says.get("part_template", "").strip("\n") or None,
            "timezone": "source",
        },
        "on_delete": "error" if mode == "keep_all" else None,
        "on_truncate": "error",
        "on_unknown": "error",
        "on_new_column": "error",
        "leaf_to_root": False,
        "sync_pgq_ext": True,
        "slices": 1,
        "merge_events": None,
    }
    if tables := _tables(says):
        consumer["only_tables"] = [glob.escape(table) for table in tables]
    return {
        "databases": {
            source: {"connection": {"dsn": says["src_db"]}},
            target: {"connection": {"dsn": says["dst_db"]}},
        },
        "dispatch": {"consumers": {name: consumer}},
    }


def _tables(says: dict[str, str]) -> list[str]:
    # Skytools 3 compares whole names with ev_extra1; one without a schema is of public.
    names = [name.strip() for name in says.get("table_filter", "").split(",")]
    return [name if "." in name else f"public.{name}" for name in names if name]


def _notes(given: dict[str, Value], says: dict[str, str], used: set[str], name: str) -> Iterator[str]:
    if not says.get("job_name"):
        yield f"job_name: missing, {name!r} after the file" + _as_registered(says)
    for pair in (("pgq_queue_name", "queue_name"), ("pgq_consumer_id", "consumer_name")):
        if all(says.get(key) for key in pair):
            yield f"{pair[1]}: not used, {pair[0]} goes before it as in Skytools 3"
    if _tables(says):
        yield "table_filter: used as only_tables, as in Skytools 3 (2.1 did not know it)"
    if "part_template" in says and not says["part_template"].strip():
        yield "part_template: empty, the default is used"
    elif "part_template" in says and says.get("dateformat") == "":
        yield "part_template: of no use without a dateformat, no table is made"
    if "part_template" in given and given["part_template"].cut:
        yield "part_template: what follows ` ;` in its first line is a comment, as for Skytools"
    for key, value in given.items():
        if key in _USED or (key in used and key not in _REPLACED):
            continue
        meaning = _REPLACED.get(key) or next((_GROUPS[start] for start in _GROUPS if key.startswith(start)), None)
        if not NAME.fullmatch(key):
            # Most likely a value's next line without its indent, perhaps with a password: not to be repeated.
            yield f"line {value.number}: unknown, not used; what goes on with the value above must be indented"
        elif meaning:
            yield f"{key}: {meaning}"
        else:
            near = get_close_matches(key, (*_USED, *_REPLACED), n=1, cutoff=0.8)
            yield f"{key}: unknown, not used" + (f" (did you mean {near[0]!r}?)" if near else "")


def _as_registered(says: dict[str, str]) -> str:
    if says.get("pgq_consumer_id") or says.get("consumer_name"):
        return ""
    return f", in PgQ too as in Skytools 3 (2.1 registered it as {SERVICE!r}: say so by pgq_consumer_id)"


def _section_of(path: Path, sections: list[str]) -> tuple[str, list[str]]:
    if SERVICE in sections:
        return SERVICE, [f"section {other!r}: not of {SERVICE}, not used" for other in sections if other != SERVICE]
    if len(sections) != 1:
        found = ", ".join(map(repr, sections)) or "none"
        raise SettingsError([f"{path}: there is no section [{SERVICE}]; found: {found}; is it the right file?"])
    return sections[0], [f"section {sections[0]!r}: taken for [{SERVICE}], the only one there is"]


def _dsns(databases: dict[str, Any]) -> list[str]:
    return [database["connection"]["dsn"] for database in databases.values()]


def _dumped(document: Any, *, readable: bool) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=readable, width=10_000)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(below) for key, below in value.items() if below is not None}
    return value


class _Dumper(yaml.SafeDumper):
    """SQL of several lines stays readable."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text_node)
