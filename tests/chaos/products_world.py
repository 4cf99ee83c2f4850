"""A mission L0 -> L1 (each file) -> L2 (a day with its neighbours) on real folders, and what is true of it at rest."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from workers import database, execution, paths, runs
from workers.errors import HeadraceError
from workers.messages import BuildProducts, IngestIncoming, Message, PlanProducts, TendProducts
from workers.products import api, running
from workers.settings import Settings

Ask = Callable[..., list[tuple[Any, ...]]]
Newest = dict[tuple[str, date], tuple[Any, ...]]  # by product and day: name, content, what it was made of

FIRST = date(2027, 1, 1)
IMPATIENT: dict[str, Any] = {
    "settle_seconds": 0.2, "sweep_seconds": 1, "requeue_seconds": 1, "retry_seconds": 0.1, "lanes": 2,
}  # fmt: skip
# Both say which one they are, and write what they read into their last argument.
# While there is a gate they stand still, but for one that may pass.
CODE = """#!/bin/sh
for out; do :; done
{more}
if [ -e "$GATE" ]; then : > "$GATE.$$"; while [ -e "$GATE" ] && [ ! -e "$GATE-pass.$$" ]; do sleep 0.02; done; fi
while [ $# -gt 1 ]; do sed 's/^/{name} /' -- "$1" || exit 1; shift; done > "$out"
"""
MISSION = """
mission: {name}
root: {folder}/root
incoming: {folder}/incoming
codes: {folder}/codes
quarantine: {folder}/quarantine
hosts: [here, there]
satellites: {{a: [mag]}}
products:
  l0: {{instrument: mag, level: 0, format: "l0_{{Y}}{{m}}{{d}}_v{{VERSION}}.dat", folder: "L0/{{Y}}"}}
  aux: {{instrument: mag, level: 0, format: "aux_{{Y}}{{m}}{{d}}_v{{VERSION}}.dat", folder: aux}}
  l1: {{instrument: mag, level: 1, format: "l1_{{Y}}{{m}}{{d}}_v{{VERSION}}.dat", folder: L1}}
  l2: {{instrument: mag, level: 2, format: "l2_{{Y}}{{m}}{{d}}_v{{VERSION}}.dat", folder: L2}}
processes:
  l0_l1: {{output: l1, timebase: FILE, inputs: [l0], codes: [{{version: 1.0.0, file: l1.sh, environment: {gate}}}]}}
  l1_l2:
    output: l2
    timebase: DAILY
    inputs: [{{product: l1, yesterday: 1, tomorrow: 1}}]
    codes: [{{version: 1.0.0, file: l2.sh, environment: {gate}}}]
"""
FILES = """
    SELECT f.id, p.name, f.day, f.filename, f.place, f.state, f.sha256, f.is_newest, f.inputs,
           ARRAY(SELECT l.parent FROM headrace.product_link l WHERE l.child = f.id ORDER BY 1),
           (SELECT array_agg(b.state) FROM headrace.product_build b WHERE b.output_id = f.id)
      FROM headrace.product_file f JOIN headrace.product p ON p.id = f.product_id
     WHERE f.day BETWEEN %s AND %s ORDER BY f.id
"""
SLOTS = """
    SELECT s.day, p.name, s.reason, s.detail, s.due_at, s.failures, s.problem
      FROM headrace.product_slot s JOIN headrace.process p ON p.id = s.process_id
     WHERE (s.due_at IS NOT NULL OR s.failures > 0 OR s.has_given_up) AND s.day BETWEEN %s AND %s
"""
BUILDS = "SELECT state, count(*) FROM headrace.product_build WHERE day BETWEEN %s AND %s GROUP BY 1"


def day_of(number: int) -> date:
    """The days of a test, counted from 0."""
    return FIRST + timedelta(days=number)


@dataclass
class World:
    """A mission in a folder of its own, and the database that knows it."""

    folder: Path
    settings: Settings
    ask: Ask
    name: str = "storm"
    more: dict[str, str] = field(default_factory=dict)  # by code: further lines of it
    root: Path = Path()

    def __post_init__(self) -> None:
        """Write the mission's file and its codes, and load it as `headrace products load` does."""
        self.root = self.folder / "root"
        for word in ("incoming", "codes", "root"):
            (self.folder / word).mkdir(parents=True, exist_ok=True)
        for code in ("l1", "l2"):
            path = self.folder / "codes" / f"{code}.sh"
            path.write_text(CODE.format(name=code, more=self.more.get(code, "")))
            path.chmod(0o755)
        file = self.folder / "storm.yaml"
        gate = f'{{GATE: "{self.gate}"}}'
        file.write_text(MISSION.format(name=self.name, folder=self.folder, gate=gate))
        mission, _ = api.read_mission(file)
        with api.connection(self.settings, purpose="tests") as conn:
            api.load(conn, mission, host=self.settings.host, by="tests")
            conn.commit()
        database.close_all()

    @property
    def gate(self) -> Path:
        """While this file is there, codes stand still; GATE.<pid> appears for each that does."""
        return self.folder / "gate"

    def standing(self) -> list[int]:
        """Pids of codes that stand at the gate, or stood there."""
        return sorted(int(path.suffix[1:]) for path in self.folder.glob("gate.*"))

    def let_pass(self, code: int) -> None:
        """This one, by its pid, need not stand at the gate any longer."""
        (self.folder / f"gate-pass.{code}").touch()

    def deliver(self, number: int, version: str = "1.0.0", *, content: str | None = None, product: str = "l0") -> None:
        """A day's file, of L0 unless told otherwise, appears in the incoming folder as a whole."""
        name = f"{product}_{day_of(number):%Y%m%d}_v{version}.dat"
        hidden = self.folder / f".{name}"
        hidden.write_text(content or f"day {number} in version {version}\n")
        hidden.rename(self.folder / "incoming" / name)

    def finish_here(self) -> list[str]:
        """What a person types once, in this process: `ingest --here` and `build --here`; the problems."""
        host, name = self.settings.host, self.name
        messages: list[Message] = [
            IngestIncoming(host=host, mission=name, then_build=False), PlanProducts(host=host, mission=name),
            BuildProducts(host=host, lane=1000),
        ]  # fmt: skip
        with database.connection(self.settings.target(), purpose="tests") as conn:
            asked = runs.request(conn, messages, by="tests")
            conn.commit()
        return execution.run_here(asked, self.settings, timeout=timedelta(seconds=20))

    def sweep_scratch(self) -> None:
        """What stays of a build whose worker died just after its end is removed when it is an hour old: now it is."""
        for path in (self.root / ".headrace").glob("*"):
            os.utime(path, (0, 0))
        tend = TendProducts(host=self.settings.host)
        assert execution.run_here([tend], self.settings, timeout=timedelta(0)) == []

    # How it stands

    def newest(self, first: int, last: int) -> Newest:
        """What the newest file of every product and day is. Of L2, whose version counts its rebuilds, without it."""
        rows = self.files(first, last)
        names = {row[0]: self._told(row, first) for row in rows}
        return {
            (row[1], FIRST + (row[2] - day_of(first))): (
                names[row[0]], row[6], sorted(names[parent] for parent in row[9]),
            )
            for row in rows if row[7]
        }  # fmt: skip

    def files(self, first: int, last: int) -> list[tuple[Any, ...]]:
        """Rows of files of these days."""
        return self.ask(FILES, day_of(first), day_of(last))

    @staticmethod
    def _told(row: tuple[Any, ...], first: int) -> str:
        version = "" if row[1] == "l2" else row[3].rpartition("_")[2]
        return f"{row[1]} {(row[2] - day_of(first)).days} {version}"

    def built(self) -> int:
        """How many builds have ended well."""
        return int(self.ask("SELECT count(*) FROM headrace.product_build WHERE state = 'succeeded'")[0][0])

    def is_done(self, days: Sequence[int], version: str = "1.0.0") -> bool:
        """Whether the L0 of these days have come in, and nothing of them is to be built, or is being built."""
        [(came,)] = self.ask(
            "SELECT count(*) FROM headrace.product_file WHERE state = 'present' AND filename = ANY(%s)",
            [f"l0_{day_of(number):%Y%m%d}_v{version}.dat" for number in days],
        )
        [(newest,)] = self.ask("SELECT count(*) FROM headrace.product_file WHERE is_newest AND day = ANY(%s)",
                               [day_of(number) for number in days])  # fmt: skip
        [(open_work,)] = self.ask(
            "SELECT (SELECT count(*) FROM headrace.product_slot WHERE due_at IS NOT NULL)"
            " + (SELECT count(*) FROM headrace.product_build WHERE state = 'running')"
            " + (SELECT count(*) FROM headrace.product_file WHERE state = 'placing')"
        )
        return came == len(days) and newest == 3 * len(days) and open_work == 0 and self._plan() == []

    def _plan(self) -> list[str]:
        try:
            with api.connection(self.settings, purpose="tests") as conn:
                steps = api.plan(conn, api.mission(conn, self.name))
                conn.rollback()
        except HeadraceError as error:  # a session that was ended, a server that is being started
            return [str(error)]
        return [f"{step.process.name} {step.slot.day} {step.verdict.reason} {step.verdict.detail}" for step in steps]

    def faults(self, first: int, last: int, *, lost: int | None = 0, unchanged: int = 0) -> list[str]:
        """What is not as it must be at rest, in words: rows of these days, and their files.

        `lost` builds were interrupted at most (None: any number), `unchanged` ones came out as what was there.
        """
        days = (day_of(first), day_of(last))
        rows = self.files(first, last)
        builds: Counter[str] = Counter(dict(self.ask(BUILDS, *days)))
        made = [row for row in rows if row[1] in ("l1", "l2")]
        faults = [f"{row[3]} is {row[5]}" for row in rows if row[5] != "present"]
        faults += [
            f"of {row[3]} the links are {row[9]}, its inputs {row[8]}" for row in rows if row[9] != (row[8] or [])
        ]
        faults += [f"{row[3]} comes from builds {row[10]}" for row in made if row[10] != ["succeeded"]]
        if builds["succeeded"] != len(made):
            faults.append(f"{len(made)} outputs of {builds['succeeded']} builds")
        if set(builds) - {"succeeded", "lost", "unchanged"} or builds["unchanged"] > unchanged:
            why = self.ask("SELECT state, kind, problem, count(*) FROM headrace.product_build GROUP BY 1, 2, 3")
            faults.append(f"builds: {[row for row in why if row[0] != 'succeeded']}")
        if lost is not None and builds["lost"] > lost:
            faults.append(f"{builds['lost']} builds were lost, where {lost} can have been interrupted")
        faults += [f"{count} files of {what}" for what, count in Counter(
            (row[1], row[2], tuple(row[8])) for row in made).items() if count > 1]  # fmt: skip
        faults += [f"the slot {slot} is not settled" for slot in self.ask(SLOTS, *days)]
        for row in rows:
            path = self.root / os.fsdecode(paths.to_bytes(row[4]))
            found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            if found != row[6]:
                faults.append(f"{row[3]} has the hash {row[6]}, on disk {found}")
        return faults

    def litter(self, *, quarantined: int = 0) -> list[str]:
        """What lies about that belongs to nobody: in the tree, in scratch and incoming folders, and in /proc."""
        known = {row[0] for row in self.ask(
            "SELECT f.place FROM headrace.product_file f JOIN headrace.mission m ON m.id = f.mission_id"
            " WHERE m.name = %s", self.name)}  # fmt: skip
        there = {str(path.relative_to(self.root)) for path in self.root.rglob("*") if not path.is_dir()}
        litter = [f"{path} is known to nobody" for path in sorted(there - known)]
        litter += [f"{path} is left" for path in (self.root / ".headrace").glob("*")]
        litter += [f"{path} is left" for path in (self.folder / "incoming").glob("*")]
        kept = list((self.folder / "quarantine").glob("*"))
        held = self.ask("SELECT kept_as FROM headrace.product_quarantine WHERE state = 'held'")
        if sorted(str(path) for path in kept) != sorted(row[0] for row in held) or len(kept) != quarantined:
            litter.append(f"in quarantine lie {kept}, and should {held}")
        litter += [f"{row} is half-way" for row in self.ask("""
            SELECT filename FROM headrace.product_file WHERE state = 'placing' UNION ALL
            SELECT 'build ' || id FROM headrace.product_build WHERE state = 'running' UNION ALL
            SELECT kept_as FROM headrace.product_quarantine WHERE state = 'moving' UNION ALL
            SELECT path FROM headrace.product_arrival
        """)]  # fmt: skip
        tokens = [row[0] for row in self.ask("SELECT token FROM headrace.product_build WHERE token IS NOT NULL")]
        litter += [f"process {pid} of a build is alive" for pid in running.survivors(tokens)]
        return litter
