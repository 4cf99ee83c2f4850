"""A person at a terminal: `headrace products ...` in this process, what it prints, and its exit code."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from producers.cli import main
from tests.integration.products.rows import Rows
from workers import database
from workers import settings as settings_module
from workers.settings import Settings


@dataclass(frozen=True)
class Said:
    """What a command printed."""

    out: str
    err: str


@dataclass
class Desk:
    """Types commands; what a test has inserted is committed before each."""

    rows: Rows
    monkeypatch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]

    def run(self, *words: str, code: int = 0) -> Said:
        """`headrace products WORDS`, which must end with this code."""
        self.rows.conn.commit()
        self.capture.readouterr()
        kept, root = settings_module._current, logging.getLogger()
        logging_before = (root.handlers, root.level, structlog.get_config())
        self.monkeypatch.setattr(sys, "argv", ["headrace", "products", *words])
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            settings_module._current = kept
            root.handlers, root.level = logging_before[:2]
            structlog.configure(**logging_before[2])
        said = Said(*self.capture.readouterr())
        assert (ended.value.code or 0) == code, f"{words}: {ended.value.code}\n{said.out}{said.err}"
        assert "Traceback" not in said.err
        return said

    def json(self, *words: str, code: int = 0) -> Any:
        """The document of `headrace products WORDS --json`."""
        return json.loads(self.run(*words, "--json", code=code).out)


@contextmanager
def at_desk(
    conf: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str], *,
    with_mission: bool = True,
) -> Iterator[Desk]:  # fmt: skip
    """A terminal on a host called `here`, in `folder`, with a mission `demo` that has no products; no broker is up."""
    named = {
        "CONTROL__DSN": conf.target().dsn, "HOST": conf.host, "DATA_DIR": str(conf.data_dir),
        "BROKER__URL": "redis://127.0.0.1:1/0",
    }  # fmt: skip
    for name, value in named.items():
        monkeypatch.setenv(f"HEADRACE_{name}", value)
    monkeypatch.chdir(folder)
    with closing(database.connect(conf.target(), purpose="tests")) as conn:
        rows = Rows(conn)
        if with_mission:
            rows.mission(folder / "data")
        yield Desk(rows, monkeypatch, capture)
