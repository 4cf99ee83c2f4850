"""Each command of `headrace dispatch`, called as a person or a script calls it, against real PgQ."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Site
from tests.integration.dispatch.conftest import Queue, run


@dataclass
class Desk:
    """Somebody at a terminal: settings with consumers of the queue `q`, a source, and a target that is empty."""

    site: Site
    queue: Queue
    target: str
    file: Path

    def settings(self, **consumers: dict[str, Any]) -> None:
        """Write the settings: consumers with what each has its own way."""
        base = {"source": "src", "target": "dst", "queue": self.queue.name}
        document = {
            "databases": {
                "src": {"connection": {"dsn": self.queue.dsn}},
                "dst": {"connection": {"dsn": self.target}},
            },
            "dispatch": {"consumers": {name: base | keys for name, keys in consumers.items()}},
        }
        self.file.write_text(yaml.safe_dump(document))

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """`headrace WORDS`, which must end with this code."""
        done = self.site.run("--config", str(self.file), *words, timeout=90)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def dispatch(self, *words: str, code: int = 0) -> str:
        """What `headrace dispatch WORDS` prints."""
        return self.run("dispatch", *words, code=code).stdout

    def json(self, *words: str, code: int = 0) -> Any:
        """The document of `headrace dispatch WORDS --json`."""
        return json.loads(self.dispatch(*words, "--json", code=code))

    def ask(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Ask the target."""
        return run(self.target, statement, *parameters)

    def log(self, columns: str = "id integer PRIMARY KEY, v text", table: str = "public.t") -> None:
        """A table at the source whose changes are logged, and the same at the target."""
        self.queue.logged(table, columns)
        self.ask(f"CREATE TABLE {table} ({columns})")

    def fill(self, *values: str) -> int:
        """Rows into the source's table t, and a tick after them; its number."""
        for row in values:
            self.queue.ask(f"INSERT INTO public.t VALUES ({row})")
        return self.queue.tick()


PLAIN = {"partition": {"kind": "none"}}


@pytest.fixture
def desk(site: Site, queue: Queue, empty_dsn: str, tmp_path: Path) -> Desk:
    """One consumer `cube` that keeps the newest rows in the tables themselves."""
    made = Desk(site, queue, empty_dsn, tmp_path / "headrace.yaml")
    made.settings(cube=PLAIN)
    return made


def test_setup_prints_and_makes_what_is_missing(desk: Desk) -> None:
    """--print changes nothing, setup makes our tables at the target, and twice is harmless."""
    printed = desk.dispatch("setup", "--print")
    assert "-- dst: " in printed and "CREATE TABLE headrace.dispatch_position" in printed
    assert desk.ask("SELECT to_regclass('headrace.dispatch_position') IS NULL") == [(True,)]
    assert "dispatch" in desk.dispatch("setup")
    assert desk.dispatch("setup") == "dst: all there\n"
    assert desk.json("setup") == {"databases": [{"database": "dst", "migrations": [], "ran": True}]}


def test_pgq_is_installed_where_it_is_missing(desk: Desk, pl_only_sql: Path) -> None:
    """install-pgq prints, installs into the database that is named, and finds it there the next time."""
    words = ("install-pgq", "--database", "dst", "--from", str(pl_only_sql))
    assert str(pl_only_sql) in desk.dispatch(*words, "--print")
    assert desk.ask("SELECT to_regnamespace('pgq') IS NULL") == [(True,)]
    assert desk.json(*words)["databases"][0]["ran"] is True
    assert desk.ask("SELECT to_regprocedure('pgq.next_batch(text,text)') IS NOT NULL") == [(True,)]
    assert desk.dispatch("install-pgq").startswith("src: ")


def test_a_consumer_is_registered_once(desk: Desk) -> None:
    """register refuses a missing queue, makes it when asked, and is harmless the second time."""
    desk.settings(cube={"queue": "new"})
    missing = desk.run("dispatch", "register", code=1).stderr
    assert "no queue 'new'" in missing and "--create-queue" in missing
    assert desk.dispatch("register", "cube", "--create-queue").startswith("cube: registered, at tick ")
    assert desk.json("register", "cube")["what"] == "was registered already"


