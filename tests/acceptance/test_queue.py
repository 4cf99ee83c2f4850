"""The queue as its users meet it: real workers, beats and watchers, a real broker, a real database."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

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


@pytest.fixture(scope="module", name="site")
def _site(module_site: Site) -> Site:
    return module_site


@pytest.fixture(scope="module")
def worker(site: Site) -> Process:
    """A worker that commits often and whose sweep is impatient; nearly every test uses it."""
    return site.worker(
        options=["-c", "2"],
        HEADRACE_TELEMETRY__BATCH_BYTES="10000",
        HEADRACE_TELEMETRY__SWEEP_SECONDS="1",
        HEADRACE_TELEMETRY__REQUEUE_SECONDS="2",
        HEADRACE_LOGS__FILE=str(site.folder / "logs" / "worker.json"),
        HEADRACE_LOGS__MAX_BYTES="100000",
    )


@pytest.fixture(scope="module")
def watcher(site: Site, worker: Process) -> Process:
    """The watcher of the folder `watched`; no beat runs unless a test starts it."""
    (site.data / "watched").mkdir()
    process = site.start("headrace", "telemetry", "watch", HEADRACE_TELEMETRY__DATA_DIRS=f'["{site.data}/watched"]')
    site.until_logged(process, "watch.started")
    return process


@pytest.fixture
def beat(site: Site, worker: Process) -> Iterator[Process]:
    """A beat whose ticks come every second."""
    process = site.start("beat", app="rehearsal")
    yield process
    process.terminate()
    process.wait(20)


def test_the_watcher_has_a_written_file_in_the_database_within_seconds(site: Site, watcher: Process) -> None:
    """A file written below a watched folder is in the database within five seconds, with no beat."""
    write(site.data / "watched", "seen")
    site.until_rows("seen", seconds=5)


def test_the_sweep_finds_a_file_that_no_watcher_saw(site: Site, beat: Process) -> None:
    """A file in a folder that nobody watches gets into the database through beat's sweep."""
    write(site.data / "swept", "swept")
    site.until_rows("swept")


def test_folders_made_after_the_start_are_watched(site: Site, watcher: Process) -> None:
    """Files of a new tree of folders are read, those written with it and those written later."""
    folder = site.data / "watched" / "2024" / "04" / "16"
    write(folder, "nested")
    site.until_rows("nested", seconds=5)
    write(folder, "nestedlater")
    site.until_rows("nestedlater", seconds=5)


def test_a_live_file_is_in_the_database_while_it_grows(site: Site, watcher: Process) -> None:
    """200 records a second are visible within three seconds, as one run, and reading them stays a small effort."""
    path = write(site.data / "watched", "live", count=0)
    before, began, reported = reads(site), time.monotonic(), 0
    with path.open("a", buffering=1) as file:
        for number in range(8 * 200):
            file.write(lines(1, start=number))
            time.sleep(max(0.0, began + number / 200 - time.monotonic()))
            if number % 100 == 99:
                reported = site.rows("live")
                assert reported >= number - 3 * 200
    site.until_rows("live", 1600, seconds=3)
    assert site.ask("SELECT count(*) FROM headrace.run WHERE key = %s", f"here:{path}") == [(1,)]
    assert reads(site) - before <= 3 * 8 and reported > 0


def reads(site: Site) -> int:
    """How often the module's worker was asked to read a file."""
    answer = json.loads(site.celery("inspect", "stats", "--json", "-t", "0.5", "-d", "w0@here").stdout)
    return int(answer["w0@here"]["total"].get("telemetry.ingest", 0))


def test_the_command_line_and_scripts_put_work_on_the_queue(site: Site, worker: Process) -> None:
    """`telemetry ingest --wait` returns when the rows are there; `from producers import enqueue` is as good."""
    asked = site.run("telemetry", "ingest", str(write(site.data / "asked", "asked")), "--wait", "--json")
    assert (asked.returncode, site.rows("asked"), json.loads(asked.stdout)["succeeded"]) == (0, 100, 1)
    path = write(site.data / "asked", "scripted")
    script = site.script(f"from producers import enqueue; print(enqueue('telemetry.ingest', path={str(path)!r}))")
    assert (script.returncode, len(script.stdout.strip())) == (0, 36), script.stderr
    site.until_rows("scripted")


def test_waiting_lasts_until_the_whole_file_is_read(site: Site) -> None:
    """A file that takes several time slices is complete when `ingest --wait` returns, and so is its report."""
    site.worker("slices", HEADRACE_TELEMETRY__SLICE_SECONDS="0.05", HEADRACE_TELEMETRY__BATCH_BYTES="10000")
    path = write(site.data / "asked", "sliced", count=20_000)
    asked = site.run("telemetry", "ingest", str(path), "--wait", "--json", host="slices")
    assert (asked.returncode, site.rows("sliced")) == (0, 20_000)
    assert [run["counters"]["records"] for run in json.loads(asked.stdout)["runs"]] == [20_000]


