"""`headrace demo` as a newcomer runs it: all arrives, runs, is rewritten and built as it should; no process stays."""

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
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from producers.cli import demo_dispatch, demo_products, demo_repack
from producers.cli.demo_dispatch import Events, EventsOutcome
from producers.cli.demo_jobs import Jobs
from producers.cli.demo_play import Outcome, Progress
from producers.cli.demo_products import Products, ProductsOutcome
from producers.cli.demo_repack import Rewrite, RewriteOutcome
from producers.cli.instrument import Written
from tests.integration.dispatch.conftest import missing, pl_only_sql  # noqa: F401
from workers import execution
from workers import settings as settings_module
from workers.dispatch import api
from workers.dispatch_settings import Dispatch
from workers.errors import PermanentFailure
from workers.messages import ChooseTables, IngestIncoming, PlanProducts, ReplayEvents
from workers.products_settings import Products as ProductRules
from workers.repack_settings import Repack
from workers.services.postgres import PostgresServer
from workers.services.processes import is_alive, process_state
from workers.settings import Settings

HEADRACE = [sys.executable, "-m", "producers.cli", "demo"]
PROCESSES = Path("/proc")
ATTACHED = [
    "comment",
    "grant SELECT to PUBLIC",
    "index demo.readings_pkey",
    "index demo.readings_taken",
    "view demo.warm_reading",
]
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


def assert_events_arrived(events: dict[str, Any]) -> None:
    """Each change is in today's partition, the one that failed on purpose, too, and the next days have theirs."""
    assert events["problem"] is None
    assert events["applied"] == events["changes"] > 10
    assert (events["rows"], events["differing"], events["failed"]) == (9, 0, 0)
    assert "value too long" in events["poison"]["error"]
    assert events["poison"]["state"] == "replayed"
    assert len(events["partitions"]) >= 4
    assert events["made_ahead"] in (2, 3)  # two where midnight came in between
    assert 0 < events["slowest_seconds"] < 20  # one or two are usual


def assert_rewritten(rewrite: dict[str, Any]) -> None:
    """The bloated table is less than half as large, all changes since are in it, and all that it had is there."""
    assert rewrite["problem"] is None
    assert rewrite["state"] == "done"
    assert 0 < 2 * rewrite["bytes_after"] < rewrite["bytes_before"]
    assert 0 < rewrite["hold_seconds"] < 2  # one is the settings' own budget
    assert rewrite["replayed"] > 0
    assert rewrite["changes"] > rewrite["replayed"]
    assert (rewrite["differing"], rewrite["lost"]) == (0, [])
    assert rewrite["rows"] > 50_000
    assert sorted(rewrite["attached"]) == ATTACHED


def assert_products_verified(products: dict[str, Any]) -> None:
    """Files of days came in, and everything made of them is right, what was damaged on purpose included."""
    assert products["problem"] is None
    assert products["came_in"] >= 4
    assert products["built"] >= 3 + 3 + products["repaired"]
    assert products["verified"] >= 3 * 3 + 2  # three days of three products, and the older version of a file and its L1
    assert (products["found"], products["repaired"], products["quarantined"]) == (["missing", "corrupt"], 2, 1)


def test_every_record_arrives_and_nothing_stays(scratch: Path, environment: dict[str, str]) -> None:
    """It ends by itself: all records in the archive, all slots, events, changes and products where they belong."""
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
    assert_jobs_ran(document)
    assert_rewritten(document["rewrite"])
    assert_products_verified(document["products"])
    assert "password" not in done.stdout.lower()
    assert list((scratch / "tmp").iterdir()) == []
    if document["events"]["missing"] is not None:
        assert len(document["steps"]) == 9
        missing(document["events"]["missing"])
    assert len(document["steps"]) == 10
    assert_events_arrived(document["events"])


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


@pytest.fixture
def events_conf(conf: Settings) -> Settings:
    """Settings with the demonstration's consumer, in force for this process."""
    consumers = Dispatch.model_validate(demo_dispatch.SETTINGS)
    return settings_module.use(conf.model_copy(update={"dispatch": consumers}))


