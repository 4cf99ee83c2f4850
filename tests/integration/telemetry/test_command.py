"""`headrace telemetry` as a process: exit codes, JSON, and xtelemdb's own file and words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

LINE = '{{"ts": "2024-04-16T03:50:00.{:09d}", "prio": "TELM", "ec": "e", "msg": {{"a": 1}}}}\n'


def headrace(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with nothing but these variables for settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return subprocess.run(
        [sys.executable, "-m", "producers.cli", *words],
        env=kept | {"HEADRACE_DATA_DIR": str(cwd / "state"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
    )


@pytest.fixture
def old_file(empty_dsn: str, tmp_path: Path, data: Path) -> Path:
    """An xtelemdb TOML file for an empty database; the port in it is wrong, as sites have it."""
    parts = urlsplit(empty_dsn)
    (tmp_path / "secret").write_text(f"{parts.password}\n")
    path = tmp_path / "xtelemdb.toml"
    path.write_text(
        f'hostname = "exao1"\ndata_dirs = ["{data}"]\nparallel_jobs = 10\n'
        f'[database]\nhost = "{parts.hostname}"\nport = 1\nuser = "{parts.username}"\n'
        f'database = "{parts.path[1:]}"\npassword_file = "{tmp_path / "secret"}"\n'
    )
    return path


def test_xtelemdbs_file_is_all_that_is_needed(old_file: Path, empty_dsn: str, data: Path, tmp_path: Path) -> None:
    """setup (twice), inventory, ingest and backfill run from the old file alone; a word overrides its port."""
    port = f"database.port={urlsplit(empty_dsn).port}"
    (data / "cooler_20240416035000000000000.ndjson").write_text("".join(LINE.format(n) for n in range(20)))
    (data / "image.xrif").touch()

    def run(verb: str) -> Any:
        found = headrace("telemetry", verb, "--here", "--legacy-config", str(old_file), port, "--json", cwd=tmp_path)
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    assert len(run("setup")["statements"]) == 7
    assert run("setup")["statements"] == []
    first = run("inventory")
    assert first["succeeded"] == 1 and first["runs"][0]["counters"]["files"] == 2
    done = run("ingest")
    assert done["failed"] == done["lost"] == 0
    assert sum(row["counters"].get("rows", 0) for row in done["runs"]) == 20
    assert sum(row["counters"].get("rows", 0) for row in run("backfill")["runs"]) == 0


def test_an_unreachable_server_is_exit_3_at_once(old_file: Path, tmp_path: Path) -> None:
    """Nothing listens on the port of the file: one clear line that names it, no traceback, exit 3."""
    found = headrace("telemetry", "ingest", "--here", "--legacy-config", str(old_file), cwd=tmp_path)
    assert found.returncode == 3
    assert len(found.stderr.splitlines()) == 1 and "cannot be reached" in found.stderr


def test_a_wrong_password_is_exit_3_and_stays_secret(old_file: Path, empty_dsn: str, tmp_path: Path) -> None:
    """The login is refused: one line, exit 3, and the password is nowhere in it."""
    port = f"database.port={urlsplit(empty_dsn).port}"
    words = ("telemetry", "ingest", "--here", "--legacy-config", str(old_file), port)
    found = headrace(*words, cwd=tmp_path, XTELEMDB_PASSWORD="open sesame")
    assert found.returncode == 3
    assert "login was refused" in found.stderr and "sesame" not in found.stderr + found.stdout
    (tmp_path / "secret").unlink()
    assert headrace(*words, cwd=tmp_path).returncode == 3


def test_unknown_keys_are_exit_2_with_a_hint(tmp_path: Path, dsn: str) -> None:
    """A typo in YAML or TOML names the key and the one that was probably meant."""
    (tmp_path / "headrace.yaml").write_text("telemetry:\n  data_dir: [/x]\nhots: a\n")
    found = headrace("telemetry", "status", cwd=tmp_path, HEADRACE_CONTROL__DSN=dsn)
    assert found.returncode == 2
    assert "did you mean 'data_dirs'" in found.stderr and "did you mean 'host'" in found.stderr
    old = tmp_path / "old.toml"
    old.write_text("data_dir = []\n")
    (tmp_path / "headrace.yaml").unlink()
    found = headrace("telemetry", "setup", "-c", str(old), cwd=tmp_path)
    assert (found.returncode, "did you mean 'data_dirs'" in found.stderr) == (2, True)


def test_a_damaged_file_is_exit_1_and_costs_no_other(dsn: str, data: Path, tmp_path: Path) -> None:
    """One bad line: exit 1 and one clear line on stderr, also the next time; a file that is only open is exit 0."""
    bad, good = data / "bad_20240416035000000000000.ndjson", data / "good_20240416035000000000000.ndjson"
    bad.write_text(LINE.format(1) + "no json\n" + LINE.format(2))
    good.write_text(LINE.format(3) + LINE.format(4)[:20])
    environment = {"HEADRACE_CONTROL__DSN": dsn, "HEADRACE_HOST": "here"}
    found = headrace("telemetry", "ingest", "--here", str(data), "--json", cwd=tmp_path, **environment)
    document = json.loads(found.stdout)
    assert (found.returncode, document["succeeded"], document["failed"]) == (1, 1, 1)
    assert found.stderr.count("\n") == 1 and f"byte {len(LINE.format(1))}:" in found.stderr
    assert headrace("telemetry", "ingest", "--here", str(bad), cwd=tmp_path, **environment).returncode == 1
    assert headrace("telemetry", "ingest", "--here", str(good), cwd=tmp_path, **environment).returncode == 0


def test_import_prints_settings_that_say_the_same(old_file: Path, tmp_path: Path) -> None:
    """The YAML of `import` is accepted as our own settings, without the password in it."""
    found = headrace("telemetry", "import", str(old_file), cwd=tmp_path)
    assert found.returncode == 0
    assert (tmp_path / "secret").read_text().strip() not in found.stdout
    (tmp_path / "headrace.yaml").write_text(found.stdout)
    assert "port: 1" in found.stdout
    assert headrace("telemetry", "status", cwd=tmp_path).returncode == 3


def test_a_dry_run_reads_nothing(dsn: str, data: Path, tmp_path: Path) -> None:
    """--dry-run lists the files that would be read and leaves the database alone."""
    (data / "a_20240416035000000000000.ndjson").write_text(LINE.format(1))
    environment = {"HEADRACE_CONTROL__DSN": dsn, "HEADRACE_HOST": "here"}
    found = headrace("telemetry", "ingest", "--dry-run", str(data), cwd=tmp_path, **environment)
    assert found.stdout.split() == [str(data / "a_20240416035000000000000.ndjson")]
    found = headrace("telemetry", "status", "--json", cwd=tmp_path, **environment)
    assert json.loads(found.stdout)["files"] == []


def test_accepted_damage_is_not_told_again(dsn: str, data: Path, tmp_path: Path) -> None:
    """After `accept` a damaged file needs nobody any more, also when good records follow; new damage is told again."""
    bad = data / "bad_20240416035000000000000.ndjson"
    bad.write_text(LINE.format(1) + "no json\n")
    environment = {"HEADRACE_CONTROL__DSN": dsn, "HEADRACE_HOST": "here"}

    def run(*words: str) -> int:
        return headrace("telemetry", *words, cwd=tmp_path, **environment).returncode

    assert run("ingest", "--here", str(bad)) == 1
    assert run("status") == 1
    assert run("accept", str(bad), "--reason", "known") == 0
    assert (run("status"), run("accept", str(bad))) == (0, 1)
    told = headrace("status", "--json", cwd=tmp_path, **environment)
    assert not any("bad_2024" in need for need in json.loads(told.stdout)["needs_a_person"])
    with bad.open("a") as file:
        file.write(LINE.format(2))
    assert (run("ingest", "--here", str(bad)), run("status")) == (0, 0)
    with bad.open("a") as file:
        file.write("again no json\n")
    assert (run("ingest", "--here", str(bad)), run("status")) == (1, 1)
