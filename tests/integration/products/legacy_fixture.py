"""A database as dbprocessing keeps it, in sqlite or PostgreSQL, with a small mission's rows and its files on disk."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg2

FIRST = date(2020, 1, 1)
BITS = ("interface_version", "quality_version", "revision_version")
LEVELS = ("L0", "L1", "L2")

# Column names and types are dbprocessing's (facts of its data model); both kinds of database read this.
TABLES = {
    "mission": (
        "mission_id INTEGER PRIMARY KEY, mission_name VARCHAR(20) NOT NULL UNIQUE, rootdir VARCHAR(250) NOT NULL,"
        " incoming_dir VARCHAR(250) NOT NULL, codedir VARCHAR(250), inspectordir VARCHAR(250), errordir VARCHAR(250)"
    ),
    "satellite": "satellite_id INTEGER PRIMARY KEY, satellite_name VARCHAR(20) NOT NULL, mission_id INTEGER NOT NULL",
    "instrument": (
        "instrument_id INTEGER PRIMARY KEY, instrument_name VARCHAR(20) NOT NULL, satellite_id INTEGER NOT NULL"
    ),
    "product": (
        "product_id INTEGER PRIMARY KEY, product_name VARCHAR(100) NOT NULL, instrument_id INTEGER NOT NULL,"
        " relative_path VARCHAR(250) NOT NULL, level FLOAT NOT NULL, format TEXT NOT NULL, product_description TEXT"
    ),
    "instrumentproductlink": "instrument_id INTEGER NOT NULL, product_id INTEGER NOT NULL",
    "process": (
        "process_id INTEGER PRIMARY KEY, process_name VARCHAR(50) NOT NULL, output_product INTEGER,"
        " output_timebase VARCHAR(10), extra_params TEXT"
    ),
    "productprocesslink": (
        "process_id INTEGER NOT NULL, input_product_id INTEGER NOT NULL, optional BOOLEAN NOT NULL,"
        " yesterday INTEGER NOT NULL, tomorrow INTEGER NOT NULL, PRIMARY KEY (process_id, input_product_id)"
    ),
    "file": (
        "file_id INTEGER PRIMARY KEY, filename VARCHAR(250) NOT NULL UNIQUE, utc_file_date DATE,"
        " utc_start_time TIMESTAMP, utc_stop_time TIMESTAMP, data_level FLOAT NOT NULL,"
        " interface_version SMALLINT NOT NULL, quality_version SMALLINT NOT NULL, revision_version SMALLINT NOT NULL,"
        " verbose_provenance TEXT, check_date TIMESTAMP, quality_comment TEXT, caveats TEXT,"
        " file_create_date TIMESTAMP NOT NULL, met_start_time FLOAT, met_stop_time FLOAT,"
        " exists_on_disk BOOLEAN NOT NULL, quality_checked BOOLEAN, product_id INTEGER NOT NULL,"
        " shasum VARCHAR(40), process_keywords TEXT"
    ),
    "unixtime": "file_id INTEGER PRIMARY KEY, unix_start INTEGER, unix_stop INTEGER",
    "filefilelink": "source_file INTEGER NOT NULL, resulting_file INTEGER NOT NULL",
    "code": (
        "code_id INTEGER PRIMARY KEY, filename VARCHAR(250) NOT NULL, relative_path VARCHAR(250) NOT NULL,"
        " code_start_date DATE NOT NULL, code_stop_date DATE NOT NULL, code_description TEXT NOT NULL,"
        " process_id INTEGER NOT NULL, interface_version SMALLINT NOT NULL, quality_version SMALLINT NOT NULL,"
        " revision_version SMALLINT NOT NULL, output_interface_version SMALLINT NOT NULL,"
        " active_code BOOLEAN NOT NULL, date_written DATE NOT NULL, shasum VARCHAR(40),"
        " newest_version BOOLEAN NOT NULL, arguments TEXT, ram FLOAT, cpu SMALLINT"
    ),
    "processqueue": "file_id INTEGER PRIMARY KEY, version_bump SMALLINT",
    "filecodelink": "resulting_file INTEGER NOT NULL, source_code INTEGER NOT NULL",
    "release": "file_id INTEGER NOT NULL, release_num VARCHAR(20) NOT NULL",
    "logging": (
        "logging_id INTEGER PRIMARY KEY, currently_processing BOOLEAN NOT NULL, pid INTEGER,"
        " processing_start_time TIMESTAMP NOT NULL, processing_end_time TIMESTAMP, comment TEXT,"
        ' mission_id INTEGER NOT NULL, "user" VARCHAR(30) NOT NULL, hostname VARCHAR(100) NOT NULL'
    ),
    "logging_file": "logging_file_id INTEGER PRIMARY KEY, logging_id INTEGER NOT NULL, file_id INTEGER NOT NULL",
    "inspector": (
        "inspector_id INTEGER PRIMARY KEY, filename VARCHAR(250) NOT NULL, relative_path VARCHAR(250) NOT NULL,"
        " description TEXT NOT NULL, interface_version SMALLINT NOT NULL, quality_version SMALLINT NOT NULL,"
        " revision_version SMALLINT NOT NULL, output_interface_version SMALLINT NOT NULL,"
        " active_code BOOLEAN NOT NULL, date_written DATE NOT NULL, shasum VARCHAR(40),"
        " newest_version BOOLEAN NOT NULL, arguments TEXT, product INTEGER NOT NULL"
    ),
}


@dataclass
class Site:
    """What is in the database, by tables; `write` makes the database. Ids are given by hand, as rows refer to them."""

    root: Path
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, table: str, **columns: Any) -> None:
        """A row."""
        self.rows.setdefault(table, []).append(columns)

    def change(self, table: str, number: int, **columns: Any) -> None:
        """Other values in one of a table's rows, counted from 0."""
        self.rows[table][number] |= columns

    def mission(self, mission: int = 1, name: str = "DEMO", **columns: Any) -> None:
        """A mission with one satellite and one instrument, all three of the same id."""
        folders = {"rootdir": str(self.root), "incoming_dir": "incoming", "codedir": "codes", "inspectordir": None}
        self.add("mission", mission_id=mission, mission_name=name, **{**folders, **columns})
        self.add("satellite", satellite_id=mission, satellite_name=f"{name}-a", mission_id=mission)
        self.add("instrument", instrument_id=mission, instrument_name="cam", satellite_id=mission)

    def product(self, product: int, name: str, *, level: float = 0, instrument: int = 1, **columns: Any) -> None:
        """A product whose files are demo_NAME_YYYYmmdd_vX.Y.Z.dat in NAME/YYYY, with an inspector."""
        values = {"relative_path": f"{name}/{{Y}}", "format": f"demo_{name}_{{Y}}{{m}}{{d}}_v{{VERSION}}.dat"}
        self.add("product", product_id=product, product_name=f"DEMO_{name}", instrument_id=instrument, level=level,
                 **{**values, **columns})  # fmt: skip
        self.add("instrumentproductlink", instrument_id=instrument, product_id=product)
        self.add("inspector", inspector_id=product, filename="any.py", relative_path="", description="by name",
                 **_version("1.0.0"), output_interface_version=1, active_code=True, date_written="2020-01-01",
                 newest_version=True, arguments=f"tag={name}", product=product)  # fmt: skip

    def process(
        self, process: int, name: str, output: int | None, timebase: str | None, *inputs: tuple[int, int, int],
        **columns: Any,
    ) -> None:  # fmt: skip
        """A process that needs its `inputs`: (product, days before, days after)."""
        self.add("process", process_id=process, process_name=name, output_product=output, output_timebase=timebase,
                 **columns)  # fmt: skip
        for product, yesterday, tomorrow in inputs:
            self.add("productprocesslink", process_id=process, input_product_id=product, optional=False,
                     yesterday=yesterday, tomorrow=tomorrow)  # fmt: skip

    def code(self, code: int, process: int, version: str = "1.0.0", **columns: Any) -> None:
        """An active code of a process."""
        values = {"code_start_date": "2000-01-01", "code_stop_date": "2050-12-31", "active_code": True,
                  "newest_version": True, "arguments": "-q", "ram": 1.0, "cpu": 1}  # fmt: skip
        self.add("code", code_id=code, filename="cat_v{CODEVERSION}.sh", relative_path="bin", process_id=process,
                 code_description="copies", output_interface_version=1, date_written="2020-01-01",
                 **_version(version), **{**values, **columns})  # fmt: skip

    def file(
        self, file: int, product: int, day: date, version: str = "1.0.0", *, content: bytes | None = None,
        parents: Iterable[int] = (), code: int | None = None, **columns: Any,
    ) -> Path:  # fmt: skip
        """A file, of a text of its own unless told otherwise (b"": it is not on disk); where it lies."""
        made_of = next(row for row in self.rows["product"] if row["product_id"] == product)
        level = str(made_of["product_name"]).removeprefix("DEMO_")
        name = columns.pop("filename", f"demo_{level}_{day:%Y%m%d}_v{version}.dat")
        path: Path = self.root / str(made_of["relative_path"]).replace("{Y}", f"{day:%Y}") / name
        text = f"{name}\n".encode() if content is None else content
        if text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
        values = {"utc_file_date": str(day), "utc_start_time": f"{day} 00:00:00.000000",
                  "utc_stop_time": f"{day} 23:59:59.999999", "exists_on_disk": True,
                  "shasum": hashlib.sha1(text).hexdigest(), "process_keywords": None}  # fmt: skip
        command = f"/codes/bin/cat_v1.0.0.sh -q /in /tmp/tmp_runMe/{name}" if code is not None else None
        self.add("file", file_id=file, filename=name, product_id=product, data_level=made_of["level"],
                 verbose_provenance=command, file_create_date="2020-02-03 04:05:06.789012", **_version(version),
                 **{**values, **columns})  # fmt: skip
        for parent in parents:
            self.add("filefilelink", source_file=parent, resulting_file=file)
        if code is not None:
            self.add("filecodelink", resulting_file=file, source_code=code)
        return path

    def sqlite(self, path: Path, *, without: Sequence[str] = ()) -> str:
        """Make a sqlite file of it; its name. `without`: tables, and columns as `table.column`, that are not there."""
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as db:
            for statement, values in self._statements("?", without):
                db.execute(statement, values)
            db.commit()
        return str(path)

    def postgres(self, dsn: str, *, schema: str = "public", without: Sequence[str] = ()) -> str:
        """Make it in an empty PostgreSQL database; its connection string."""
        with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
            cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
            cursor.execute(f"SET search_path = {schema}")
            for statement, values in self._statements("%s", without):
                cursor.execute(statement, values or None)
            conn.commit()
        return dsn

    def _statements(self, mark: str, without: Sequence[str]) -> Iterable[tuple[str, list[Any]]]:
        gone = {tuple(one.split(".")) for one in without if "." in one}
        for table, columns in TABLES.items():
            if table in without:
                continue
            yield f'CREATE TABLE "{table}" ({columns})', []
            for name in (column for of, column in gone if of == table):
                yield f'ALTER TABLE "{table}" DROP COLUMN "{name}"', []
            for row in self.rows.get(table, []):
                kept = {name: value for name, value in row.items() if (table, name) not in gone}
                names, marks = ", ".join(f'"{name}"' for name in kept), ", ".join([mark] * len(kept))
                yield f'INSERT INTO "{table}" ({names}) VALUES ({marks})', list(kept.values())


