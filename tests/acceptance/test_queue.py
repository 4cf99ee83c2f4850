"""The queue as its users meet it: real workers, beats and watchers, a real broker, a real database."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Site

Process = subprocess.Popen[bytes]
STAMP = "20240416035000000000000"


def lines(count: int, start: int = 0) -> str:
    """So many records of an instrument."""
    return "".join(
        f'{{"ts": "2024-04-16T03:{number // 60000 % 60:02d}:{number // 1000 % 60:02d}.{number % 1000:03d}000007", '
        f'"prio": "TELM", "ec": "telem_cooler", "msg": {{"liquidTemp": {number}.5, "note": "{"x" * 60}"}}}}\n'
        for number in range(start, start + count)
    )


def write(folder: Path, device: str, count: int = 100) -> Path:
    """A file of a device, with its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{device}_{STAMP}.ndjson"
    path.write_text(lines(count))
    return path


def rows(site: Site, device: str) -> int:
    """How many rows a device has."""
    return int(site.ask("SELECT count(*) FROM telem WHERE device = %s", device)[0][0])


def until_rows(site: Site, device: str, count: int = 100, seconds: float = 10) -> None:
    """Wait until a device has exactly so many rows."""
    site.until(lambda: rows(site, device) == count, f"{device} has {count} rows", seconds)


def until_logged(site: Site, process: Process, text: str, times: int = 1) -> None:
    """Wait until a process has written a text to its log."""
    site.until(lambda: site.log(process).count(text) >= times, f"{text!r} is logged")


def newest_run(site: Site, path: Path) -> tuple[int, str, dict[str, Any]]:
    """Id, state and counters of a file's newest run."""
    key = f"here:{path}"
    found = site.ask("SELECT id, state, counters FROM headrace.run WHERE key = %s ORDER BY id DESC LIMIT 1", key)
    return found[0] if found else (0, "none", {})  # type: ignore[return-value]


def until_run(site: Site, path: Path, *states: str) -> int:
    """Wait until the newest run of a file is in one of the states; its id."""
    site.until(lambda: newest_run(site, path)[1] in states, f"{path.name} is {' or '.join(states)}")
    return newest_run(site, path)[0]


def end(process: Process) -> None:
    """Stop one process and wait for it."""
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="module")
def site(module_site: Site) -> Site:
    """The module's deployment, under a name."""
    return module_site


@pytest.fixture(scope="module")
def worker(site: Site) -> Process:
    """A worker that commits often and whose sweep is impatient; nearly every test uses it."""
    return site.worker(
        options=["-c", "2"],
        HEADRACE_TELEMETRY__BATCH_BYTES="10000",
        HEADRACE_TELEMETRY__SWEEP_SECONDS="1",
        HEADRACE_TELEMETRY__REQUEUE_SECONDS="2",
    )


@pytest.fixture(scope="module")
def watcher(site: Site, worker: Process) -> Process:
    """The watcher of the folder `watched`; no beat runs unless a test starts it."""
    (site.data / "watched").mkdir()
    process = site.start("headrace", "telemetry", "watch", HEADRACE_TELEMETRY__DATA_DIRS=f'["{site.data}/watched"]')
    until_logged(site, process, "watch.started")
    return process


@pytest.fixture
def beat(site: Site, worker: Process) -> Iterator[Process]:
    """A beat whose ticks come every second."""
    process = site.start("beat", app="rehearsal")
    yield process
    end(process)


def test_the_watcher_has_a_written_file_in_the_database_within_seconds(site: Site, watcher: Process) -> None:
    """A file written below a watched folder is in the database within five seconds, with no beat."""
    write(site.data / "watched", "seen")
    until_rows(site, "seen", seconds=5)


def test_the_sweep_finds_a_file_that_no_watcher_saw(site: Site, beat: Process) -> None:
    """A file in a folder that nobody watches gets into the database through beat's sweep."""
    write(site.data / "swept", "swept")
    until_rows(site, "swept")


def test_folders_made_after_the_start_are_watched(site: Site, watcher: Process) -> None:
    """Files of a new tree of folders are read, those written with it and those written later."""
    folder = site.data / "watched" / "2024" / "04" / "16"
    write(folder, "nested")
    until_rows(site, "nested", seconds=5)
    write(folder, "nestedlater")
    until_rows(site, "nestedlater", seconds=5)


def test_a_live_file_is_in_the_database_while_it_grows(site: Site, watcher: Process) -> None:
    """200 records a second are visible within three seconds, as one run, and the file is read twice a second at most."""
    path = write(site.data / "watched", "live", count=0)
    written: list[tuple[float, int]] = [(time.monotonic(), 0)]
    read = reads(site, path)
    with path.open("a") as file:
        for number in range(8 * 20):
            file.write(lines(10, start=number * 10))
            file.flush()
            written.append((time.monotonic(), (number + 1) * 10))
            late = [count for at, count in written if at < time.monotonic() - 3]
            if number % 10 == 0 and late:
                assert rows(site, "live") >= late[-1]
            time.sleep(max(0.0, written[0][0] + number / 20 - time.monotonic()))
    until_rows(site, "live", 1600, seconds=3)
    assert site.ask("SELECT count(*) FROM headrace.run WHERE key = %s", f"here:{path}") == [(1,)]
    assert reads(site, path) - read <= 25


