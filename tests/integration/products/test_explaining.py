"""Why a file was built, or an output is not; what waits for what; what a new code would cause."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2
import pytest

from tests.integration.products.rows import DAY, Rows
from workers import database
from workers.errors import PermanentFailure
from workers.messages import IngestIncoming
from workers.products import estimating, explaining, identifying, plan_store, planning, room
from workers.products.explaining import Explanation
from workers.products.plan_store import Mission
from workers.products.versions import Version
from workers.settings import Settings

NEXT = DAY + timedelta(days=1)


class Graph:
    """l0 delivered, l1 made of each file, l2 of each day; rows only, unless a test builds."""

    def __init__(self, rows: Rows, root: Path) -> None:
        self.rows = rows
        rows.mission(root)
        self.l0, self.l1, self.l2 = (rows.product(f"l{level}", level=level) for level in range(3))
        self.one = rows.process("l0_l1", self.l1, [self.l0], timebase="FILE", attempts=1)
        self.two = rows.process("l1_l2", self.l2, [self.l1], rank=1)
        self.codes = rows.code(self.one), rows.code(self.two)
        rows.conn.commit()

    @property
    def mission(self) -> Mission:
        """The mission as rows say."""
        return plan_store.mission(self.rows.conn, "demo")

    def chain(self) -> tuple[int, int, int]:
        """A day of it, as builds would have left it: the ids of its files."""
        rows = self.rows
        raw = rows.file(self.l0)
        made = [raw]
        for process, code, product in ((self.one, self.codes[0], self.l1), (self.two, self.codes[1], self.l2)):
            build = rows.build(process, code=code, inputs=[made[-1]], reason="NEW_INPUT", cpu_seconds=1800.0)
            made.append(rows.file(product, inputs=[made[-1]], code=code, build=build))
        return made[0], made[1], made[2]

    def output(self, product: str = "l2", *, day: str | None = None, key: str | None = None) -> Explanation:
        """The only explanation of an output; its JSON can be written."""
        self.rows.conn.commit()
        asked = datetime.strptime(day, "%Y-%m-%d").date() if day else DAY  # noqa: DTZ007
        (found,) = explaining.explain_output(self.rows.conn, self.mission, product, asked, key)
        json.dumps(found.document())
        self.rows.conn.rollback()
        return found

    def change(self, statement: str, *parameters: object) -> None:
        """Change rows, and keep that."""
        self.rows.ask(statement, *parameters)
        self.rows.conn.commit()


@pytest.fixture
def graph(conf: Settings, tmp_path: Path) -> Iterator[Graph]:
    """The mission without files."""
    with closing(database.connect(conf.target(), purpose="tests")) as conn:
        yield Graph(Rows(conn), tmp_path / "root")
    identifying.forget()
    room.forget()


def test_an_output_that_is_as_it_should_be_says_when_it_was_built_of_what(graph: Graph) -> None:
    """Build, host, code and inputs are in the sentence and in the facts."""
    graph.chain()
    found = graph.output()
    assert found.state == "up_to_date"
    assert found.sentence == (
        "l2 2027-03-01 is up to date: 2027-03-02 12:00 on here by l1_l2 1.0.0 from l1_20270301_v1.0.0.dat; NEW_INPUT"
    )
    assert (found.facts["code"], [one["filename"] for one in found.facts["inputs"]]) == (
        "1.0.0", ["l1_20270301_v1.0.0.dat"],
    )  # fmt: skip


def test_what_waits_leads_to_the_file_that_was_not_delivered(graph: Graph) -> None:
    """l2 waits for l1, which waits for l0, which nobody makes."""
    found = graph.output()
    assert (found.state, found.sentence) == ("waiting", "l2 2027-03-01 is waiting: l1 2027-03-01")
    assert [one.sentence for one in found.causes] == ["l1 2027-03-01 is waiting: l0 2027-03-01"]
    assert [one.sentence for one in found.roots()] == ["l0 2027-03-01 was not delivered: no process makes it"]


def test_a_file_in_quarantine_may_be_the_one_that_is_missing(graph: Graph) -> None:
    """One of that day is told with its reason and what to do; one of another day is not."""
    for day, candidates in (("20270301", ["l0"]), ("20270302", ["l0"]), ("20270301", ["other"])):
        graph.rows.insert(
            "product_quarantine", mission_id=graph.rows.mission_id, host="here", filename=f"l0_{day}_v1.dat",
            arrived_as="a", kept_as="b", state="held", reason="truncated", message="0 bytes", candidates=candidates,
        )  # fmt: skip
    (root,) = graph.output().roots()
    assert (root.state, root.sentence) == (
        "quarantined",
        "l0_20270301_v1.dat is in quarantine (truncated): 0 bytes; `headrace products quarantine retry 1` after a fix",
    )


def test_a_file_that_has_not_settled_is_seen_arriving(graph: Graph) -> None:
    """It lies in the incoming folder of the mission."""
    path = f"{graph.mission.incoming}/l0_20270301_v1.0.0.dat"
    graph.change("INSERT INTO headrace.product_arrival (host, path, bytes, changed_ns) VALUES ('here', %s, 1, 1)", path)
    (root,) = graph.output().roots()
    assert (root.state, root.facts["path"]) == ("arriving", path)


def test_a_required_input_that_is_missing_beside_one_that_is_there(graph: Graph) -> None:
    """Its windows are told; `waiting` lists the output, too."""
    extra = graph.rows.product("cal", level=0)
    graph.change(
        "INSERT INTO headrace.process_input (process_id, position, product_id, yesterday) VALUES (%s, 1, %s, 2)",
        graph.two, extra,
    )  # fmt: skip
    graph.rows.file(graph.l1, inputs=[], code=graph.codes[0])
    found = graph.output()
    assert found.sentence == "l2 2027-03-01 is waiting: cal 2027-03-01 (2027-02-27 to 2027-03-01 would do)"
    assert found.facts["missing"] == [{"product": "cal", "from": "2027-02-27", "until": "2027-03-01"}]
    listed = explaining.waiting(graph.rows.conn, graph.mission, DAY, NEXT)
    assert [one.sentence for one in listed] == ["l2 2027-03-01 is waiting: cal 2027-03-01"]


def test_neighbouring_days_alone_do_not_make_an_output(graph: Graph) -> None:
    """The window of the next day reaches the file, yet no input covers the day itself."""
    graph.change("UPDATE headrace.process_input SET yesterday = 1 WHERE process_id = %s", graph.two)
    graph.rows.file(graph.l1, inputs=[], code=graph.codes[0])
    found = graph.output(day=str(NEXT))
    assert (found.state, "neighbouring days alone" in found.sentence) == ("no_input", True)


def test_a_failed_code_is_the_root_of_what_waits_for_it(
    graph: Graph, work: Callable[..., list[str]], conf: Settings
) -> None:
    """Kind, problem, attempts and the end of stderr are told, and what to do."""
    (graph.rows.codes() / "copy.sh").write_text("#!/bin/sh\necho no calibration >&2\nexit 3\n")
    folder = Path(graph.mission.incoming)
    (folder / "l0_20270301_v1.0.0.dat").write_text("raw\n")
    rules = conf.products.model_copy(update={"settle_seconds": 0.0, "lanes": 1})
    graph.rows.conn.commit()
    work(IngestIncoming(host="here", mission="demo"), settings=conf.model_copy(update={"products": rules}))
    found = graph.output()
    (root,) = found.roots()
    assert (found.state, root.state, root.product) == ("waiting", "failed", "l1")
    assert root.sentence == (
        "l1 2027-03-01 was given up after 1 attempt (exit: copy.sh ended with exit status 3: no calibration);"
        " correct the code or its input, then `headrace products retry l1 --day 2027-03-01`"
    )
    assert (root.facts["exit_status"], root.facts["stderr"]) == (3, "no calibration\n")


def test_an_output_without_a_code_names_those_that_there_are(graph: Graph) -> None:
    """None is valid for the day; or one is, but held."""
    graph.rows.file(graph.l1, inputs=[], code=graph.codes[0])
    graph.change("UPDATE headrace.code SET valid_from = '2028-01-01' WHERE id = %s", graph.codes[1])
    found = graph.output()
    assert (found.state, found.facts["codes"]) == ("no_code", ["1.0.0 (active, 2028-01-01 to the end)"])
    graph.rows.code(graph.two, "1.1.0", state="held")
    found = graph.output()
    assert (found.state, "`headrace products approve l1_l2 1.1.0`" in found.sentence) == ("held", True)


def test_a_held_code_is_told_beside_what_is_up_to_date(graph: Graph) -> None:
    """The output stands; a person may have it built by the newer one."""
    graph.chain()
    graph.rows.code(graph.two, "1.1.0", state="held")
    found = graph.output()
    assert (found.state, found.facts["held"]) == ("up_to_date", ["l1_l2 1.1.0"])


def test_a_retired_process_makes_nothing(graph: Graph) -> None:
    """That is why there is no output."""
    graph.change("UPDATE headrace.process SET is_active = false WHERE id = %s", graph.two)
    found = graph.output()
    assert (found.state, found.process) == ("retired", "l1_l2")


def test_an_output_that_is_due_says_since_when_and_what_is_before_it(graph: Graph) -> None:
    """Stale, due, or being built; without a lane that is why."""
    graph.rows.file(graph.l0)
    found = graph.output("l1")
    assert (found.state, found.facts["reason"], "the next look" in found.sentence) == ("due", "NEW_INPUT", True)
    steps = planning.plan(graph.rows.conn, graph.mission, products=["l1"])
    plan_store.mark_due(graph.rows.conn, planning.to_mark(steps))
    found = graph.output("l1")
    assert (found.state, found.facts["ahead"], "start one" in found.sentence) == ("due", 0, True)
    graph.change("INSERT INTO headrace.product_lane (host, lane) VALUES ('here', 1)")
    assert "0 are built before it, 0 are being built on 1 lanes" in graph.output("l1").sentence
    slot = graph.rows.ask("SELECT id FROM headrace.product_slot")[0][0]
    graph.rows.build(graph.one, slot_id=slot, state="running", finished_at=None)
    found = graph.output("l1")
    assert (found.state, found.facts["host"]) == ("building", "here")


def test_what_needs_an_output_that_is_due_waits_for_it(graph: Graph) -> None:
    """The cause is why the other one is due."""
    _, middle, _ = graph.chain()
    graph.change("UPDATE headrace.product_file SET state = 'corrupt' WHERE id = %s", middle)
    plan_store.mark_due(graph.rows.conn, planning.to_mark(planning.plan(graph.rows.conn, graph.mission)))
    found = graph.output()
    assert (found.state, found.sentence) == ("waiting", "l2 2027-03-01 waits for l1 2027-03-01 to be built first")
    assert [(one.state, one.facts["reason"]) for one in found.roots()] == [("due", "CORRUPT_OUTPUT")]


def test_an_output_that_was_delivered_stands(graph: Graph) -> None:
    """Until an input comes that is newer."""
    graph.rows.file(graph.l0)
    graph.rows.file(graph.l1)
    assert graph.output("l1").state == "delivered"
    graph.rows.file(graph.l0, version="1.1.0")
    assert graph.output("l1").facts["reason"] == "NEWER_INPUT"


def test_a_process_that_reads_nothing_is_to_be_asked(graph: Graph) -> None:
    """Nothing else could tell its days."""
    graph.rows.code(graph.rows.process("simulate", graph.rows.product("model", level=3)))
    found = graph.output("model")
    assert (found.state, "`headrace products backfill`" in found.sentence) == ("not_asked", True)


def test_a_day_of_a_month_is_explained_by_the_month(graph: Graph) -> None:
    """Its output has the first of the month as its day."""
    month = graph.rows.process("l2_l3", graph.rows.product("l3", level=3, covers="month"), [graph.l2],
                               timebase="MONTHLY", rank=2)  # fmt: skip
    graph.rows.code(month)
    graph.chain()
    found = graph.output("l3", day="2027-03-17")
    assert (found.state, str(found.day)) == ("due", "2027-03-01")


def test_a_missing_file_of_a_product_that_nobody_makes_is_the_root(graph: Graph) -> None:
    """Its row is there, the file is not."""
    raw = graph.rows.file(graph.l0, state="missing", content=None)
    (root,) = graph.output().roots()
    assert (root.state, root.facts["file"], raw) == ("damaged", "l0_20270301_v1.0.0.dat", 1)


def test_a_file_tells_why_it_was_built_and_what_was_built_from_it(graph: Graph) -> None:
    """With the code, its inputs, its children; and whether it is stale."""
    _, middle, top = graph.chain()
    found = explaining.explain_file(graph.rows.conn, graph.mission, middle)
    assert found.sentence == (
        "l1_20270301_v1.0.0.dat was built: 2027-03-02 12:00 on here by l0_l1 1.0.0 from l0_20270301_v1.0.0.dat;"
        " NEW_INPUT; 1 file was built from it"
    )
    assert (found.state, [one["id"] for one in found.facts["children"]]) == ("newest", [top])
    graph.rows.conn.rollback()
    _, middle, _ = graph.chain()
    graph.rows.file(graph.l0, version="1.0.1")
    stale = explaining.explain_file(graph.rows.conn, graph.mission, middle)
    assert stale.facts["stale"] == "NEWER_INPUT"
    assert [one.state for one in stale.causes] == ["due"]


def test_a_file_that_came_after_a_higher_version_was_superseded_on_arrival(graph: Graph) -> None:
    """Nothing is built from it; one that was newest for a while is merely superseded."""
    early = graph.rows.file(graph.l0, version="1.0.0")
    graph.rows.file(graph.l0, version="1.1.0")
    late = graph.rows.file(graph.l0, version="1.0.5")
    explained = [explaining.explain_file(graph.rows.conn, graph.mission, file) for file in (early, late)]
    assert [one.state for one in explained] == ["superseded", "superseded"]
    assert [one.facts["superseded_on_arrival"] for one in explained] == [False, True]
    assert "it is superseded by l0_20270301_v1.1.0.dat and was so when it came" in explained[1].sentence


def test_the_impact_of_a_code_is_what_it_and_its_descendants_would_build_again(graph: Graph) -> None:
    """Half an hour of cpu each; a process without history is named."""
    graph.chain()
    top = graph.rows.process("l2_l3", graph.rows.product("l3", level=3), [graph.l2], rank=2)
    code = graph.rows.code(top)
    graph.rows.file(graph.rows.ask("SELECT max(id) FROM headrace.product")[0][0], inputs=[3], code=code)
    held = graph.rows.code(graph.one, "1.1.0", state="held")
    found = estimating.impact(graph.rows.conn, graph.mission, held)
    assert [(one.process, one.is_direct, one.outputs) for one in found.rebuilt] == [
        ("l0_l1", True, 1), ("l1_l2", False, 1), ("l2_l3", False, 1),
    ]  # fmt: skip
    assert (found.outputs, found.cpu_hours, found.unknown) == (3, 1.0, ("l2_l3",))
    assert estimating.impact(graph.rows.conn, graph.mission, ("l0_l1", Version(1, 1, 0))) == found
    with pytest.raises(PermanentFailure, match=r"demo has no code l0_l1 9.0.0"):
        estimating.impact(graph.rows.conn, graph.mission, ("l0_l1", Version(9, 0, 0)))


def test_a_code_for_some_days_has_an_impact_on_these_only(graph: Graph) -> None:
    """The files of other days stay as they are."""
    graph.chain()
    held = graph.rows.code(graph.one, "1.1.0", state="held", valid_from=NEXT)
    assert estimating.impact(graph.rows.conn, graph.mission, held).rebuilt == ()


def test_an_explanation_writes_nothing(graph: Graph) -> None:
    """Its transaction cannot."""
    explaining.explain_output(graph.rows.conn, graph.mission, "l2", DAY)
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        graph.rows.file(graph.l0, content=None, sha256="0" * 64, registered_at=datetime.now(UTC))


def test_an_output_stands_though_its_inputs_are_gone(graph: Graph) -> None:
    """What became of them is the cause; the file says the same of itself."""
    raw, middle, top = graph.chain()
    graph.change("UPDATE headrace.product_file SET state = 'missing' WHERE id IN (%s, %s)", raw, middle)
    found = graph.output()
    assert (found.state, "it stands" in found.sentence) == ("up_to_date", True)
    assert {one.facts["file"] for one in found.roots()} == {f"{name}_20270301_v1.0.0.dat" for name in ("l0", "l1")}
    assert explaining.explain_file(graph.rows.conn, graph.mission, top).state == "newest"


def test_an_unknown_name_is_refused_with_a_near_one(graph: Graph) -> None:
    """Products and processes without output can be asked about."""
    with pytest.raises(PermanentFailure, match=r"nothing in demo is called 'l22'; did you mean 'l2'\?"):
        explaining.explain_output(graph.rows.conn, graph.mission, "l22", DAY)
