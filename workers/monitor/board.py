"""What the pages and the metrics show: what control and telemetry database, broker and rooms answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from celery import Celery

from workers import database, queues, status
from workers.app import app, queue_depths
from workers.dispatch import api as dispatch
from workers.monitor import archive, archive_metrics, consumers, rewrites
from workers.monitor.answers import Answer, Question
from workers.monitor.job_metrics import MEASURED
from workers.monitor.jobs import FAILURES, SHOWN
from workers.postprocessing import api as postprocessing
from workers.products import api as products
from workers.repack import api as repack
from workers.settings import Settings
from workers.sql_files import queries
from workers.telemetry import api as telemetry

SQL = queries("monitor")

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look. An answer without value means that its server is down or slow; the others count all the same."""

    control: Answer[dict[str, Any]] = field(default_factory=Answer)
    telemetry: Answer[dict[str, Any]] = field(default_factory=Answer)
    queues: Answer[dict[str, int]] = field(default_factory=Answer)
    postprocessing: dict[str, Answer[dict[str, Any]]] = field(default_factory=dict)  # by database
    dispatch: dict[tuple[str, str], Answer[dict[str, Any]]] = field(default_factory=dict)  # by (consumer, queue)
    repack: dict[str, Answer[dict[str, Any]]] = field(default_factory=dict)  # by database
    products: Answer[dict[str, Any]] = field(default_factory=Answer)

    def servers(self) -> dict[str, str | None]:
        """Per server why it does not answer, None where it does."""
        return {
            "postgresql": self.control.error,
            "telemetry": self.telemetry.error,
            "broker": self.queues.error,
        }


class Board:
    """The questions of one Flower process: four, some for each database, and one for each consumer and each graph."""

    def __init__(self, conf: Settings) -> None:
        self._conf = conf
        self._names: list[str] = [queue.name for queue in app.conf.task_queues]
        self._control = Question("control", lambda: status.control_status(conf.target()))
        self._telemetry = Question("telemetry", lambda: _telemetry_status(conf))
        self._broker = Question("broker", lambda: queue_depths(self._names))
        self._jobs = {name: _jobs_question(conf, name) for name in postprocessing.names(conf)}
        # One for each, not one for each database: a source that is dead hides no consumer of another one.
        self._consumers = {
            (name, conf.dispatch.consumers[name].queue): _consumer_question(conf, name) for name in dispatch.names(conf)
        }
        self._rewrites = {name: _rewrites_question(conf, name) for name in repack.databases(conf)}
        self._products = Question("products", lambda: _products_status(conf))
        self._graphs: dict[str, Question[str]] = {}  # by mission, those that somebody has looked at

    async def look(self) -> Snapshot:
        """Ask what is not known freshly. Takes at most six seconds; trouble is in the answers, never raised."""
        (control, depths), room, jobs, of_consumers, of_tables, of_products = await asyncio.gather(
            self._control_then_broker(),
            self._telemetry.answer(),
            _answers(self._jobs),
            _answers(self._consumers),
            self.rewrites(),
            self.products(),
        )
        return Snapshot(
            control=control,
            telemetry=room,
            queues=depths,
            postprocessing=jobs,
            dispatch=of_consumers,
            repack=of_tables,
            products=of_products,
        )

    async def rewrites(self) -> dict[str, Answer[dict[str, Any]]]:
        """How the rewrites of each database stand, and nothing else. Takes at most three seconds."""
        return await _answers(self._rewrites)

    async def products(self) -> Answer[dict[str, Any]]:
        """How derived products stand, and nothing else. Takes at most three seconds."""
        return await self._products.answer()

    async def graph(self, mission: str) -> Answer[str]:
        """A mission's graph as SVG; neither value nor error if there is no such mission. Takes at most six seconds."""
        known = await self.products()
        if known.value is None:
            return Answer(error=known.error)
        # Only for what is there: a question has a thread of its own.
        if mission not in {row["mission"] for row in known.value["missions"]}:
            return Answer()
        if mission not in self._graphs:
            self._graphs[mission] = Question("graph", lambda: _graph(self._conf, mission))
        return await self._graphs[mission].answer()

    async def _control_then_broker(self) -> tuple[Answer[dict[str, Any]], Answer[dict[str, int]]]:
        control = await self._control.answer()
        if control.value is not None:
            # A host that joined a moment ago: its queues are on Flower's own pages from now on, too.
            self._names = queues.all_names([host["name"] for host in control.value["hosts"]])
            register_queues(app, self._names)
        return control, await self._broker.answer()