def test_a_consumer_is_given_up(desk: Desk) -> None:
    """unregister asks first; then PgQ keeps nothing for it, it has no position, and it can begin anew."""
    desk.log()
    desk.dispatch("register")
    desk.fill("1, 'a'")
    assert desk.site.run("--config", str(desk.file), "dispatch", "unregister").returncode == 130
    assert len(desk.queue.consumer_info()) == 1
    assert desk.json("unregister", "--yes") == {"consumer": "cube", "unregistered": True}
    assert desk.queue.consumer_info() == []
    assert desk.ask("SELECT * FROM headrace.dispatch_position") == []
    assert desk.json("unregister", "--yes")["unregistered"] is False
    assert desk.json("register")["what"] == "registered"


def test_triggers_are_printed_and_applied(desk: Desk) -> None:
    """Without a table those of the settings; --print is the default; a second --apply has nothing to do."""
    desk.settings(cube={**PLAIN, "tables": {"public.t": {}, "public.left_out": {"ignore": True}}})
    desk.queue.ask("CREATE TABLE public.t (id integer PRIMARY KEY, v text)")
    printed = desk.dispatch("triggers", "--print")
    assert printed.startswith("BEGIN;\n") and "CREATE TRIGGER" in printed and "ALTER FUNCTION" in printed
    assert printed == desk.dispatch("triggers", "cube")
    assert desk.queue.ask("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'headrace%'") == [(0,)]
    document = desk.json("triggers", "cube", "public.t", "--apply")
    assert document["ran"] and any("CREATE TRIGGER" in (step["statement"] or "") for step in document["steps"])
    assert "has it already" in desk.dispatch("triggers", "t", "--apply")
    desk.fill("1, 'a'")
    assert [event["ev_type"] for event in desk.queue.events()] == ["I:id"]


def test_a_table_that_gets_no_trigger_is_exit_1(desk: Desk) -> None:
    """One without a key gets none, and is named; --option pkey=, or --insert-only, makes it one."""
    desk.queue.ask("CREATE TABLE public.keyless (a integer, b integer)")
    done = desk.run("dispatch", "triggers", "cube", "keyless", "--apply", code=1)
    assert "has no primary key" in done.stdout and "without a trigger into the queue: keyless" in done.stderr
    words = ("triggers", "keyless", "--apply", "--kind", "jsontriga", "--no-truncate", "--no-pin")
    desk.dispatch(*words, "--option", "pkey=a,b")
    kinds = desk.queue.ask("SELECT tgtype FROM pg_trigger WHERE tgrelid = 'public.keyless'::regclass")
    assert len(kinds) == 1
    desk.queue.ask("CREATE TABLE public.journal (a integer)")
    desk.dispatch("triggers", "journal", "--apply", "--insert-only")
    desk.queue.ask("INSERT INTO public.journal VALUES (1)")
    assert [event["ev_extra1"] for event in desk.queue.events()] == ["public.journal"]


def test_run_here_drains_every_consumer_or_those_named(desk: Desk) -> None:
    """Two consumers of one queue: named ones, then all; what is parked or unknown is exit 1, the others go on."""
    desk.settings(one=PLAIN, two={**PLAIN, "tables": {"public.t": {"target": "public.other"}}})
    desk.log()
    desk.ask("CREATE TABLE public.other (LIKE public.t)")
    for name in ("one", "two"):
        desk.dispatch("register", name)
    desk.fill("1, 'a'")
    assert desk.dispatch("run", "two", "--here") == "1 succeeded\n"
    counts = "SELECT (SELECT count(*) FROM public.t), (SELECT count(*) FROM public.other)"
    assert desk.ask(counts) == [(0, 1)]
    assert "no consumer 'three'" in desk.run("dispatch", "run", "three", "--here", code=1).stderr
    desk.ask("UPDATE headrace.dispatch_position SET state = 'parked', problem = 'a test' WHERE consumer = 'two'")
    document = desk.json("run", "--here", code=1)
    assert (document["succeeded"], document["problems"]) == (1, ["two is parked: a test"])
    assert desk.ask(counts) == [(1, 1)]
    assert "name one of the consumers" in desk.run("dispatch", "register", code=2).stderr


