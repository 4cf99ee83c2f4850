"""Rows for tests: a mission, its products, codes, files and builds, by SQL and with real files below its root."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from psycopg2.extras import Json

from workers import paths
from workers.database import Connection
from workers.products.versions import Version, parse

DAY = date(2027, 3, 1)
COPY = '#!/bin/sh\nfor out; do :; done\nwhile [ $# -gt 1 ]; do cat -- "$1"; shift; done > "$out"\n'
"""A code that writes its inputs, one after the other, into its last argument."""


@dataclass
class Rows:
    """Inserts what a test needs and says its ids; the caller commits. Without `mission=` the last one is meant."""

    conn: Connection
    root: Path = Path()
    mission_id: int = 0
    roots: dict[int, Path] = field(default_factory=dict)
    _instruments: dict[int, int] = field(default_factory=dict)

    def ask(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Any statement; its rows."""
        with self.conn.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def insert(self, table: str, **columns: Any) -> int:
        """A row of headrace.TABLE; its id."""
        names, marks = ", ".join(f'"{name}"' for name in columns), ", ".join(["%s"] * len(columns))
        statement = f"INSERT INTO headrace.{table} ({names}) VALUES ({marks}) RETURNING id"
        return int(self.ask(statement, *columns.values())[0][0])

    def mission(self, root: Path, name: str = "demo", **columns: Any) -> int:
        """A mission with a satellite and an instrument; its folders are made beside and below `root`."""
        folders = {word: root.parent / f"{root.name}-{word}" for word in ("incoming", "inspectors", "quarantine")}
        folders |= {"codes": root.parent / f"{root.name}-codes", "scratch": root / ".headrace"}
        for folder in (root, *folders.values()):
            folder.mkdir(parents=True, exist_ok=True)
        texts = {word: paths.to_text(str(folder)) for word, folder in folders.items()}
        values = {"name": name, "root": paths.to_text(str(root)), "definition": Json({}), **texts, **columns}
        self.mission_id, self.root = self.insert("mission", **values), root
        satellite = self.insert("satellite", mission_id=self.mission_id, name=f"{name}-1")
        self._instruments[self.mission_id] = self.insert("instrument", satellite_id=satellite, name="mag")
        self.roots[self.mission_id] = root
        return self.mission_id

    def product(
        self, name: str, *, level: float = 0, format: str | None = None, folder: str | None = None, **columns: Any
    ) -> int:
        """A product; its files are NAME_{Y}{m}{d}_v{VERSION}.dat in a folder of its name, unless told otherwise."""
        mission = columns.pop("mission", self.mission_id)
        return self.insert(
            "product", mission_id=mission, instrument_id=self._instruments[mission], name=name, level=level,
            format=f"{name}_{{Y}}{{m}}{{d}}_v{{VERSION}}.dat" if format is None else format,
            folder=name if folder is None else folder, **columns,
        )  # fmt: skip

    def process(
        self,
        name: str,
        output: int | None,
        inputs: Sequence[int | dict[str, Any]] = (),
        *,
        timebase: str = "DAILY",
        **columns: Any,
    ) -> int:
        """A process. An input is a product's id or the columns of its row (`product_id=` and what differs)."""
        mission = columns.pop("mission", self.mission_id)
        values = {"mission_id": mission, "name": name, "output_product": output, "timebase": timebase, **columns}
        process = self.insert("process", **values)
        for position, one in enumerate(inputs):
            row = {"position": position, **(one if isinstance(one, dict) else {"product_id": one})}
            self.ask(
                "INSERT INTO headrace.process_input (process_id, position, preference, product_id, is_required, "
                "yesterday, tomorrow) VALUES (%s, %s, %s, %s, %s, %s, %s)",
                process, row["position"], row.get("preference", 0), row["product_id"], row.get("is_required", True),
                row.get("yesterday", 0), row.get("tomorrow", 0),
            )  # fmt: skip
        return process

    def code(
        self,
        process: int,
        version: str = "1.0.0",
        *,
        filename: str = "copy.sh",
        script: str | None = COPY,
        **columns: Any,
    ) -> int:
        """A code of a process; the executable is written into the mission's codes folder (None: it is not)."""
        row = self.ask("SELECT p.mission_id FROM headrace.process p WHERE p.id = %s", process)
        folder = self.codes(int(row[0][0])) / columns.get("folder", "")
        if script is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / os.fsdecode(paths.to_bytes(filename))
            path.write_text(script)
            path.chmod(0o755)
            columns.setdefault("sha256", hashlib.sha256(script.encode()).hexdigest())
        parts = parse(version)._asdict()
        return self.insert("code", process_id=process, filename=filename, **{**parts, **columns})

    def codes(self, mission: int | None = None) -> Path:
        """The folder of a mission's codes."""
        found = self.ask("SELECT codes FROM headrace.mission WHERE id = %s", mission or self.mission_id)
        return Path(os.fsdecode(paths.to_bytes(found[0][0])))

    def build(
        self, process: int, day: date = DAY, *, code: int | None = None, inputs: Sequence[int] = (), **columns: Any
    ) -> int:
        """A run of a code, succeeded in half a second on the host `here` unless told otherwise."""
        began = datetime.combine(day, time(12), UTC) + timedelta(days=1)
        values: dict[str, Any] = {
            "reason": "MISSING_OUTPUT", "state": "succeeded", "host": "here", "exit_status": 0, "started_at": began,
            "finished_at": began + timedelta(seconds=0.5), "environment": Json({}), **columns,
        }  # fmt: skip
        return self.insert("product_build", process_id=process, day=day, code_id=code, inputs=list(inputs), **values)

    def file(
        self,
        product: int,
        day: date = DAY,
        version: str | Version = "1.0.0",
        *,
        content: bytes | None = b"one line\n",
        inputs: Sequence[int] | None = None,
        code: int | None = None,
        build: int | None = None,
        **columns: Any,
    ) -> int:
        """A file of a product; `content` is written to its place (None: nothing is). `inputs` None: delivered.

        `filename` defaults to the product's format filled with the date, the version and, where there is one, the key.
        """
        mission, form, folder = self.ask(
            "SELECT mission_id, format, folder FROM headrace.product WHERE id = %s", product
        )[0]
        version = parse(version) if isinstance(version, str) else version
        key = str(columns.setdefault("key", ""))
        name = columns.pop("filename", None)
        if name is None:
            name = str(form).format_map(_Fields(day, version))
            name = name if not key else f"{key.replace(' ', '_').replace('/', '_')}_{name}"
        place = columns.pop("place", f"{folder}/{name}" if folder else name)
        start = datetime.combine(day, time(0), UTC)
        values: dict[str, Any] = {
            "state": "present", "start_at": start, "stop_at": start + timedelta(days=1, microseconds=-1),
            "registered_at": start + timedelta(days=1, hours=12), "host": "here", **columns,
        }  # fmt: skip
        if content is not None:
            path = self.path_of(place, mission)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            values.setdefault("sha256", hashlib.sha256(content).hexdigest())
            values.setdefault("bytes", len(content))
            values.setdefault("modified_at", datetime.fromtimestamp(path.stat().st_mtime, UTC))
        file = self.insert(
            "product_file", mission_id=mission, product_id=product, filename=name, place=place, day=day,
            inputs=sorted(inputs) if inputs is not None else None, code_id=code, build_id=build,
            **version._asdict(), **values,
        )  # fmt: skip
        for parent in inputs or ():
            self.ask("INSERT INTO headrace.product_link (parent, child) VALUES (%s, %s)", parent, file)
        if build is not None:
            self.ask("UPDATE headrace.product_build SET output_id = %s, output_name = %s WHERE id = %s",
                     file, name, build)  # fmt: skip
        return file

    def path_of(self, place: str, mission: int | None = None) -> Path:
        """Where a place lies on disk."""
        return self.roots[mission or self.mission_id] / os.fsdecode(paths.to_bytes(place))

    def path(self, file: int) -> Path:
        """Where a file lies on disk."""
        mission, place = self.ask("SELECT mission_id, place FROM headrace.product_file WHERE id = %s", file)[0]
        return self.path_of(place, mission)


class _Fields(dict[str, str]):
    def __init__(self, day: date, version: Version) -> None:
        super().__init__(
            Y=f"{day:%Y}", m=f"{day:%m}", d=f"{day:%d}", DATE=f"{day:%Y%m%d}", j=f"{day:%j}", VERSION=str(version)
        )