def register_queues(application: Celery, names: Sequence[str]) -> None:
    """Make these the queues that Flower shows and that a message may be sent to from it."""
    known = {queue.name for queue in application.conf.task_queues}
    if known != set(names):
        application.conf.task_queues = [queues.queue(name) for name in names]
        application.amqp.queues = application.conf.task_queues


def _jobs_question(conf: Settings, name: str) -> Question[dict[str, Any]]:
    return Question(
        f"jobs-{name}",
        lambda: postprocessing.overview(conf, name, shown=SHOWN, measured=MEASURED, failures=FAILURES),
    )


def _consumer_question(conf: Settings, name: str) -> Question[dict[str, Any]]:
    return Question(f"consumer-{name}", lambda: _consumer_status(conf, name))


def _consumer_status(conf: Settings, name: str) -> dict[str, Any]:
    found = dispatch.status(conf, name)
    # Not asked for without any: it makes our tables at a target that has none yet, which a look must not.
    failures = dispatch.failed(conf, name, limit=consumers.FAILURES) if found["failed_events"] else []
    return found | {"failures": failures}


def _rewrites_question(conf: Settings, name: str) -> Question[dict[str, Any]]:
    return Question(f"rewrites-{name}", lambda: _rewrites_status(conf, name))


def _rewrites_status(conf: Settings, name: str) -> dict[str, Any]:
    found = repack.status_of(conf, name)
    if found["set_up"]:
        # What is remembered: the room's own question may look into the tables, which takes minutes.
        with database.connection(conf.target(name), purpose="monitor", autocommit=True) as conn:
            about = {"since": rewrites.LOOKED_AT, "limit": rewrites.ESTIMATES}
            found["estimates"] = SQL["latest_estimates"].records(conn, about)
    return found


def _products_status(conf: Settings) -> dict[str, Any]:
    found = products.status_of(conf)
    if found["set_up"]:
        with database.connection(products.target(conf), purpose="monitor", autocommit=True) as conn:
            about = {"longest": archive.LONGEST_TEXT}
            found["builds"] = SQL["newest_product_builds"].records(conn, about | {"limit": archive.BUILDS})
            found["quarantine"] = SQL["newest_quarantined"].records(conn, about | {"limit": archive.QUARANTINED})
            found["outcomes"] = dict(SQL["builds_of_the_last_hour"].rows(conn, {"limit": archive_metrics.COUNTED}))
    return found


def _graph(conf: Settings, mission: str) -> str:
    # What was last found out: to plan anew may take seconds, and everybody who looks at the page would ask for it.
    with database.connection(products.target(conf), purpose="monitor", autocommit=True) as conn:
        number = products.mission(conn, mission).id
        rows = SQL["outputs_by_process"].records(conn, {"mission": number})
        drawn = products.graph(conn, number)
    return products.graph_as_svg(drawn, {row["name"]: {"failed": row["failed"], "due": row["due"]} for row in rows})


async def _answers(questions: Mapping[K, Question[T]]) -> dict[K, Answer[T]]:
    found = await asyncio.gather(*(question.answer() for question in questions.values()))
    return dict(zip(questions, found, strict=True))


def _telemetry_status(conf: Settings) -> dict[str, Any]:
    found = telemetry.status(conf)
    if found["set_up"]:
        work = conf.target(conf.telemetry.database)
        with database.connection(work, purpose="monitor", autocommit=True) as conn:
            found["dead_letter_count"] = SQL["count_dead_letters"].value(conn)
    return found