def test_run_here_drains_slices(desk: Desk) -> None:
    """Batches that are applied in slices are drained like the others, tick after tick."""
    desk.settings(cube={**PLAIN, "slices": 3, "slice_events": 1})
    desk.log()
    desk.dispatch("register")
    for start in (0, 100, 200):
        desk.queue.ask("INSERT INTO public.t SELECT n, 'a' FROM generate_series(%s, %s) n", start, start + 99)
        tick = desk.fill()
    desk.queue.ask("UPDATE public.t SET v = 'b' WHERE id < 100")
    tick = desk.fill()
    document = desk.json("run", "--here")
    assert document["failed"] == 0
    assert {run["key"] for run in document["runs"]} >= {f"cube:slice {number} of 3" for number in (1, 2, 3)}
    assert desk.ask("SELECT v, count(*) FROM public.t GROUP BY v ORDER BY v") == [("a", 200), ("b", 100)]
    assert desk.ask("SELECT tick, batches FROM headrace.dispatch_position") == [(tick, 4)]


@pytest.mark.parametrize("which", ["src", "dst"])
def test_run_here_ends_at_once_when_a_server_is_away(desk: Desk, which: str) -> None:
    """A consumer alone that cannot reach its source or target is exit 3; beside one that can, which is done, exit 1."""
    desk.log()
    desk.dispatch("register")
    desk.fill("1, 'a'")
    document = yaml.safe_load(desk.file.read_text())
    document["databases"]["away"] = {"connection": {"dsn": "host=127.0.0.1 port=9 dbname=x"}}
    side = {"src": "source", "dst": "target"}[which]
    document["dispatch"]["consumers"]["lonely"] = {**document["dispatch"]["consumers"]["cube"], side: "away"}
    desk.file.write_text(yaml.safe_dump(document))
    assert "cannot be reached" in desk.run("dispatch", "run", "lonely", "--here", code=3).stderr
    assert json.loads(desk.run("dispatch", "run", "--here", "--json", code=1).stdout)["succeeded"] == 1
    assert desk.ask("SELECT id FROM public.t") == [(1,)]
    desk.run("dispatch", "status", "lonely", code=3)


def test_run_here_says_what_is_not_set_up(desk: Desk) -> None:
    """A source without PgQ, a queue that is not there and a consumer that is not registered: exit 1, and what to do."""
    desk.settings(cube=PLAIN, lost={"queue": "nowhere"}, bare={"source": "dst"})
    for name, why in (("cube", "register cube"), ("lost", "--create-queue"), ("bare", "install-pgq")):
        assert why in desk.run("dispatch", "run", name, "--here", code=1).stderr


def test_a_paused_room_is_left_alone(desk: Desk) -> None:
    """While a person has paused the room nothing is applied, which is said, and is no failure."""
    desk.log()
    desk.dispatch("register")
    desk.fill("1, 'a'")
    desk.run("pause", "dispatch", "--reason", "observing")
    assert "paused" in desk.run("dispatch", "run", "--here").stderr
    assert desk.ask("SELECT count(*) FROM public.t") == [(0,)]
    desk.run("resume", "dispatch")
    desk.dispatch("run", "--here")
    assert desk.ask("SELECT count(*) FROM public.t") == [(1,)]


def test_a_consumer_with_run_ticker_needs_no_other_program(desk: Desk) -> None:
    """`run --here` makes the tick that is due, applies it, and rotates."""
    desk.settings(cube={**PLAIN, "run_ticker": True})
    desk.log()
    desk.dispatch("register")
    desk.queue.call("set_queue_config", "ticker_max_count", "1")
    desk.queue.ask("INSERT INTO public.t VALUES (1, 'a')")
    desk.dispatch("run", "--here")
    assert desk.ask("SELECT id FROM public.t") == [(1,)]


def test_run_without_here_has_a_worker_do_it(desk: Desk) -> None:
    """The open batch is enqueued, --wait follows it to its end; without a new tick nothing is to do."""
    desk.log()
    desk.dispatch("register")
    assert desk.dispatch("run") == "nothing to do\n"
    desk.fill("1, 'a'")
    desk.site.worker(HEADRACE_CONFIG=str(desk.file))
    assert desk.json("run", "--wait")["succeeded"] == 1
    assert desk.ask("SELECT id FROM public.t") == [(1,)]