def test_each_trouble_with_events_is_told(
    events_conf: Settings,
    sql: Callable[..., list[tuple[Any, ...]]],
    work: Callable[..., list[str]],
    pl_only_sql: Path,  # noqa: F811
) -> None:
    """Events that wait or did not fail, one that was not replayed, rows that differ, no next partition: all told."""
    notes: list[str] = []
    for number in (1, 2):  # in a folder that is used again everything is there, and happens once more
        events = Events(events_conf, notes.append)
        events.set_up()
        assert events.missing is None
        events.play({"tcsi": Written(number, 10, 100), "holoop": Written()})
        assert events.outcome().problem == "the event that was to fail did not"
        events.play({"tcsi": Written(number, 20, 200), "holoop": Written()})
        apply_events(events_conf, sql, work)
        found = events.outcome()
        assert found.problem is not None
        assert found.problem.startswith("failed events wait (1), the newest because: value too long")
        assert (found.changes, found.applied, found.rows, found.differing) == (5, 5, 3, 1)
        sql("ALTER TABLE demo.device_by_day ALTER COLUMN state TYPE text")
        assert work(ReplayEvents(consumer="demo"), settings=events_conf) == []
        assert (events.outcome().problem == "no partition of demo.device_by_day was made ahead") == (number == 1)
        assert work(*api.due_for_tending(events_conf), settings=events_conf) == []
        assert events.outcome().problem is None
    sql("UPDATE demo.device_by_day SET files = 7 WHERE device = 'tcsi'")
    assert events.outcome().problem == "1 of 3 rows differ between demo.device and demo.device_by_day"
    sql("UPDATE headrace.failed_event SET state = 'superseded'")
    assert events.outcome().problem == "the event that was to fail is superseded instead of replayed"
    sql("UPDATE headrace.dispatch_position SET state = 'parked', problem = 'it got lost'")
    assert events.outcome().problem == "the consumer demo is parked: it got lost"
    assert notes == []


def apply_events(conf: Settings, sql: Callable[..., list[tuple[Any, ...]]], work: Callable[..., list[str]]) -> None:
    """Tick the queue, and apply what is in it."""
    sql("SELECT pgq.force_tick('demo')")
    assert sql("SELECT pgq.ticker('demo')") != [(None,)]
    assert work(*api.look(conf, "demo"), settings=conf) == []


def test_without_pgq_the_rest_goes_on(events_conf: Settings, sql: Callable[..., list[tuple[Any, ...]]]) -> None:
    """Where PgQ cannot be installed the demonstration says why, makes nothing, and has no problem."""
    sql("CREATE SCHEMA pgq")
    events = Events(events_conf, pytest.fail)
    events.set_up()
    assert "has nothing of PgQ in it" in str(events.missing)
    events.play({"tcsi": Written(1, 10, 100)})
    assert events.outcome().missing == events.missing
    assert events.outcome().problem is None
    assert sql("SELECT to_regclass('demo.device')") == [(None,)]


def test_the_ticker_says_what_to_do_where_pgq_is_missing(events_conf: Settings) -> None:
    """A tick in a database without PgQ is refused in words, as a look at it is."""
    with pytest.raises(PermanentFailure, match="has no PgQ in schema 'pgq'"):
        api.tick(events_conf, "demo")


@pytest.fixture
def rewrite_conf(conf: Settings) -> Settings:
    """Settings with the demonstration's plan, in force for this process, which can do what messages ask."""
    execution.load_rooms()
    return settings_module.use(conf.model_copy(update={"repack": Repack.model_validate(demo_repack.SETTINGS)}))


