"""The process in which a site's inspectors run: it reads which file to ask about, and answers a line per inspector.

`python -m workers.products.inspector_child CHANNEL MEMORY_BYTES`: CHANNEL is the number of an open socket, with a
JSON document per line. stdin is a pipe that nobody writes to: it closes with the parent. What inspectors print goes
to the parent as text, never into the channel. It imports little, because its start is waited for.
"""

from __future__ import annotations

import datetime
import faulthandler
import fcntl
import json
import os
import resource
import signal
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO

from workers.paths import to_bytes
from workers.products import dbprocessing_api

_REQUIRED = ("utc_file_date", "utc_start_time", "utc_stop_time", "version")
_NOTES = (
    "quality_comment", "caveats", "met_start_time", "met_stop_time", "verbose_provenance", "check_date",
    "quality_checked",
)  # fmt: skip
_TRACEBACK_CHARACTERS = 3000
_NOTE_CHARACTERS = 100_000


class Refused(Exception):
    """An inspector that cannot be asked, or whose claim is none; the text says why."""


class Modules:
    """The inspectors' modules: each loaded once, and anew when its file has changed."""

    def __init__(self) -> None:
        self._loaded: dict[bytes, tuple[tuple[int, ...], ModuleType]] = {}

    def get(self, path: bytes) -> ModuleType:
        """The module of a file. Raises Refused when there is no such file, and what the module raises."""
        try:
            facts = os.stat(path)
        except OSError as error:
            raise Refused(f"cannot be loaded: {error.strerror}; is it where the mission's inspectors are?") from None
        stamp = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        loaded = self._loaded.get(path)
        if loaded is None or loaded[0] != stamp:
            loaded = self._loaded[path] = (stamp, _load(path))
        return loaded[1]


def _load(path: bytes) -> ModuleType:
    # Without importlib's cache: it takes a change of the same second and size for none, and writes into the
    # site's folder.
    module = ModuleType(f"inspector of {os.fsdecode(path)}")
    module.__file__ = os.fsdecode(path)
    with open(path, "rb") as file:
        code = compile(file.read(), module.__file__, "exec", dont_inherit=True)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    exec(code, vars(module))
    return module


def _ask(spec: dict[str, Any], module: ModuleType, filename: str) -> dict[str, Any] | None:
    """What one inspector says of a file: None for "not mine". Raises Refused, and whatever the inspector raises."""
    if not hasattr(module, "Inspector"):
        raise Refused("has no class Inspector")
    product = SimpleNamespace(
        product_id=spec["product_id"], product_name=spec["product"], level=spec["level"], format=spec["format"]
    )
    database = dbprocessing_api.Database(spec["mission"], product)
    asked = module.Inspector(filename, database, product.product_id, **spec["arguments"])
    if asked.diskfile is None:
        return None
    params = asked.diskfile.params
    if missing := [name for name in _REQUIRED if params.get(name) is None]:
        # `return False` is how many say "not mine"; dbprocessing sees that by what is not set.
        if not asked.answer:
            return None
        raise Refused(f"claims the file but does not set {', '.join(missing)}")
    return _claim(params)


def _claim(params: dict[str, Any]) -> dict[str, Any]:
    day, version = params["utc_file_date"], params["version"]
    if not isinstance(day, datetime.date):
        raise Refused(f"claims the file, but its utc_file_date is {day!r}, not a date")
    start, stop = _moment("utc_start_time", params), _moment("utc_stop_time", params)
    if stop < start:
        raise Refused(f"claims the file, but its utc_stop_time {stop} is before its utc_start_time {start}")
    try:
        numbers = [int(version.interface), int(version.quality), int(version.revision)]
    except (AttributeError, TypeError, ValueError):
        raise Refused(f"claims the file, but its version is {version!r}, not a Version") from None
    if numbers[0] < 1 or min(numbers) < 0:
        raise Refused(f"claims the file, but {version} is no version; the first is 1.0.0")
    keywords = params.get("process_keywords")
    notes = {name: _json(params[name]) for name in _NOTES if params.get(name) is not None}
    return {
        "day": (day.date() if isinstance(day, datetime.datetime) else day).isoformat(),
        "start": start.isoformat(),
        "stop": stop.isoformat(),
        "version": numbers,
        "keywords": "" if keywords is None else _plain(str(keywords)),
        "notes": notes or None,
    }