def test_status_gives_pgqs_own_figures(desk: Desk) -> None:
    """Lag, pending events and ticks are those of pgq.get_consumer_info; exit 1 once something needs a person."""
    assert "is not registered" in desk.dispatch("status", code=1)
    desk.log()
    desk.dispatch("register")
    desk.fill("1, 'a'", "2, 'b'")
    document = desk.json("status")
    info = desk.queue.consumer_info("cube")[0]
    found = document["consumers"][0]
    assert {key: found[key] for key in ("pending_events", "last_tick", "current_batch")} == {
        key: info[key] for key in ("pending_events", "last_tick", "current_batch")
    }
    assert document["needs_a_person"] == []
    assert "cube" in desk.dispatch("status", "cube") and found["lag_seconds"] >= 0
    whole = json.loads(desk.run("status", "--json", code=1).stdout)  # no beat runs here
    assert whole["dispatch"][0]["consumer"] == "cube"


def test_failed_events_are_listed_replayed_and_dropped(desk: Desk) -> None:
    """What cannot be applied is exit 1 once, listed with its reason, applied after the repair, or given up."""
    desk.log()
    desk.dispatch("register")
    desk.ask("ALTER TABLE public.t ADD CHECK (v <> 'bad')")
    desk.fill("1, 'good'", "2, 'bad'", "3, 'bad'")
    assert "2 events could not be applied" in desk.run("dispatch", "run", "--here", code=1).stderr
    listed = desk.dispatch("failed")
    assert "23514" in listed and "public.t" in listed
    events = [event["id"] for event in desk.json("failed", "cube", "--limit", "5")["events"]]
    assert len(events) == 2
    assert "could not be applied" in desk.dispatch("status", code=1)
    needs = json.loads(desk.run("status", "--json", code=1).stdout)["needs_a_person"]
    assert len([need for need in needs if "could not be applied" in need]) == 1
    assert "failed again" in desk.run("dispatch", "replay", "--here", code=1).stderr
    desk.ask("ALTER TABLE public.t DROP CONSTRAINT t_v_check")
    assert desk.dispatch("replay", "cube", str(events[0]), "--here") == "1 succeeded\n"
    desk.run("dispatch", "drop", code=2)
    assert desk.dispatch("drop", str(events[1])) == "cube: 1 events given up\n"
    assert desk.json("drop", "--all") == {"consumer": "cube", "dropped": 0}
    assert desk.dispatch("failed") == "cube: none\n"
    assert sorted(event["state"] for event in desk.json("failed", "--all")["events"]) == ["dropped", "replayed"]
    assert desk.ask("SELECT id FROM public.t ORDER BY id") == [(1,), (3,)]
    assert "neither a consumer nor" in desk.run("dispatch", "replay", "cubes", code=2).stderr
    desk.dispatch("status")


def test_a_lost_place_is_found_again(desk: Desk) -> None:
    """A target that went back parks the consumer; rewind brings the source back to it, and nothing is lost."""
    desk.log()
    began = desk.json("register")["tick"]
    desk.fill("1, 'a'")
    desk.dispatch("run", "--here")
    desk.ask("DELETE FROM public.t")
    desk.ask("UPDATE headrace.dispatch_position SET tick = %s", began)
    last = desk.fill("2, 'b'")
    assert "lost its place" in desk.run("dispatch", "run", "--here", code=1).stderr
    assert desk.dispatch("resume") == "cube: goes on\n"
    assert "was not parked" in desk.dispatch("resume", code=1)
    desk.run("dispatch", "run", "--here", code=1)
    assert desk.json("rewind") == {"consumer": "cube", "what": "the source stands there now", "tick": began}
    desk.dispatch("run", "--here")
    assert desk.ask("SELECT id FROM public.t ORDER BY id") == [(1,), (2,)]
    assert f"at tick {began}" in desk.dispatch("rewind", "cube", "--to-tick", str(began))
    assert f"at tick {began}" in desk.dispatch("rewind", "--reset")
    desk.run("dispatch", "rewind", "--reset", "--to-tick", "1", code=2)
    desk.dispatch("run", "--here")
    assert desk.ask("SELECT tick FROM headrace.dispatch_position") == [(last,)]


