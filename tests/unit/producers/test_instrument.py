"""The simulated instrument: what it writes is what the project's own readers read, and what it counts."""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.cli.instrument import BINTEL, DEVICES, GZIPPED, LIVE, Device, Instrument, Written
from producers.cli.instrument_formats import EVENTS, Record, bintel_record, flatbuffer
from workers.telemetry import bintel
from workers.telemetry.event_schemas import load_schemas
from workers.telemetry.names import parse_name
from workers.telemetry.readers import Limits, batches
from workers.telemetry.records import DELIMITER
from workers.telemetry.streams import Position

SEED = 7
RECORDS_PER_FILE = 30
SCHEMAS = load_schemas(None)


class Turns(threading.Event):
    """A stop that comes after so many turns, and looks at the folder at each of them instead of waiting."""

    def __init__(self, turns: int, folder: Path) -> None:
        super().__init__()
        self.left, self.folder = turns, folder
        self.open_ends = 0

    def wait(self, timeout: float | None = None) -> bool:
        """Count the live files that end in the midst of a line."""
        self.open_ends += sum(not path.read_bytes().endswith(b"\n") for path in self.folder.rglob("*.ndjson"))
        self.left -= 1
        return self.left == 0


@dataclass
class Observation:
    """An instrument that has written, and how often one of its lines was seen half."""

    instrument: Instrument
    open_ends: int = 0
    files: dict[str, list[Path]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """Thirty turns of the instrument."""
    folder = tmp_path_factory.mktemp("instrument")
    instrument, turns = Instrument(folder, SEED), Turns(30, folder)
    instrument.run(turns, files_per_second=1000, records_per_file=RECORDS_PER_FILE)
    files = {device.name: sorted(folder.rglob(f"{device.name}_*")) for device in DEVICES}
    return Observation(instrument, turns.open_ends, files)


def read(path: Path) -> list[tuple[str, int, str, str, dict[str, Any]]]:
    """(time, nanoseconds below the microsecond, priority, event, message) of each record; all else is an error."""
    found, ends_open = [], True
    with path.open("rb") as file:
        for batch in batches(file, path.name, "x", Position(), Limits(), SCHEMAS):
            parsed = batch.careful()
            assert not parsed.dead
            assert not batch.dead
            ends_open = batch.open
            for line in parsed.lines:
                _device, stamp, ns, prio, event, message = line.replace(b"\x01", b"").split(DELIMITER)
                found.append((stamp.decode(), int(ns), prio.decode(), event.decode(), orjson.loads(message)))
    assert not ends_open
    return found


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: str(device.name))
def test_every_record_is_read_as_it_was_measured(observed: Observation, device: Device) -> None:
    """A device's files hold, in their order, the messages of its seed, at times that only grow, and nothing else."""
    records = [record for path in observed.files[device.name] for record in read(path)]
    measured = device.messages(SEED)
    assert [record[4] for record in records] == [next(measured) for _ in records]
    assert {record[2:4] for record in records} == {("TELM", device.event)}
    times = [record[:2] for record in records]
    assert times == sorted(set(times))
    count = observed.instrument.written()[device.name]
    disk = sum(path.stat().st_size for path in observed.files[device.name])
    assert count == Written(len(observed.files[device.name]), len(records), disk)
    assert count.records >= RECORDS_PER_FILE


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: str(device.name))
def test_a_file_is_named_by_its_device_and_first_record(observed: Observation, device: Device) -> None:
    """The stamp in a name is the time of the first record, to the nanosecond, or to the second of a live file."""
    for path in observed.files[device.name]:
        name = parse_name(path.name)
        text, ns, *_rest = read(path)[0]
        assert name.device == device.name
        assert name.stamp is not None
        if device.form == LIVE:
            assert f"{name.stamp:%Y-%m-%dT%H:%M:%S}" == text[:19]
            assert path.parent.name == device.name
        else:
            assert (f"{name.stamp:%Y-%m-%dT%H:%M:%S.%f}", name.ns) == (text, ns)


