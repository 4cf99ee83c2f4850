"""A simulated instrument: eight devices that write telemetry files as the real programs do, and count them."""

from __future__ import annotations

import gzip
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, BinaryIO

from producers.cli import instrument_formats as formats
from producers.cli.instrument_formats import SECOND, Record

BINTEL, GZIPPED, LIVE = ".bintel", ".ndjson.gz", ".ndjson"
FLUSH_SECONDS = 0.02  # between the two flushes of a .bintel file; a reader may come in between
LIVE_FROM_TURN = 3  # the live device joins late, with a folder that nobody watches yet
LIVE_SHARE = 0.05  # of records_per_file: lines of the live file in each turn
TEAR_EVERY = 3  # so often the last line of a turn stays unfinished until the next

Values = Callable[[Random, int], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Device:
    """One program of the instrument: its name, the form of its files, its event, and what it measures."""

    name: str
    form: str
    event: str
    values: Values

    def messages(self, seed: int) -> Iterator[dict[str, Any]]:
        """Everything that it ever measures; the same for the same seed."""
        random = Random(f"{seed} {self.name}")
        for number in count():
            yield self.values(random, number)


def _core_temperatures(random: Random, number: int) -> dict[str, Any]:
    return {"temps": [round(48 + 6 * math.sin(number / 300 + core) + random.gauss(0, 0.4), 2) for core in range(8)]}


def _telescope_position(random: Random, number: int) -> dict[str, Any]:
    hours = number / 36_000
    return {
        "epoch": 2000.0,
        "ra": round(111.5755416 + random.gauss(0, 1e-5), 9),
        "dec": round(-30.9 + random.gauss(0, 1e-5), 9),
        "el": round(70 - 5 * hours, 9),
        "ha": round(hours, 9),
        "am": round(1 / math.sin(math.radians(70 - 5 * (hours % 8))), 9),
        "rotoff": round(12 * hours % 360, 9),
    }


def _stage(random: Random, number: int) -> dict[str, Any]:
    place = random.randrange(4)
    return {
        "moving": int(random.random() < 0.2),
        "preset": float(place),
        "presetName": ("none", "H2", "r'", "µ")[place],
    }


def _timings(random: Random, number: int) -> dict[str, Any]:
    names = ("atime", "atime_jitter", "wtime", "wtime_jitter", "wmatime", "wmatime_jitter")
    return {name: round(abs(random.gauss(5e-4, 2e-5)), 12) for name in names}


def _observer(random: Random, number: int) -> dict[str, Any]:
    who = random.choice(("ada", "henrietta", "vera"))
    return {"email": f"{who}@observatory.example", "obsName": who.capitalize(), "observing": random.random() < 0.8}


def _humidity(random: Random, number: int) -> dict[str, Any]:
    return {"temp": round(random.gauss(9.5, 0.3), 2), "rh": round(random.uniform(20, 35), 1)}


def _loop_gain(random: Random, number: int) -> dict[str, Any]:
    return {"state": random.randrange(3), "gain": round(random.random(), 3), "multcoef": 0.99, "limit": 3.0}


def _exposure(random: Random, number: int) -> dict[str, Any]:
    return {"exptime": random.choice((0.5, 1.0, 5.0)), "frame": number, "target": "HD 48915", "cooled": True}


DEVICES = (
    Device("sysMonRTC", BINTEL, "telem_coretemps", _core_temperatures),
    Device("rhtweeter", GZIPPED, "telem_rhusb", _humidity),
    Device("tcsi", BINTEL, "telem_telpos", _telescope_position),
    Device("fgcamwfs", BINTEL, "telem_fgtimings", _timings),
    Device("holoop", GZIPPED, "telem_loopgain", _loop_gain),
    Device("stagebs", BINTEL, "telem_stage", _stage),
    Device("observers", BINTEL, "telem_observer", _observer),
    Device("camvisx", LIVE, "exptime", _exposure),
)


@dataclass(frozen=True, slots=True)
class Written:
    """Files that exist, and records that stand in them whole; `bytes` as they lie on the disk."""

    files: int = 0
    records: int = 0
    bytes: int = 0

    def __add__(self, other: Written) -> Written:
        return Written(self.files + other.files, self.records + other.records, self.bytes + other.bytes)


class Instrument:
    """Eight devices below one folder, measuring the same things for the same seed. Runs once."""

    def __init__(self, folder: Path, seed: int = 1) -> None:
        self.folder = folder
        # No record is older than this, in nanoseconds; a whole second, because live file names know no less.
        self.began_ns = time.time_ns() // SECOND * SECOND - SECOND
        self._streams = {device.name: device.messages(seed) for device in DEVICES}
        self._clocks = dict.fromkeys(self._streams, self.began_ns)
        self._random = Random(seed)
        self._lock = threading.Lock()
        self._written = {device.name: Written() for device in DEVICES}

    def written(self) -> MappingProxyType[str, Written]:
        """What each device has written so far; may be asked from any thread."""
        with self._lock:
            return MappingProxyType(dict(self._written))

    def run(self, stop: threading.Event, *, files_per_second: float = 8.0, records_per_file: int = 1250) -> None:
        """Write until `stop`: each turn one whole file of the next device, and some lines of the live one.

        A machine that is too slow for the rate gets fewer files, never a burst. Every file is complete when
        this returns. Raises OSError when the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        writers = {BINTEL: self._write_bintel, GZIPPED: self._write_gzipped}
        steady = [device for device in DEVICES if device.form in writers]
        live = _Live(self, next(device for device in DEVICES if device.form == LIVE))
        due = time.monotonic()
        try:
            for turn in count():
                device = steady[turn % len(steady)]
                writers[device.form](device, self.measure(device, records_per_file))
                if turn >= LIVE_FROM_TURN:
                    lines = max(1, round(records_per_file * LIVE_SHARE))
                    live.append(lines, tear=turn % TEAR_EVERY == 0, roll_after=records_per_file)
                due = max(due + 1 / files_per_second, time.monotonic())
                if stop.wait(due - time.monotonic()):
                    return
        finally:
            live.close()

    def measure(self, device: Device, number: int) -> list[Record]:
        """The device's next records: evenly from its last one until now, at least a microsecond apart."""
        last = self._clocks[device.name]
        step = max(1000, (time.time_ns() - last) // number)
        self._clocks[device.name] = last + number * step
        stream = self._streams[device.name]
        return [Record(last + place * step, device.event, next(stream)) for place in range(1, number + 1)]

    def wrote(self, device: Device, **more: int) -> None:
        """Count what is on the disk now."""
        with self._lock:
            self._written[device.name] += Written(**more)

    def _write_bintel(self, device: Device, records: list[Record]) -> None:
        content = b"".join(map(formats.bintel_record, records))
        path = self.folder / formats.program_name(device.name, records[0].nanoseconds, "bintel")
        # The real logger flushes its buffer as time goes by, wherever a record happens to be cut.
        cut = self._random.randrange(1, len(content))
        with path.open("wb") as file:
            file.write(content[:cut])
            file.flush()
            time.sleep(FLUSH_SECONDS)
            file.write(content[cut:])
        self.wrote(device, files=1, records=len(records), bytes=len(content))

    def _write_gzipped(self, device: Device, records: list[Record]) -> None:
        lines = [formats.program_line(record) for record in records]
        members = self._random.choice((1, 1, 3))
        share = -(-len(lines) // members)
        portions = [b"".join(lines[start : start + share]) for start in range(0, len(lines), share)]
        content = b"".join(gzip.compress(portion, mtime=0) for portion in portions)
        path = self.folder / formats.program_name(device.name, records[0].nanoseconds, "ndjson.gz")
        # Complete or not there at all: under its real name a reader never sees a part of it.
        unfinished = path.with_name(f".{path.name}.part")
        unfinished.write_bytes(content)
        unfinished.rename(path)
        self.wrote(device, files=1, records=len(records), bytes=len(content))


class _Live:
    """The file that a Python device writes line by line, in a folder of its own; sometimes only half a line."""

    def __init__(self, instrument: Instrument, device: Device) -> None:
        self._instrument, self._device = instrument, device
        self._file: BinaryIO | None = None
        self._name = ""
        self._lines = 0
        self._torn = b""

    def append(self, number: int, *, tear: bool, roll_after: int) -> None:
        """Finish the line that was torn, write `number` more, the last one only in half if it is to be torn."""
        self._finish_line()
        records = self._instrument.measure(self._device, number)
        name = formats.python_name(self._device.name, records[0].nanoseconds)
        if self._file is None or (self._lines >= roll_after and name != self._name):
            self._open(name)
        *whole, last = (formats.python_line(record) for record in records)
        for line in whole:
            self._write(line)
        self._write(last[: len(last) // 2] if tear else last)
        self._torn = last[len(last) // 2 :] if tear else b""

    def close(self) -> None:
        """Finish the last line and close the file."""
        self._finish_line()
        if self._file is not None:
            self._file.close()

    def _open(self, name: str) -> None:
        if self._file is not None:
            self._file.close()
        folder = self._instrument.folder / self._device.name
        folder.mkdir(exist_ok=True)
        self._file = (folder / name).open("xb", buffering=0)
        self._name, self._lines = name, 0
        self._instrument.wrote(self._device, files=1)

    def _finish_line(self) -> None:
        if self._torn:
            self._write(self._torn)
            self._torn = b""

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        self._file.write(content)
        whole = int(content.endswith(b"\n"))
        self._lines += whole
        self._instrument.wrote(self._device, records=whole, bytes=len(content))
