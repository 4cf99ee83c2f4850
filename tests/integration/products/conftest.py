"""Missions in a scratch folder: a file that defines one, codes that are shell scripts, and its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.products.rows import COPY
from workers import database, runs
from workers.messages import BuildProducts, IngestIncoming, PlanProducts
from workers.products import loading
from workers.settings import Settings

Ask = Callable[..., list[tuple[Any, ...]]]

INSPECTOR = """
import datetime, re
from dbprocessing import inspector, Version

class Inspector(inspector.inspector):
    code_name = "by_name.py"

    def inspect(self, kwargs):
        found = re.match(kwargs["tag"] + r"_(\\d{4})(\\d\\d)(\\d\\d)_v(\\d+)\\.(\\d+)\\.(\\d+)\\.dat$", self.basename)
        if not found:
            return None
        year, month, day, *version = map(int, found.groups())
        params = self.diskfile.params
        params["utc_file_date"] = datetime.date(year, month, day)
        params["utc_start_time"] = datetime.datetime(year, month, day)
        params["utc_stop_time"] = datetime.datetime(year, month, day, 23, 59, 59)
        params["version"] = Version.Version(*version)
        return True
"""
_CONF_PRODUCT = """
[product_{name}]
product_name = {{MISSION}}_{name}
relative_path = {name}/{{Y}}
level = {level}
format = demo_{name}_{{Y}}{{m}}{{d}}_v{{VERSION}}.dat
product_description =
inspector_filename = {inspector}
inspector_relative_path =
inspector_description = by name
inspector_version = 1.0.0
inspector_output_interface = 1
inspector_active = True
inspector_date_written = 2020-01-01
inspector_newest_version = True
inspector_arguments = tag=demo_{name}
"""
_CONF_PROCESS = """
[process_{name}]
process_name = {name}
output_product = {output}
output_timebase = {timebase}
extra_params =
{inputs}
code_filename = copy_v{{CODEVERSION}}.sh
code_relative_path = bin
code_start_date = 2000-01-01
code_stop_date = 2050-12-31
code_description = copies
code_version = {version}
code_output_interface = {interface}
code_active = True
code_date_written = 2020-01-01
code_newest_version = True
code_arguments =
code_cpu = 1
code_ram = 1
"""


def conf_text(
    root: Path,
    *,
    name: str = "DEMO",
    inspector: str = "by_name.py",
    first: str = "1.0.0",
    interface: int = 1,
    l1: str = "required_input1 = product_L0",
    l2: str = "required_input1 = product_L1",
    timebases: tuple[str, str] = ("FILE", "DAILY"),
    products: tuple[str, ...] = ("L0", "L1", "L2"),
    more: str = "",
) -> str:
    """dbprocessing's configuration of L0 -> L1 -> L2; `first` is the version of the first code."""
    head = f"[mission]\nmission_name = {name}\nrootdir = {root}\nincoming_dir = incoming\ncodedir = codes\n"
    head += "inspectordir = inspectors\nerrordir = errors\n[satellite]\nsatellite_name = {MISSION}-a\n[instrument]\n"
    parts = [_CONF_PRODUCT.format(name=one, level=one.lstrip("LB") or 0, inspector=inspector) for one in products]
    parts.append(
        _CONF_PROCESS.format(
            name="to_l1", output="product_L1", timebase=timebases[0], inputs=l1, version=first, interface=interface
        )
    )
    parts.append(
        _CONF_PROCESS.format(
            name="to_l2", output="product_L2", timebase=timebases[1], inputs=l2, version="1.0.0", interface=1
        )
    )
    return head + "instrument_name = cam\n" + "".join(parts) + more