def test_half_lines_are_seen_but_no_half_archives(observed: Observation) -> None:
    """A reader meets the live file in the midst of a line; a .gz has its name only when it is whole."""
    assert observed.open_ends > 0
    assert not list(observed.instrument.folder.rglob("*.part"))
    assert {device.form for device in DEVICES} == {BINTEL, GZIPPED, LIVE}


def test_some_archives_have_several_members(observed: Observation) -> None:
    """Among the .gz are some that were written in several members."""
    members = [path.read_bytes().count(b"\x1f\x8b\x08\0") for path in observed.instrument.folder.glob("*.gz")]
    assert min(members) == 1
    assert max(members) > 1


def test_another_seed_measures_something_else(tmp_path: Path) -> None:
    """The same seed measures the same, another one does not."""
    for device in DEVICES:
        first = [next(stream) for stream in (device.messages(1), device.messages(1), device.messages(2))]
        later = [[next(stream) for _ in range(50)] for stream in (device.messages(1), device.messages(2))]
        assert first[0] == first[1]
        assert later[0] != later[1]


def test_no_record_is_older_than_the_instrument(observed: Observation) -> None:
    """Whoever asks for rows since the instrument's beginning gets all of them."""
    began = observed.instrument.began_ns
    stamps = [parse_name(path.name).stamp for paths in observed.files.values() for path in paths]
    assert began % 1_000_000_000 == 0
    assert all(stamp is not None and stamp.timestamp() * 1e9 >= began for stamp in stamps)
    assert max(stamp for stamp in stamps if stamp) - min(stamp for stamp in stamps if stamp) < timedelta(minutes=2)


FLOAT32 = st.floats(width=32, allow_nan=False).filter(lambda value: value != 0 or str(value) == "0.0")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=400)
MESSAGES = st.one_of(
    st.tuples(
        st.just("telem_stage"),
        st.fixed_dictionaries({"moving": st.integers(-128, 127), "preset": FLOAT32, "presetName": TEXT}),
    ),
    st.tuples(
        st.just("telem_observer"),
        st.fixed_dictionaries({"email": TEXT, "obsName": TEXT, "observing": st.booleans()}),
    ),
    st.tuples(st.just("telem_coretemps"), st.fixed_dictionaries({"temps": st.lists(FLOAT32, max_size=200)})),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(MESSAGES, min_size=1, max_size=5), st.integers(0, 2**32 * 10**9 - 1))
def test_any_message_survives_the_binary_format(messages: list[tuple[str, dict[str, Any]]], instant: int) -> None:
    """Whatever strings and numbers a record holds, the project's decoder returns it to the bit."""
    content = b"".join(bintel_record(Record(instant, event, message)) for event, message in messages)
    scan = bintel.scan(content, at_end=True, schemas=SCHEMAS)
    assert not scan.damage
    assert scan.consumed == len(content)
    assert [record.seconds * 10**9 + record.nanoseconds for record in scan.records] == [instant] * len(messages)
    for record, (event, message) in zip(scan.records, messages, strict=True):
        assert record.name == event
        assert {name: to_bits(value) for name, value in record.message.items()} == {
            name: to_bits(value) for name, value in message.items()
        }


@pytest.mark.parametrize(("values", "header"), [(0, 12), (40, 12), (100, 14), (20_000, 20)])
def test_the_header_grows_with_the_message(values: int, header: int) -> None:
    """A record of any length is framed as the format says, and its message fills a multiple of 4 bytes."""
    message = {"temps": [1.5] * values}
    record = bintel_record(Record(1, "telem_coretemps", message))
    content = flatbuffer(EVENTS["telem_coretemps"].fields, message)
    assert (len(record) - len(content), len(content) % 4) == (header, 0)
    (decoded,) = bintel.scan(record, at_end=True, schemas=SCHEMAS).records
    assert decoded.message == message


def to_bits(value: object) -> object:
    """Numbers of a decoded message as float32 bits: the decoder may print the shortest decimal of the same bits."""
    if isinstance(value, float):
        return struct.pack("<f", value)
    if isinstance(value, list):
        return [to_bits(item) for item in value]
    return value