def test_verify_compares_both_sides(desk: Desk) -> None:
    """Equal or on its way is exit 0; what differs is exit 1, with its keys; a table of the settings may be named."""
    desk.log()
    desk.dispatch("register")
    desk.fill("1, 'a'", "2, 'b'", "3, 'c'")
    assert "pending" in desk.dispatch("verify")
    desk.dispatch("run", "--here")
    assert "equal" in desk.dispatch("verify", "cube", "public.t")
    desk.ask("DELETE FROM public.t WHERE id = 2")
    desk.ask("UPDATE public.t SET v = 'other' WHERE id = 3")
    printed = desk.dispatch("verify", code=1)
    assert 'missing: ["2"]' in printed and 'different: ["3"]' in printed
    document = desk.json("verify", "--limit", "5", code=1)
    assert [(one["source"], one["verdict"], one["missing"]) for one in document["tables"]] == [
        ("public.t", "different", ['["2"]'])
    ]
    desk.run("dispatch", "verify", "public.nowhere", code=1)


def test_partitions_are_listed_printed_and_made(desk: Desk) -> None:
    """Native partitions: --print shows what would be made, --here makes it, the list has it."""
    desk.settings(cube={"partition": {"kind": "native", "by": "field:at", "premake": 2}})
    desk.queue.logged("public.t", "id integer, at timestamptz, PRIMARY KEY (id, at)")
    desk.ask("CREATE TABLE public.t (id integer, at timestamptz, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)")
    desk.dispatch("register")
    assert desk.dispatch("partitions") == "public.t (cube): no partition\n"
    printed = desk.dispatch("partitions", "--print")
    assert printed.count("-- make public.t_") == 3
    assert desk.json("partitions", "--here")["runs"][0]["counters"]["partitions"] >= 3
    assert desk.dispatch("partitions", "cube", "--print") == "-- nothing to do\n"
    tables = desk.json("partitions")["tables"]
    assert (tables[0]["parent"], len([one for one in tables[0]["partitions"] if one["kind"] == "native"])) == (
        "public.t",
        3,
    )
    assert "attached" in desk.dispatch("partitions")
    desk.run("dispatch", "partitions", "--print", "--here", code=2)


def test_the_old_file_becomes_yaml(desk: Desk, tmp_path: Path) -> None:
    """import prints settings that load; as JSON they have no password."""
    file = tmp_path / "cube.ini"
    file.write_text(
        "[cube_dispatcher]\njob_name = cube\nsrc_db = dbname=a password=hunter2\ndst_db = dbname=b\n"
        "pgq_queue_name = q\nmode = keep_all\n"
    )
    printed = yaml.safe_load(desk.dispatch("import", str(file)))
    assert printed["dispatch"]["consumers"]["cube"]["mode"] == "keep_all"
    assert printed["databases"]["cube.src"]["connection"]["dsn"] == "dbname=a password=hunter2"
    text = desk.dispatch("import", str(file), "--json")
    assert "hunter2" not in text
    assert json.loads(text)["settings"]["databases"]["cube.dst"]["connection"]["dsn"] == "dbname=b"
    assert "cannot be read" in desk.run("dispatch", "import", str(tmp_path / "nowhere.ini"), code=2).stderr


def test_db_and_validate_know_the_room(desk: Desk) -> None:
    """`db migrate` makes our tables at the target, `db status` lists them, `validate` names what is not registered."""
    assert ("dst", "missing") in _schemas(desk)
    desk.run("db", "migrate")
    assert ("dst", "applied") in _schemas(desk) and ("dst", "missing") not in _schemas(desk)
    assert "cube is not registered" in desk.run("validate", code=2).stderr
    desk.dispatch("register")
    desk.run("validate")


def _schemas(desk: Desk) -> set[tuple[str, str]]:
    done = desk.site.run("--config", str(desk.file), "db", "status", "--json", timeout=60)
    return {(row["database"], row["state"]) for row in json.loads(done.stdout)["migrations"]}