def test_a_host_is_known_as_soon_as_it_has_joined(site: Site, worker: Process) -> None:
    """A sender refuses a host that nobody knows in one clear line, and reaches it a moment after it has joined."""
    path = write(site.data / "asked", "joined")
    refused = site.run("telemetry", "ingest", str(path), host="newcomer")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "no worker of host 'newcomer' has ever announced itself" in refused.stderr
    code = f"""
from producers import enqueue
while input():
    try: print(enqueue("telemetry.ingest", path={str(path)!r}), flush=True)
    except Exception as error: print(type(error).__name__, flush=True)
"""
    pipe, environment = subprocess.PIPE, site.environment("newcomer")
    with subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, stdin=pipe, stdout=pipe) as sender:
        assert sender.stdin is not None and sender.stdout is not None
        sender.stdin.write("ask\n")
        sender.stdin.flush()
        assert sender.stdout.readline() == "PermanentFailure\n"
        site.worker("newcomer")
        sender.communicate("ask\n\n", timeout=20)
    site.until_rows("joined")


def test_an_unknown_queue_is_refused(site: Site) -> None:
    """A message for a queue that nobody has is an error for its sender, not a message that waits for ever."""
    sent = site.script("from workers.app import app; app.send_task('ticks.reap', queue='typo')")
    assert sent.returncode == 1 and "QueueNotFound" in sent.stderr


def test_a_worker_consumes_what_it_is_told_to(site: Site, worker: Process) -> None:
    """Without -Q a worker has exactly its host's queues, with -Q those named, and both may serve one host."""
    plain = site.worker("second", HEADRACE_WORKER__TICKS="false")
    chosen = site.worker("second", options=["-Q", "repack,telemetry.second"])
    nodes = [f"w{site.processes.index(process)}@second" for process in (plain, chosen)]
    answer = site.celery("inspect", "active_queues", "--json", "-t", "0.5", "-d", ",".join(nodes))
    queues = [{queue["name"] for queue in json.loads(answer.stdout)[node]} for node in nodes]
    everything = {"dispatch", "postprocessing", "repack", "telemetry.second", "products.second"}
    assert queues == [everything, {"repack", "telemetry.second"}]
    consumed = site.ask("SELECT DISTINCT unnest(queues) FROM headrace.worker WHERE host = 'second'")
    assert {row[0] for row in consumed} == everything


@pytest.mark.parametrize("what", [["telemetry"], ["--host", "here"]], ids=["room", "host"])
def test_what_is_paused_waits_and_is_done_after_resume(site: Site, worker: Process, what: list[str]) -> None:
    """Nothing of a paused room or host is started, its request stays queued, and is done after `resume`."""
    path = write(site.data / "asked", f"paused{len(what)}")
    refused = site.log(worker).count("is paused on here")
    assert [site.run(*words).returncode for words in (["pause", *what], ["telemetry", "ingest", str(path)])] == [0, 0]
    site.until_logged(worker, "is paused on here", refused + 1)
    assert site.newest_run(path)[1] == "queued"
    site.run("resume", *what)
    a_minute_later(site)
    site.until_run(path, "succeeded")


def a_minute_later(site: Site) -> None:
    """The reaper's tick, at the time when it sends waiting requests again."""
    site.ask("UPDATE headrace.run SET sent_at = sent_at - interval '1 minute' WHERE state = 'queued'")
    assert site.script("from workers.app import app\napp.send_task('ticks.reap', queue='ticks')").returncode == 0


def test_a_drained_host_finishes_its_work_and_takes_nothing_new(site: Site, worker: Process) -> None:
    """`drain HOST` returns when the running work is done; what came meanwhile is done after `resume --host`."""
    running, waiting = write(site.data / "asked", "running"), write(site.data / "asked", "waiting")
    refused = site.log(worker).count("is paused on here")
    with site.blocked():
        site.run("telemetry", "ingest", str(running))
        site.until_run(running, "running")
        drain = site.start("headrace", "drain", "here")
        site.until(lambda: site.ask("SELECT draining FROM headrace.host WHERE name = 'here'") == [(True,)], "draining")
        site.run("telemetry", "ingest", str(waiting))
        site.until_logged(worker, "is paused on here", refused + 1)
        assert drain.poll() is None
    assert drain.wait(10) == 0
    assert (site.rows("running"), site.rows("waiting")) == (100, 0)
    site.run("resume", "--host", "here")
    a_minute_later(site)
    site.until_rows("waiting")