def test_each_trouble_with_the_rewrite_is_told(
    rewrite_conf: Settings, sql: Callable[..., list[tuple[Any, ...]]], work: Callable[..., list[str]]
) -> None:
    """A table that was not chosen, rows that differ, a view that is gone, a rewrite that failed: all told."""
    rewrite = Rewrite(rewrite_conf, pytest.fail)
    assert rewrite.outcome().problem == "demo.readings could not be changed: it could not be made in time"
    rewrite.set_up()
    rewrite.change()
    assert rewrite.outcome().problem == "the plan demo did not choose demo.readings"
    choose = ChooseTables(database="control", plan="demo")
    (step,) = execution.execute(choose, rewrite_conf)
    assert str(rewrite.outcome().problem).startswith("demo.readings is still being rewritten, at prepare")
    assert work(step, settings=rewrite_conf) == []
    rewrite.change()
    found = rewrite.outcome()
    assert found.problem is None
    assert (found.state, found.differing, found.lost) == ("done", 0, ())
    assert sorted(found.attached) == ATTACHED

    sql("UPDATE demo.readings SET value = value + 1 WHERE id IN (SELECT id FROM demo.readings LIMIT 2)")
    sql("DELETE FROM demo.readings WHERE id = (SELECT max(id) FROM demo.readings)")
    found = rewrite.outcome()
    assert found.problem == f"demo.readings and the ledger of its changes differ in 3 of {found.rows} rows"
    sql("TRUNCATE demo.readings_ledger")
    sql("INSERT INTO demo.readings_ledger (id, value) SELECT id, value FROM demo.readings")
    sql("DROP VIEW demo.warm_reading")
    sql("COMMENT ON TABLE demo.readings IS 'another'")
    assert rewrite.outcome().problem == "demo.readings lost what it had: view demo.warm_reading, comment"
    sql("UPDATE headrace.repack SET state = 'failed', problem = 'the disk was full'")
    again = Rewrite(rewrite_conf, pytest.fail)
    again._is_made.set()
    assert again.outcome().problem == "demo.readings was not rewritten as it should be (failed): the disk was full"


def test_a_second_rewrite_begins_anew(
    rewrite_conf: Settings, sql: Callable[..., list[tuple[Any, ...]]], work: Callable[..., list[str]]
) -> None:
    """In a folder that is used again a rewrite that is half-way is given up, and one that failed is no obstacle."""
    choose = ChooseTables(database="control", plan="demo")
    Rewrite(rewrite_conf, pytest.fail).set_up()
    (step,) = execution.execute(choose, rewrite_conf)
    (step,) = execution.execute(step, rewrite_conf)  # a copy is made, changes are logged
    second = Rewrite(rewrite_conf, pytest.fail)
    second.set_up()
    assert sql("SELECT state FROM headrace.repack") == [("aborted",)]
    assert sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'headrace\\_%'") == []
    sql("UPDATE headrace.repack SET state = 'failed'")
    third = Rewrite(rewrite_conf, pytest.fail)
    third.set_up()
    assert work(choose, settings=rewrite_conf) == []
    assert third.outcome().problem is None


def test_a_room_gone_wrong_fails_the_demonstration() -> None:
    """Everything else may be well: with a problem of the rewrite, or of a product, the demonstration is not."""
    progress = Progress(1.0, {}, {}, 0.0, {"dead": 0}, 0, 0, EventsOutcome(), 0)
    well = RewriteOutcome(state="done", bytes_before=2, bytes_after=1, rows=1)
    built = ProductsOutcome(damaged=("a", "b"), found=("missing", "corrupt"), repaired=2, quarantined=1)
    outcome = Outcome(progress, 0, 1.0, (), EventsOutcome(missing="no PgQ"), well, built)
    assert outcome.good
    assert not replace(outcome, rewrite=replace(well, differing=1)).good
    assert not replace(outcome, products=replace(built, wrong=("a file is missing",))).good


@pytest.fixture
def products_conf(conf: Settings) -> Settings:
    """Settings with the demonstration's rules for products, but that files settle at once."""
    rules = ProductRules.model_validate(demo_products.SETTINGS | {"settle_seconds": 0.0})
    return conf.model_copy(update={"products": rules})