def _version(text: str) -> dict[str, int]:
    return dict(zip(BITS, map(int, text.split(".")), strict=True))


def demo(root: Path) -> Site:
    """L0 -> L1 (FILE) -> L2 (DAILY, with a day before and after) as the real program left it after some deliveries.

    Four days; then a new version of day 2 and of day 3, of which only the L2 of those very days followed. A fifth
    day's code failed. All that was newest then is release R1. A sixth day waits in the queue.
    """
    site = Site(root)
    site.mission()
    for number, level in enumerate(LEVELS):
        site.product(number + 1, level, level=number)
    site.process(1, "l0_l1", 2, "FILE", (1, 0, 0), extra_params="--calib|{ROOTDIR}/cal.txt")
    site.process(2, "l1_l2", 3, "DAILY", (2, 1, 1))
    site.code(1, 1)
    site.code(2, 2)
    days = [FIRST + timedelta(days=number) for number in range(6)]
    # dbprocessing takes the names of a folder in reverse.
    for number, day in enumerate(reversed(days[:5]), 1):
        site.file(number, 1, day)
    for number, day in enumerate(days[:4]):
        site.file(6 + number, 2, day, parents=[5 - number], code=1)
    for number, day in enumerate(days[:4]):
        around = [6 + other for other in range(max(0, number - 1), min(3, number + 1) + 1)]
        site.file(10 + number, 3, day, parents=around, code=2)
    site.file(14, 1, days[1], "1.0.1")
    site.file(15, 2, days[1], "1.0.1", parents=[14], code=1)
    site.file(16, 3, days[1], "1.0.1", parents=[6, 15, 8], code=2)
    site.file(17, 1, days[2], "1.1.0")
    site.file(18, 2, days[2], "1.1.0", parents=[17], code=1)
    site.file(19, 3, days[2], "1.1.0", parents=[15, 18, 9], code=2)
    for file in (1, 2, 17, 14, 5, 6, 15, 18, 9, 10, 16, 19, 13):
        site.add("release", file_id=file, release_num="R1")
    site.file(20, 1, days[5])
    site.add("processqueue", file_id=20, version_bump=None)
    for number in range(1, 4):
        site.add("logging", logging_id=number, currently_processing=False, pid=100 + number, mission_id=1,
                 processing_start_time="2020-02-03 04:05:00.000000", comment="Nominal Exit", user="ops",
                 hostname="obs1")  # fmt: skip
    return site