def reads(site: Site, path: Path) -> int:
    """How often the ingest task was started by the module's worker."""
    answer = json.loads(site.celery("inspect", "stats", "--json", "-d", "w0@here").stdout)
    return int(answer["w0@here"]["total"].get("telemetry.ingest", 0))


def test_the_command_line_and_scripts_put_work_on_the_queue(site: Site, worker: Process) -> None:
    """`telemetry ingest --wait` returns when the rows are there; `from producers import enqueue` is as good."""
    asked = site.run("telemetry", "ingest", str(write(site.data / "asked", "asked")), "--wait", "--json")
    assert (asked.returncode, rows(site, "asked")) == (0, 100)
    assert json.loads(asked.stdout)["succeeded"] == 1
    path = write(site.data / "asked", "scripted")
    script = site.script(f"from producers import enqueue; print(enqueue('telemetry.ingest', path={str(path)!r}))")
    assert (script.returncode, len(script.stdout.strip())) == (0, 36), script.stderr
    until_rows(site, "scripted")


def test_waiting_lasts_until_the_whole_file_is_read(site: Site) -> None:
    """A file that takes several time slices is complete when `ingest --wait` returns."""
    slow = site.worker("slices", HEADRACE_TELEMETRY__SLICE_SECONDS="0.05", HEADRACE_TELEMETRY__BATCH_BYTES="10000")
    path = write(site.data / "asked", "sliced", count=10_000)
    asked = site.run("telemetry", "ingest", str(path), "--wait", host="slices")
    assert (asked.returncode, rows(site, "sliced")) == (0, 10_000)
    end(slow)


def test_a_host_is_known_as_soon_as_it_has_joined(site: Site, worker: Process) -> None:
    """A sender refuses a host that nobody knows in one clear line, and reaches it a moment after it has joined."""
    path = write(site.data / "asked", "joined")
    refused = site.run("telemetry", "ingest", str(path), host="newcomer")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "no worker of host 'newcomer' has ever announced itself" in refused.stderr
    code = (
        "from producers import enqueue\nfrom workers.errors import PermanentFailure\n"
        f"ask = lambda: enqueue('telemetry.ingest', path={str(path)!r})\n"
        "try:\n    ask()\nexcept PermanentFailure:\n    print('refused', flush=True)\ninput()\nask()\nprint('sent')"
    )
    sender = subprocess.Popen(
        [sys.executable, "-c", code], env=site.environment("newcomer"), cwd=site.folder, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert sender.stdout is not None and sender.stdout.readline() == "refused\n"
    newcomer = site.worker("newcomer")
    assert sender.communicate("\n", timeout=20)[0] == "sent\n"
    until_rows(site, "joined")
    end(newcomer)


def test_an_unknown_queue_is_refused(site: Site) -> None:
    """A message for a queue that nobody has is an error for its sender, not a message that waits for ever."""
    sent = site.script("from workers.app import app\napp.send_task('ticks.reap', queue='typo')")
    assert sent.returncode == 1 and "QueueNotFound" in sent.stderr


def test_every_node_answers_under_its_own_name(site: Site, worker: Process) -> None:
    """`inspect ping` is answered by the worker and by both beats of one host; no name comes twice."""
    beats = [site.start("beat"), site.start("beat")]

    def nodes() -> list[str]:
        return sorted(json.loads(site.celery("inspect", "ping", "--json").stdout or "{}"))

    expected = sorted(["w0@here", *(f"celerybeat-{process.pid}@here" for process in beats)])
    site.until(lambda: nodes() == expected, f"{expected} answer")
    for process in beats:
        end(process)


def test_a_worker_consumes_what_it_is_told_to(site: Site, worker: Process) -> None:
    """Without -Q a worker has exactly its host's queues, with -Q those named, and both may serve one host."""
    plain = site.start("worker", "-n", "plain@second", host="second", HEADRACE_WORKER__TICKS="false")
    chosen = site.start("worker", "-n", "chosen@second", "-Q", "repack,telemetry.second", host="second")
    for process, name in ((plain, "plain@second"), (chosen, "chosen@second")):
        until_logged(site, process, f"{name} ready.")
    found = json.loads(site.celery("inspect", "active_queues", "--json", "-d", "plain@second,chosen@second").stdout)
    assert {queue["name"] for queue in found["chosen@second"]} == {"repack", "telemetry.second"}
    rooms = {"dispatch", "postprocessing", "repack"}
    assert {queue["name"] for queue in found["plain@second"]} == rooms | {"telemetry.second", "products.second"}
    known = site.ask("SELECT queues FROM headrace.host WHERE name = 'second'")[0][0]
    assert set(known) >= rooms | {"telemetry.second", "products.second"}
    for process in (plain, chosen):
        end(process)