def build(conf: Settings, products: Products, work: Callable[..., list[str]], *, deliveries: int = 0) -> None:
    """Take in so many more deliveries, one after the other, and build all that is stale."""
    for _ in range(deliveries):
        products.deliver()
        assert work(IngestIncoming(host="here", mission="DEMO"), settings=conf) == []
    assert work(PlanProducts(host="here", mission="DEMO"), settings=conf) == []


def test_each_trouble_with_products_is_told(
    products_conf: Settings, tmp_path: Path, sql: Callable[..., list[tuple[Any, ...]]], work: Callable[..., list[str]]
) -> None:
    """Files that did not come in, outputs that are not built, damaged, too much or made of other bytes: all told."""
    products = Products(products_conf, tmp_path, lambda _note: None)
    products.set_up()
    products.deliver()
    assert products.outcome().problem == "demo_L0_20270301_v1.0.0.dat did not come in, and 4 more"
    assert work(IngestIncoming(host="here", mission="DEMO", then_build=False), settings=products_conf) == []
    assert products.outcome().wrong == ("there is no L1 of 2027-03-01", "there is no L2 of 2027-03-01")
    build(products_conf, products, work, deliveries=3)
    assert products.outcome().problem == "there was nothing that could be damaged on purpose"
    assert products.damage()
    damaged = {"demo_L1_20270301_v1.0.0.dat is missing", "demo_L2_20270302_v1.2.0.dat is corrupt"}
    assert damaged <= set(products.outcome().wrong)
    build(products_conf, products, work)
    found = products.outcome()
    assert found.problem is None
    assert (found.came_in, found.verified, found.built) == (4, 15, 13)
    assert products.built() == found.built

    l2 = tmp_path / "mission/L2/2027/demo_L2_20270302_v1.2.0.dat"
    kept = l2.read_bytes()
    l2.write_bytes(kept + b"\n")
    assert products.outcome().problem == f"{l2.name} is on disk another than in the database"
    rehash = "UPDATE headrace.product_file SET sha256 = encode(sha256(%s::bytea), 'hex') WHERE filename = %s"
    sql(rehash, kept + b"\n", l2.name)
    assert products.outcome().problem == f"{l2.name} is not what its code makes of its newest inputs"
    sql(rehash, kept, l2.name)
    l2.write_bytes(kept)
    sql("UPDATE headrace.product_file SET inputs = inputs[2:] WHERE filename = %s", l2.name)
    assert products.outcome().problem == f"{l2.name} does not say that it has the newest inputs"
    build(products_conf, products, work)  # the same bytes come out of it, and its inputs are what they were
    assert products.outcome().problem == "runs with the inputs and the code of an earlier one: 1"
    sql("UPDATE headrace.product_build SET state = 'failed' WHERE id = (SELECT max(id) FROM headrace.product_build)")
    assert products.outcome().problem == "runs that failed: 1"
    (l2.parent / "demo_L2_20270302_v9.9.9.dat").write_bytes(kept)
    (tmp_path / "mission/incoming/late").touch()
    assert products.outcome().wrong == (
        "demo_L2_20270302_v9.9.9.dat is on disk, and not in the database", "late was not taken in",
    )  # fmt: skip


def test_a_second_mission_goes_on_where_the_first_ended(
    products_conf: Settings, tmp_path: Path, work: Callable[..., list[str]]
) -> None:
    """In a folder that is used again other days come in, and nothing of the first demonstration counts."""
    for first in ("20270301", "20270310"):
        products = Products(products_conf, tmp_path, lambda _note: None)
        products.set_up()
        build(products_conf, products, work, deliveries=4)
        assert products.damage()
        build(products_conf, products, work)
        found = products.outcome()
        assert found.problem is None
        assert found.damaged[0] == f"demo_L1_{first}_v1.0.0.dat"
        assert (found.came_in, found.verified, found.built) == (4, 16, 14)


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
