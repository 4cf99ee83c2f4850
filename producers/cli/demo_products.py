"""The products of a demonstration: files of a mission come in, are built, damaged and repaired, and judged by byte."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import yaml

from producers.cli.follow import who
from workers import database, paths
from workers.messages import PlanProducts
from workers.products import api
from workers.settings import Settings
from workers.sql_files import queries

SQL = queries("demo")
Row = dict[str, Any]

NAME = "DEMO"  # of the mission
LEVELS = ("L0", "L1", "L2")
SETTINGS: dict[str, Any] = {
    "settle_seconds": 0.5,
    "sweep_seconds": 5.0,
    "requeue_seconds": 10.0,
    "check_hours": None,  # the demonstration checks by itself, when there is something to find
}
DEFINITION = """
satellites: {DEMO-a: [cam]}
products:
  L0: {instrument: cam, level: 0, format: "demo_L0_{Y}{m}{d}_v{VERSION}.dat", folder: "L0/{Y}"}
  L1: {instrument: cam, level: 1, format: "demo_L1_{Y}{m}{d}_v{VERSION}.dat", folder: "L1/{Y}"}
  L2: {instrument: cam, level: 2, format: "demo_L2_{Y}{m}{d}_v{VERSION}.dat", folder: "L2/{Y}"}
processes:
  calibrate:
    output: L1
    timebase: FILE
    inputs: [L0]
    codes: [{version: 1.0.0, file: calibrate.sh, timeout: 30s}]
  summarise:
    output: L2
    timebase: DAILY
    inputs: [{product: L1, yesterday: 1, tomorrow: 1}]
    codes: [{version: 1.0.0, file: summarise.sh, timeout: 30s}]
"""
FIRST_DAY = date(2027, 3, 1)
GAP_DAYS = 7  # between two demonstrations in one folder: no output of one has a file of the other
CALIBRATE = """#!/bin/sh
# Each reading of a file, calibrated.
while read -r hour reading; do
    echo "$hour $((2 * reading + 1))"