def test_a_long_ingest_is_cancelled_and_can_be_asked_for_again(site: Site, worker: Process) -> None:
    """`cancel RUN` ends a run within seconds and keeps its rows; no sweep goes on with it, `retry RUN` completes it."""
    path = write(site.data / "asked", "long", count=20_000)
    body = "BEGIN PERFORM pg_sleep(0.9); RETURN NULL; END"
    site.ask(f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS '{body}'")
    site.ask("CREATE TRIGGER slow AFTER INSERT ON telem EXECUTE FUNCTION slow()")
    site.run("telemetry", "ingest", str(path))
    site.until(lambda: site.rows("long") > 0, "the first rows are there")
    run = site.until_run(path, "running")
    assert site.run("cancel", str(run)).returncode == 0
    site.until(lambda: site.newest_run(path) == (run, "cancelled"), "the run is cancelled", seconds=12)
    site.ask("DROP TRIGGER slow ON telem")
    found = site.rows("long")
    assert 0 < found < 20_000 and site.run("telemetry", "ingest", "--wait").returncode == 0
    assert site.ask("SELECT state FROM headrace.telemetry_file WHERE path = %s", str(path)) == [("cancelled",)]
    assert (site.newest_run(path)[0], site.rows("long")) == (run, found)
    assert (site.run("retry", str(run), "--wait").returncode, site.rows("long")) == (0, 20_000)


def test_a_hangup_reloads_the_settings(site: Site) -> None:
    """SIGHUP makes a worker without a terminal take the changed file; a broken one is refused and work goes on."""
    config = site.folder / "reload.yaml"
    config.write_text("worker: {ticks: false, rooms: [telemetry]}")
    process = site.worker("reloaded", HEADRACE_CONFIG=str(config))

    def queues() -> set[str]:
        return {row[0] for row in site.ask("SELECT unnest(queues) FROM headrace.worker WHERE host = 'reloaded'")}

    assert queues() == {"telemetry.reloaded"}
    config.write_text("worker: {ticks: false, rooms: [telemetry, products]}")
    process.send_signal(signal.SIGHUP)
    site.until(lambda: queues() == {"telemetry.reloaded", "products.reloaded"}, "the new settings are in force")
    config.write_text("wroker: {ticks: false}")
    process.send_signal(signal.SIGHUP)
    site.until_logged(process, "settings.not_reloaded")
    path = write(site.data / "asked", "hangup")
    assert site.run("telemetry", "ingest", str(path), "--wait", host="reloaded").returncode == 0
    assert (process.poll(), site.rows("hangup")) == (None, 100)


def test_a_log_file_is_rotated_and_loses_nothing(site: Site, worker: Process) -> None:
    """Every process of the worker writes one file, which is rotated by size: each line is whole and none is missing."""
    path = write(site.data / "asked", "logged")
    site.run("telemetry", "ingest", str(path), "--wait")
    code = f"from producers import enqueue\nfor _ in range(500):\n    enqueue('telemetry.ingest', path={str(path)!r})"
    assert site.script(code).returncode == 0
    site.until_logged(worker, f'"reason":"{path}', 500)
    files = list((site.folder / "logs").glob("worker.json*"))

    def told() -> int:
        events = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return sum(str(path) in event.get("reason", "") for event in events)

    site.until(lambda: told() == 500, "all is in the files")
    assert len(files) > 1 and max(file.stat().st_size for file in files) < 110_000


def test_exit_codes_and_one_clear_line(site: Site, worker: Process) -> None:
    """3 when a server cannot be reached or refuses the login, 2 for wrong settings: one line, no password in it."""
    ingest = ("telemetry", "ingest", str(write(site.data / "asked", "codes")))
    gone, wrong = "host=127.0.0.1 port=1 password=wrong", site.dsn.replace("@", "wrong@")
    (strange := site.folder / "strange.yaml").write_text("telemetry: {sweep_second: 5}")
    for code, text, words, more in (
        (3, "cannot be reached", (*ingest, "--here"), {"HEADRACE_CONTROL__DSN": gone}),
        (3, "the login was refused", (*ingest, "--here"), {"HEADRACE_CONTROL__DSN": wrong}),
        (3, "the broker", ingest, {"HEADRACE_BROKER__URL": "redis://:wrong@127.0.0.1:1/0"}),
        (2, "did you mean 'sweep_seconds'?", ("--config", str(strange), *ingest, "--here"), {}),
    ):
        found = site.run(*words, timeout=10, **more)
        assert (found.returncode, found.stdout, len(found.stderr.splitlines())) == (code, "", 1), found
        assert text in found.stderr and "wrong" not in found.stderr


def test_validate_tells_everything_at_once(site: Site) -> None:
    """`headrace validate` lists all wrong settings, or else all servers and folders that are not in order."""
    wrong = site.folder / "wrong.yaml"
    wrong.write_text("hots: x\nworker: {rooms: [telemtry]}\nlogs: {level: LOUD}")
    found = site.run("--config", str(wrong), "validate")
    assert (found.returncode, len(found.stderr.splitlines())) == (2, 3), found.stderr
    dsn, url = "host=127.0.0.1 port=1", "redis://127.0.0.1:1/0"
    servers = {"HEADRACE_CONTROL__DSN": dsn, "HEADRACE_BROKER__URL": url}
    found = site.run("validate", timeout=60, HEADRACE_TELEMETRY__DATA_DIRS='["/nowhere"]', **servers)
    assert (found.returncode, len(found.stderr.splitlines())) == (3, 3), found.stderr
    assert site.run("validate").returncode == 0
