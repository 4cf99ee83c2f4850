"""How many `.bintel` records a CPU-second decodes: of each event, of all mixed, with and without making JSON.

Usage: python bench/bintel_decode.py [FILE.bintel]

Without a file it takes `mixed_small` of the reference files beside the checkout, or records of its own making.
`fresh` is with float32 numbers that never repeat, the worst case; instruments repeat most of theirs.
"""

from __future__ import annotations

import struct
import sys
import time
from collections import defaultdict
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).parents[1]))

from workers.telemetry.bintel import scan
from workers.telemetry.event_schemas import load_schemas
from workers.telemetry.float32 import SHORT_FLOATS

RECORDS = 30_000  # of each measurement
ROUNDS = 5  # the best one counts: others share the machine
SCHEMAS = load_schemas()


def main() -> None:
    """Print one line per event and two for all events together."""
    data = Path(sys.argv[1]).read_bytes() if len(sys.argv) > 1 else sample()
    found = scan(data, at_end=True, schemas=SCHEMAS)
    events: dict[str, list[bytes]] = defaultdict(list)
    for record in found.records:
        events[record.name].append(data[record.offset : record.end])
    print(f"{'event':24}{'bytes':>8}{'scan/s':>12}{'+ JSON/s':>12}")
    for name, records in sorted(events.items()):
        report(name, records)
    everything = [data[record.offset : record.end] for record in found.records]
    report("all", everything)
    SHORT_FLOATS.clear()
    kept, SHORT_FLOATS.limit = SHORT_FLOATS.limit, 1
    report("all, fresh", everything)
    SHORT_FLOATS.limit = kept


def report(label: str, records: list[bytes]) -> None:
    """Measure records repeated to a fair number and print one line."""
    data = b"".join(records) * max(1, RECORDS // len(records))
    scans, jsons = [], []
    for _ in range(ROUNDS):
        began = time.process_time()
        found = scan(data, at_end=True, schemas=SCHEMAS).records
        scanned = time.process_time()
        for record in found:
            orjson.dumps(record.message)
        ended = time.process_time()
        scans.append(len(found) / (scanned - began))
        jsons.append(len(found) / (ended - began))
    mean = sum(map(len, records)) / len(records)
    print(f"{label:24}{mean:8.0f}{max(scans):12,.0f}{max(jsons):12,.0f}")


def sample() -> bytes:
    """Records by the instrument's own program if they are there, else a few kinds of our own."""
    folder = Path(__file__).parents[2] / "shared" / "fixtures" / "telemetry" / "bintel"
    for path in folder.glob("mixed_small*.bintel"):
        return path.read_bytes()
    zaber = struct.pack("<IHHHHHxxifff", 16, 10, 16, 4, 8, 12, 12, 1.25, 2.5, 22.6)
    lines = [
        struct.pack("<bHIIB", 64, 20055, 1_713_220_250 + number, number, len(zaber)) + zaber for number in range(300)
    ]
    return b"".join(lines)


if __name__ == "__main__":
    main()