done < "$1" > "$2"
"""
SUMMARISE = """#!/bin/sh
# Of each file how many readings it has, and their sum; the last word is the output.
for output; do :; done
while [ $# -gt 1 ]; do
    count=0 total=0
    while read -r hour reading; do
        count=$((count + 1)) total=$((total + reading))
    done < "$1"
    echo "$count $total"
    shift
done > "$output"
"""

JUNK = b"cloudy\n"
PACE_SECONDS = 1.0  # between two deliveries
NEEDED = 4  # deliveries, for everything to happen that is to happen
PATIENCE_SECONDS = 45.0  # beyond the last record; five to ten are usual
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class ProductsOutcome:
    """How it stands: deliveries, runs of codes that ended well, repairs, and what is not as it should be.

    `damaged` are names of files, and `found` is what the check said of each. `verified` files have the bytes that they
    should have; `wrong` has a sentence for each that has not, and for whatever is lacking or too much. `repeated` runs
    had the inputs and the code of an earlier one.
    """

    came_in: int = 0
    built: int = 0
    repaired: int = 0
    quarantined: int = 0
    verified: int = 0
    damaged: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    failed: int = 0
    repeated: int = 0
    due: int = 0
    wrong: tuple[str, ...] = ()

    @property
    def problem(self) -> str | None:
        """What is wrong, for people; None: each output is there once, and is what its newest inputs make of it."""
        if self.failed:
            return f"runs that failed: {self.failed}"
        if self.repeated:
            return f"runs with the inputs and the code of an earlier one: {self.repeated}"
        if self.wrong:
            return f"{self.wrong[0]}{f', and {len(self.wrong) - 1} more' if len(self.wrong) > 1 else ''}"
        if self.due:
            return f"{self.due} outputs are still due"
        if len(self.damaged) != 2:
            return "there was nothing that could be damaged on purpose"
        if self.found != ("missing", "corrupt"):
            return f"the check said of {' and '.join(self.damaged)}: {', '.join(self.found) or 'nothing'}"
        if self.repaired != 2:
            return f"{self.repaired} of 2 damaged outputs were built again"
        if self.quarantined != 1:
            return f"{self.quarantined} files are in quarantine instead of 1"
        return None


class Products:
    """The mission of one demonstration, below its folder; used by one thread."""

    def __init__(self, conf: Settings, folder: Path, on_note: Callable[[str], None]) -> None:
        self._conf = conf  # its control database has an address once it runs
        self._file, self._root = folder / "mission.yaml", folder / "mission"
        self._on_note = on_note
        self._first = FIRST_DAY
        self._raw: list[list[bytes]] = []  # of each day from the first one on: its versions, oldest first
        self._junk = ""
        self._deliveries = 0
        self._deliver_at = 0.0
        self._is_asked = False
        self._victims: list[Row] = []
        self._found: dict[int | None, str] = {}  # what the check says, by the files' ids

    def set_up(self) -> None:
        """Write codes and definition, and load it. What an earlier demonstration left stays; its days are over."""
        for name, text in (("calibrate.sh", CALIBRATE), ("summarise.sh", SUMMARISE)):
            code = self._root / "codes" / name
            code.parent.mkdir(parents=True, exist_ok=True)
            code.write_text(text)
            code.chmod(0o755)
        incoming = self._root / "incoming"
        incoming.mkdir(exist_ok=True)
        for left in incoming.iterdir():
            left.unlink()
        self._file.write_text(self._definition(), encoding="utf-8")
        mission, _warnings = api.read_mission(self._file)
        with api.connection(self._conf, purpose="demo") as conn:
            api.load(conn, mission, host=self._conf.host, by=who())
            last = SQL["last_day"].value(conn, {"mission": NAME})
            conn.commit()
        if last is not None:
            self._first = last + timedelta(days=GAP_DAYS)

    def play(self, *, is_over: bool = False) -> None:
        """Deliver what it is time for, and have two outputs damaged and repaired as soon as they can be.

        `is_over`: only what has to come yet for that.
        """
        if time.monotonic() >= self._deliver_at and not (is_over and self._deliveries >= NEEDED):
            self._deliver_at = max(self._deliver_at, time.monotonic() - PACE_SECONDS) + PACE_SECONDS
            self.deliver()
        if not self._is_asked and self.damage():
            self._ask()

    def deliver(self) -> None:
        """The next delivery: a day's file, once also one that nobody knows, and every fourth time a newer version."""
        number = self._deliveries
        self._deliveries += 1
        if number % 4 == 3:
            self._write(len(self._raw) - 2)  # of the days 1, 4, 7...: by the first four all is said of days 0 and 1
            return
        self._raw.append([])
        self._write(len(self._raw) - 1)
        if number == 2:
            self._junk = f"weather of {self._day(number)}.txt"
            self._drop(self._junk, JUNK)

    def damage(self) -> bool:
        """Delete an output, flip a bit of another, and let a check see that; whether it has found both.

        Does nothing while outputs of the first two days are still to change.
        """
        if self._deliveries < NEEDED or len(self._found) == 2:
            return len(self._found) == 2
        if not self._victims:
            files = _newest(self._files())
            wanted = [(level, self._day(number)) for level in LEVELS for number in (0, 1)]
            if any(key not in files or self._trouble(files[key], files) for key in wanted):
                return False
            gone, flipped = files["L1", self._day(0)], files["L2", self._day(1)]
            self._path(gone).unlink()
            _flip(self._path(flipped))
            self._victims = [gone, flipped]
            self._on_note(f"{gone['filename']} is deleted and a bit of {flipped['filename']} flipped, on purpose")
        ids = {row["id"] for row in self._victims}
        with api.connection(self._conf, purpose="demo") as conn:
            report = api.check_files(conn, api.mission(conn, NAME).id, fix=True, deep=True)
        self._found |= {one.file_id: one.kind for one in report.findings if one.is_fixed and one.file_id in ids}
        if len(self._found) < 2:
            return False
        self._on_note("a check found both, and workers build them again")
        return True

    def at_end(self, pause: Callable[[float], None]) -> ProductsOutcome:
        """How it stands once all is as it should be, or it is too late. `pause` waits, or raises to end it all."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.play(is_over=True)
            found = self.outcome()
            if found.problem is None or time.monotonic() > deadline:
                return found
            pause(POLL_SECONDS)

    def built(self) -> int:
        """How many runs of codes have ended well by now."""
        with self._connection() as conn:
            return int(SQL["builds"].records(conn, self._ours)[0]["built"])

    def outcome(self) -> ProductsOutcome:
        """How it stands now."""
        with self._connection() as conn:
            counts = SQL["builds"].records(conn, self._ours)[0]
            held = [row for row in api.quarantined(conn, mission=NAME) if row["filename"] == self._junk]
        files = self._files()  # after the counts: a build that has ended by then has its file
        names, newest = {row["filename"] for row in files}, _newest(files)
        troubles = [trouble for row in files if (trouble := self._trouble(row, newest)) is not None]
        return ProductsOutcome(
            came_in=sum(row["product"] == "L0" for row in files),
            verified=len(files) - len(troubles),
            quarantined=sum(_content(_on_disk(row["kept_as"])) == JUNK for row in held),
            damaged=tuple(row["filename"] for row in self._victims),
            found=tuple(self._found[row["id"]] for row in self._victims if row["id"] in self._found),
            wrong=(*troubles, *self._lacking(names, newest), *self._too_much(names)),
            **counts,
        )

    def _definition(self) -> str:
        root = paths.to_text(os.fspath(self._root))
        head = {"mission": NAME, "root": root, "codes": "codes", "hosts": [self._conf.host]}
        return yaml.safe_dump(head, sort_keys=False) + DEFINITION

    def _write(self, number: int) -> None:
        versions = self._raw[number]
        day = self._day(number)
        versions.append(_readings(day, len(versions)))
        self._drop(_raw_name(day, len(versions) - 1), versions[-1])

    def _drop(self, name: str, content: bytes) -> None:
        part = self._root / "incoming" / f".{name}.part"
        part.write_bytes(content)
        part.rename(part.with_name(name))

    def _ask(self) -> None:
        """Have a worker look for stale outputs now; a sweep does that every few seconds."""
        from workers.app import send

        send([PlanProducts(host=self._conf.host, mission=NAME)], slot=f"demo-{time.time_ns()}")
        self._is_asked = True

    def _trouble(self, row: Row, newest: Mapping[tuple[str, date], Row]) -> str | None:
        """What is wrong with a file, on disk or in the database; None: nothing."""
        name, number = row["filename"], (row["day"] - self._first).days
        if row["state"] != "present":
            return f"{name} is {row['state']}"
        content = _content(self._path(row))
        if content is None or hashlib.sha256(content).hexdigest() != row["sha256"]:
            return f"{name} is on disk another than in the database"
        if number >= len(self._raw):
            return f"{name} is of a day of which nothing was delivered"
        if row["product"] == "L0":
            delivered = {_raw_name(row["day"], version): raw for version, raw in enumerate(self._raw[number])}
            return None if delivered.get(name) == content else f"{name} is not what was delivered"
        if not row["is_newest"]:
            return None
        level, numbers, expected = self._expected(row["product"], number)
        if content != expected:
            return f"{name} is not what its code makes of its newest inputs"
        inputs = [newest[level, self._day(one)]["id"] for one in numbers if (level, self._day(one)) in newest]
        return None if row["inputs"] == sorted(inputs) else f"{name} does not say that it has the newest inputs"

    def _expected(self, product: str, number: int) -> tuple[str, list[int], bytes]:
        """What an output is made of, a product and numbers of days, and what it holds then."""
        if product == "L1":
            return "L0", [number], calibrated(self._raw[number][-1])
        numbers = [one for one in (number - 1, number, number + 1) if 0 <= one < len(self._raw)]
        return "L1", numbers, summarised([calibrated(self._raw[one][-1]) for one in numbers])

    def _lacking(self, names: Collection[str], newest: Mapping[tuple[str, date], Row]) -> Iterator[str]:
        for number, versions in enumerate(self._raw):
            day = self._day(number)
            raw = [_raw_name(day, version) for version in range(len(versions))]
            yield from (f"{name} did not come in" for name in raw if name not in names)
            yield from (f"there is no {level} of {day}" for level in LEVELS if (level, day) not in newest)
            if ("L0", day) in newest and newest["L0", day]["filename"] != raw[-1]:
                yield f"{newest['L0', day]['filename']} counts as the newest of its day, not {raw[-1]}"

    def _too_much(self, names: Collection[str]) -> Iterator[str]:
        """Files on disk that the database has not, and what still lies in the incoming folder."""
        since = f"{self._first:%Y%m%d}"
        for path in sorted(self._root.glob("L?/*/demo_L?_*")):
            if path.name not in names and path.name.split("_")[2] >= since:
                yield f"{path.name} is on disk, and not in the database"
        yield from (f"{path.name} was not taken in" for path in sorted((self._root / "incoming").iterdir()))

    def _files(self) -> list[Row]:
        with self._connection() as conn:
            return SQL["mission_files"].records(conn, self._ours)

    @property
    def _ours(self) -> dict[str, Any]:
        return {"mission": NAME, "since": self._first}

    def _day(self, number: int) -> date:
        return self._first + timedelta(days=number)

    def _path(self, row: Row) -> Path:
        return self._root / _on_disk(row["place"])

    def _connection(self) -> AbstractContextManager[database.Connection]:
        return database.connection(self._conf.target(), purpose="demo", autocommit=True)


def _newest(files: Sequence[Row]) -> dict[tuple[str, date], Row]:
    return {(row["product"], row["day"]): row for row in files if row["is_newest"]}


def calibrated(raw: bytes) -> bytes:
    """What the code `calibrate.sh` makes of a file."""
    readings = (line.split() for line in raw.splitlines())
    return b"".join(b"%s %d\n" % (hour, 2 * int(reading) + 1) for hour, reading in readings)


def summarised(inputs: Sequence[bytes]) -> bytes:
    """What the code `summarise.sh` makes of files, in this order."""
    columns = [[int(line.split()[1]) for line in one.splitlines()] for one in inputs]
    return b"".join(b"%d %d\n" % (len(readings), sum(readings)) for readings in columns)


def _readings(day: date, version: int) -> bytes:
    """A day's 24 readings; those of each version are others."""
    seed = day.toordinal() * 31 + version * 17
    return b"".join(b"%02d %d\n" % (hour, (seed + hour * hour) % 1000) for hour in range(24))


def _raw_name(day: date, version: int) -> str:
    return f"demo_L0_{day:%Y%m%d}_v1.{version}.0.dat"


def _on_disk(text: str) -> Path:
    return Path(os.fsdecode(paths.to_bytes(text)))


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _flip(path: Path) -> None:
    """Change a bit in the middle of a file as a bad disk does: its size and its time stay."""
    facts = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