@dataclass
class Scene:
    """A mission's folders, and somebody who delivers files, loads definitions and waits until nothing is to be done."""

    root: Path
    conf: Settings
    sql: Ask
    work: Callable[..., list[str]]
    name: str = "DEMO"
    document: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for folder in ("incoming", "codes/bin", "inspectors"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self.script("bin/copy_v1.0.0.sh")
        self.script("copy.sh")
        (self.root / "inspectors/by_name.py").write_text(INSPECTOR)
        self.document = self.document or {
            "mission": self.name, "root": str(self.root), "codes": "codes", "inspectors": "inspectors",
            "satellites": {"a": ["cam"]}, "products": {
                name: {"instrument": "cam", "level": level, "folder": f"{name}/{{Y}}",
                       "format": f"demo_{name}_{{Y}}{{m}}{{d}}_v{{VERSION}}.dat"}
                for level, name in enumerate(("L0", "L1", "L2"))
            }, "processes": {
                "to_l1": {"output": "L1", "timebase": "FILE", "inputs": ["L0"], "codes": [self.code()]},
                "to_l2": {"output": "L2", "timebase": "DAILY", "inputs": ["L1"], "codes": [self.code()]},
            },
        }  # fmt: skip

    @property
    def incoming(self) -> Path:
        """Where files are delivered."""
        return self.root / "incoming"

    def code(self, version: str = "1.0.0", **more: Any) -> dict[str, Any]:
        """A code that copies its inputs into its output."""
        return {"version": version, "file": "copy.sh", **more}

    def script(self, name: str, text: str = COPY) -> Path:
        """An executable below the codes' folder."""
        path = self.root / "codes" / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def definition(self) -> Path:
        """The definition as a YAML file."""
        path = self.root.parent / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(self.document, sort_keys=False))
        return path

    def conf_file(self, **rules: Any) -> Path:
        """A definition of dbprocessing's, of the same name."""
        path = self.root.parent / f"{self.name}.conf"
        path.write_text(conf_text(self.root, name=self.name, **rules))
        return path

    def load(self, path: Path | None = None, *, dry_run: bool = False, **switches: bool) -> list[str]:
        """Load a definition, the scene's own by default; what changed, a line each."""
        mission, _ = loading.read_mission(path or self.definition())
        mission = mission.model_copy(update=switches)
        with database.connection(self.conf.target(self.conf.products.database), purpose="tests") as conn:
            changes = loading.load(conn, mission, host="here", by="test", dry_run=dry_run)
            conn.commit()
        return [f"{one.kind} {one.what}" for one in changes]

    def drop(self, name: str | bytes, content: bytes | str = "one line\n") -> bytes:
        """Deliver a file; its path."""
        path = os.path.join(os.fsencode(self.incoming), os.fsencode(name))
        with open(path, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        return path

    def ingest(self, **rules: Any) -> list[str]:
        """Take in what has settled, and build nothing; the problems."""
        return self.work(IngestIncoming(host="here", mission=self.name, then_build=False), settings=self.ruled(rules))

    def settle(self) -> list[str]:
        """Take files in and build until nothing is due; the problems."""
        return self.work(IngestIncoming(host="here", mission=self.name), settings=self.conf)

    def build(self) -> list[str]:
        """Build everything that is stale, and wait for next attempts; the problems."""
        with database.connection(self.conf.target(), purpose="tests") as conn:
            build = runs.request(conn, [BuildProducts(host="here", lane=900)], by="test")
            conn.commit()
        return self.work(PlanProducts(host="here", mission=self.name), *build, settings=self.conf)

    def ruled(self, rules: dict[str, Any]) -> Settings:
        """The settings with other rules for products."""
        return self.conf.model_copy(update={"products": self.conf.products.model_copy(update=rules)})

    def files(self, product: str | None = None) -> list[str]:
        """Names of the files that are present, in the order of their arrival."""
        rows = self.sql(
            "SELECT f.filename FROM headrace.product_file f JOIN headrace.product p ON p.id = f.product_id"
            " JOIN headrace.mission m ON m.id = p.mission_id"
            " WHERE f.state = 'present' AND m.name = %s AND (%s::text IS NULL OR p.name = %s) ORDER BY f.id",
            self.name, product, product,
        )  # fmt: skip
        return [row[0] for row in rows]

    def newest(self, product: str) -> dict[str, str]:
        """The newest version of a product, by its days as MM-DD."""
        rows = self.sql(
            "SELECT to_char(f.day, 'MM-DD'), concat_ws('.', f.interface, f.quality, f.revision)"
            " FROM headrace.product_file f JOIN headrace.product p ON p.id = f.product_id"
            " WHERE f.is_newest AND p.name = %s ORDER BY f.day", product,
        )  # fmt: skip
        return dict(rows)

    def quarantined(self) -> list[tuple[str, str]]:
        """Names and reasons of what is in quarantine, in the order of its arrival."""
        return self.sql("SELECT filename, reason FROM headrace.product_quarantine WHERE state = 'held' ORDER BY id")

    def why(self) -> list[str]:
        """What people are told of what is in quarantine."""
        rows = self.sql("SELECT message FROM headrace.product_quarantine WHERE state = 'held' ORDER BY id")
        return [row[0] for row in rows]

    def builds(self) -> int:
        """How often a code was run so far."""
        return int(self.sql("SELECT count(*) FROM headrace.product_build")[0][0])


@pytest.fixture
def scene(tmp_path: Path, conf: Settings, sql: Ask, work: Callable[..., list[str]]) -> Iterator[Scene]:
    """A mission folder whose definition is not loaded yet; files settle at once."""
    rules = {"settle_seconds": 0.0, "retry_seconds": 0.05, "inspector_seconds": 10.0}
    quick = conf.model_copy(update={"products": conf.products.model_copy(update=rules)})
    yield Scene(tmp_path / "demo", quick, sql, work)


@pytest.fixture
def loaded(scene: Scene) -> Scene:
    """The mission L0 -> L1 (FILE) -> L2 (DAILY), loaded."""
    scene.load()
    return scene
