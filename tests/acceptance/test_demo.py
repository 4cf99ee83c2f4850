"""`headrace demo` as a newcomer runs it: records arrive, procedures run, and no end of it leaves a process behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from producers.cli.demo_jobs import Jobs
from workers.services.postgres import PostgresServer
from workers.services.processes import is_alive, process_state
from workers.settings import Settings

HEADRACE = [sys.executable, "-m", "producers.cli", "demo"]
PROCESSES = Path("/proc")
GONE_SECONDS = 10.0  # two to three are usual; this machine may be busy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A short folder for temporary files; a Unix socket's path would not fit below pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def environment(scratch: Path) -> dict[str, str]:
    """The environment of a site that has settings of its own, which must not matter."""
    (scratch / "headrace.yaml").write_text("control: {dsn: postgresql://nobody@192.0.2.1/real}\n")
    (scratch / "tmp").mkdir()
    site = {
        "HEADRACE_CONFIG": str(scratch / "headrace.yaml"),
        "HEADRACE_CONTROL__DSN": "postgresql://nobody@192.0.2.1/real",
        "HEADRACE_BROKER__URL": "redis://192.0.2.1/0",
        "CELERY_BROKER_URL": "redis://192.0.2.1/0",
        "PGHOST": "192.0.2.1",
    }
    return {**os.environ, **site, "TMPDIR": str(scratch / "tmp")}


@pytest.fixture
def demo(scratch: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A demonstration whose instrument has begun to write."""
    process = subprocess.Popen(
        [*HEADRACE, "--seconds", "60", "--json"],
        cwd=scratch, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stderr:
        if " written " in line:
            break
    else:
        pytest.fail(f"the demonstration ended at its start, exit {process.wait()}")
    yield process
    process.kill()
    process.communicate()
    for folder in (scratch / "tmp").iterdir():
        PostgresServer(folder).clean_up()  # a kill -9 leaves the folder of the Unix socket


def descendants(pid: int) -> list[tuple[int, int]]:
    """(pid, start) of every process below one, workers' pools and PostgreSQL's backends included."""
    states = [process_state(int(entry.name)) for entry in PROCESSES.iterdir() if entry.name.isdigit()]
    found: list[tuple[int, int]] = []
    parents = {pid}
    while parents:
        children = [state for state in states if state is not None and state.parent_pid in parents]
        found += [(state.pid, state.start) for state in children]
        parents = {state.pid for state in children}
    return found


def left_after(processes: list[tuple[int, int]], seconds: float) -> list[str]:
    """The command lines of those that are still alive after so long."""
    deadline = time.monotonic() + seconds
    alive = processes
    while alive and time.monotonic() < deadline:
        alive = [one for one in alive if is_alive(*one)]
        time.sleep(0.02)
    lines = []
    for pid, _start in alive:
        with suppress(OSError):
            lines.append((PROCESSES / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return lines


def names(processes: list[tuple[int, int]]) -> str:
    """Their command lines in one text."""
    lines = []
    for pid, _start in processes:
        with suppress(OSError):
            lines.append((PROCESSES / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return "\n".join(lines)


def assert_jobs_ran(document: dict[str, Any]) -> None:
    """Every slot of both jobs is on record; what fails is tried again; the last summary has the whole archive."""
    summarise, flaky = document["jobs"]["summarise"], document["jobs"]["flaky"]
    assert summarise["problem"] is None and flaky["problem"] is None
    assert summarise["missing_slots"] == flaky["missing_slots"] == []
    assert summarise["runs"] == summarise["succeeded"] >= 2
    assert (flaky["failed"], flaky["runs"]) == (2, 2 + flaky["succeeded"])
    assert flaky["succeeded"] >= 1
    assert summarise["last"].startswith(f"{document['rows']} records of ")
    assert flaky["last"] == "works, after 2 failures"


def test_every_record_arrives_and_nothing_stays(scratch: Path, environment: dict[str, str]) -> None:
    """The demonstration ends by itself, with every record in the archive, every slot on record, and no folder left."""
    done = subprocess.run(
        [*HEADRACE, "--seconds", "4", "--json"],
        cwd=scratch, env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["succeeded"]
    assert document["rows"] == document["records_written"] > 1000
    assert document["files_read"] == document["files_written"] > 3
    assert document["dead_letters"] == 0
    assert all(form["records"] for form in document["forms"].values())
    assert list(document["steps"])[:2] == ["PostgreSQL", "Valkey"]
    assert len(document["steps"]) == 8
    assert_jobs_ran(document)
    assert "password" not in done.stdout.lower()
    assert list((scratch / "tmp").iterdir()) == []


def test_a_slot_without_record_is_told(conf: Settings, sql: Callable[..., list[tuple[Any, ...]]]) -> None:
    """A job is judged by its history: no run, a slot that is nowhere, and too many failures are each a problem."""
    jobs = Jobs(conf)
    jobs.start()
    began = sql("SELECT initial_start FROM headrace.job WHERE name LIKE 'summarise%'")[0][0]

    def problem() -> str | None:
        return jobs.outcomes(began)[0].problem

    def record(slot: int, state: str) -> None:
        sql(
            "INSERT INTO headrace.job_run (job_id, scheduled_for, reason, state, started_at, finished_at) "
            "SELECT job_id, %s, 'schedule', %s, now(), now() FROM headrace.job WHERE name LIKE 'summarise%%'",
            began + slot * timedelta(seconds=2), state,
        )  # fmt: skip

    assert problem() == "did not run"
    record(0, "skipped")
    record(1, "succeeded")
    record(3, "succeeded")
    assert problem() == f"has no record of 1 of its slots, the first at {began + timedelta(seconds=4):%H:%M:%S.%f} UTC"
    record(2, "skipped")
    assert problem() is None
    record(4, "failed")
    assert problem() == "failed 1 times instead of 0; its newest run said: failed"


def test_a_second_demonstration_begins_anew(conf: Settings, sql: Callable[..., list[tuple[Any, ...]]]) -> None:
    """In a folder that is used again the jobs of the earlier demonstration give way to new ones."""
    Jobs(conf).start()
    earlier = sql("SELECT job_id FROM headrace.jobs ORDER BY job_id")
    Jobs(conf).start()
    now = sql("SELECT job_id FROM headrace.jobs ORDER BY job_id")
    assert len(earlier) == len(now) == 2
    assert not set(earlier) & set(now)


def test_ctrl_c_ends_everything(scratch: Path, demo: subprocess.Popen[str]) -> None:
    """After Ctrl-C the command says so, exits with 130, and neither a process nor a file is left."""
    below = descendants(demo.pid)
    assert all(word in names(below) for word in ("postgres", "valkey", "worker", "beat", "flower", "watch"))
    demo.send_signal(signal.SIGINT)
    output, talk = demo.communicate(timeout=30)
    assert demo.returncode == 130
    assert output == ""
    assert "interrupted" in talk
    assert left_after(below, 0.5) == []
    assert list((scratch / "tmp").iterdir()) == []


def test_kill_9_leaves_no_process(demo: subprocess.Popen[str]) -> None:
    """The kernel ends every process of a demonstration that was killed, pool processes and backends included."""
    below = descendants(demo.pid)
    assert len(below) > 10
    demo.kill()
    demo.wait()
    assert left_after(below, GONE_SECONDS) == []


def test_a_folder_with_other_data_is_refused(scratch: Path, environment: dict[str, str]) -> None:
    """A data folder that no demonstration made is left alone: its archive might be real."""
    done = subprocess.run(
        [*HEADRACE, "--data-dir", str(scratch)],
        cwd=scratch, env=environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "might be real" in done.stderr
    assert not (scratch / "postgres").exists()