def _moment(name: str, params: dict[str, Any]) -> datetime.datetime:
    moment = params[name]
    if not isinstance(moment, datetime.date):
        raise Refused(f"claims the file, but its {name} is {moment!r}, not a datetime")
    if not isinstance(moment, datetime.datetime):
        moment = datetime.datetime(moment.year, moment.month, moment.day, tzinfo=datetime.UTC)
    # Inspectors say UTC by saying nothing.
    return moment.replace(tzinfo=datetime.UTC) if moment.tzinfo is None else moment.astimezone(datetime.UTC)


def _json(value: Any) -> Any:
    if isinstance(value, bool | int):
        return value
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, float) or hasattr(value, "item"):  # a number of numpy's becomes one of ours
        number = value if isinstance(value, float) else value.item()
        return number if isinstance(number, int) or number - number == 0 else str(number)  # JSON has no NaN
    return _plain(str(value))[:_NOTE_CHARACTERS]


def _plain(text: str) -> str:
    """Text that a PostgreSQL column and a terminal take; bytes of a name that are not UTF-8 become `\\xNN`."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def _raised(error: BaseException) -> str:
    import traceback

    trace = error.__traceback__
    # Our own frames say nothing about the inspector.
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace)).strip()
    if len(text) > _TRACEBACK_CHARACTERS:
        text = "..." + text[-_TRACEBACK_CHARACTERS:]
    summary = traceback.format_exception_only(error)[-1].strip().partition("\n")[0]
    return f"raised {summary}\n{text}"


def _reply(spec: dict[str, Any], modules: Modules, filename: str) -> dict[str, Any]:
    try:
        claim = _ask(spec, modules.get(to_bytes(spec["path"])), filename)
    except Refused as refused:
        return {"problem": _plain(str(refused))}
    except BaseException as error:  # SystemExit too: one inspector must not end the others.
        return {"problem": _plain(_raised(error))}
    return {"claim": claim}


def _die_with_parent() -> None:
    # The kernel kills this whole process group when the pipe's other end closes, even if an inspector hangs in C
    # with the interpreter's lock held. PR_SET_PDEATHSIG would be about the parent's thread, and this process only.
    lifeline = os.dup(0)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _prepare(memory_bytes: int) -> None:
    _die_with_parent()
    # SIGUSR1 means: you hang; say where, and end.
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    faulthandler.register(signal.SIGUSR1, all_threads=False, chain=True)
    faulthandler.enable(all_threads=False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")  # When memory ends, this process goes first, not the worker or PostgreSQL.
    except OSError:
        pass  # A kernel or container that does not let us: it only was a precaution.
    sys.dont_write_bytecode = True
    os.chdir("/")
    dbprocessing_api.install(sys.modules)


def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    def send(document: dict[str, Any]) -> None:
        replies.write(json.dumps(document, allow_nan=False).encode("ascii") + b"\n")
        replies.flush()

    specs = json.loads(requests.readline())
    modules = Modules()
    send({"ready": True})
    for line in requests:
        request = json.loads(line)
        filename = os.fsdecode(to_bytes(request["path"]))
        for number in request["ask"]:
            send(_reply(specs[number], modules, filename))


def main() -> None:
    """Serve until the channel closes."""
    channel, memory_bytes = (int(argument) for argument in sys.argv[1:3])
    os.set_inheritable(channel, False)  # An inspector's own processes must not keep it open.
    _prepare(memory_bytes)
    with open(channel, "rb", closefd=False) as requests, open(channel, "wb", closefd=False) as replies:
        _serve(requests, replies)


if __name__ == "__main__":
    main()
