"""What a demonstration shows: a live table on a terminal, plain lines everywhere else, and the summary."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from producers.cli.context import State
from producers.cli.demo_dispatch import SOURCE, TARGET, EventsOutcome
from producers.cli.demo_jobs import JobOutcome
from producers.cli.demo_play import Outcome, Progress, Step
from producers.cli.demo_products import NAME, ProductsOutcome
from producers.cli.demo_repack import QUALIFIED, RewriteOutcome
from workers.repack import api
from workers.services.endpoints import Endpoints

LINE_SECONDS = 5.0  # between two plain lines of progress


class Show:
    """Steps and progress as they come; a context manager, because a live table must be ended."""

    def __init__(self, state: State, folder: Path) -> None:
        self._state, self._folder = state, folder
        self._steps: list[Step] = []
        self._notes: list[str] = []
        self._progress: Progress | None = None
        self._next_line = 0.0
        on_terminal = sys.stdout.isatty() and not state.json
        self._live = Live(console=Console(highlight=False), refresh_per_second=8) if on_terminal else None

    def __enter__(self) -> Show:
        if self._live is not None:
            self._live.start()
        else:
            self._state.say(f"starting everything in {self._folder}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, step: Step) -> None:
        """One more part is ready."""
        self._steps.append(step)
        if self._live is not None:
            self._live.update(self._picture())
        else:
            self._state.say(f"{step.name + ' is ready':<20} {step.seconds:6.1f} s")

    def note(self, text: str) -> None:
        """Something that is worth a line when it happens."""
        self._notes.append(text)
        if self._live is not None:
            self._live.update(self._picture())
        else:
            self._state.say(text)

    def progress(self, progress: Progress) -> None:
        """How far it is now."""
        self._progress = progress
        if self._live is not None:
            self._live.update(self._picture())
        elif progress.seconds >= self._next_line:
            self._next_line = progress.seconds + LINE_SECONDS
            written, read = progress.all_written, progress.all_read
            self._state.say(
                f"{progress.seconds:4.0f} s: written {written.files} files, {written.records:,} records; read "
                f"{read.files} files, {read.records:,} records; {_conditions(progress)}"
            )

    def outcome(self, outcome: Outcome, endpoints: Endpoints, *, kept: bool) -> None:
        """The summary on stdout: one JSON document, or lines for a person."""
        if self._live is not None:
            self._live.stop()
        if self._state.json:
            self._state.emit(self._document(outcome, endpoints))
            return
        progress, total = outcome.progress, outcome.progress.all_written
        if self._live is None:
            Console(highlight=False, soft_wrap=True).print(_table(progress))
        out = self._state.out
        out("")
        out(f"The instrument wrote {total.files} files with {total.records:,} records.")
        if outcome.arrived:
            out(f"The archive has {outcome.rows:,} rows: every record arrived, none twice, no dead letters.")
        else:
            out(f"The archive has {outcome.rows:,} rows, and {progress.lag['dead']} dead letters: that is WRONG.")
        out(
            f"{_rate(outcome):,.0f} records/s from the first write to the last row; from a file's last change to its "
            f"commit: half within {_seconds(progress.lag['p50'])}, 99 % within {_seconds(progress.lag['p99'])}."
        )
        out("")
        Console(highlight=False, soft_wrap=True).print(_jobs_table(outcome.jobs))
        out("")
        for about in (
            _about_jobs(outcome.jobs), _about_events(outcome.events), _about_rewrite(outcome.rewrite),
            _about_products(outcome.products),
        ):  # fmt: skip
            for line in about:
                out(line)
            out("")
        for line in self._where_to_look(endpoints) if kept else _next_steps() if outcome.good else []:
            out(line)
        if not kept:
            self._state.say("stopping everything")

    def _where_to_look(self, endpoints: Endpoints) -> list[str]:
        passwords = self._folder / "credentials.json"
        config = self._folder / "headrace.yaml"
        return [
            "Everything stays up until Ctrl-C:",
            f"  Flower   {endpoints['flower_url']}, user {endpoints['flower_user']}, "
            f"password: flower_password in {passwords}",
            f"  status   headrace --config {config} status",
            f"  rows     psql {_without_password(endpoints['control_dsn'])}, "
            f"password: postgres_headrace_password in {passwords}",
            "  then     SELECT device, ec, count(*) FROM telem GROUP BY device, ec;",
            f"  jobs     headrace --config {config} postprocessing list",
            f"  events   SELECT * FROM {TARGET}; headrace --config {config} dispatch status",
            f"  rewrite  headrace --config {config} repack status",
            f"  products headrace --config {config} products status; files: {self._folder / 'mission'}",
            f"  files    {self._folder / 'instrument'}; logs: {self._folder / 'logs'}",
            "  more     README.md",
        ]

    def _document(self, outcome: Outcome, endpoints: Endpoints) -> dict[str, Any]:
        progress = outcome.progress
        return {
            "succeeded": outcome.good,
            "files_written": progress.all_written.files,
            "files_read": progress.all_read.files,
            "records_written": progress.all_written.records,
            "rows": outcome.rows,
            "dead_letters": progress.lag["dead"],
            "records_per_second": round(_rate(outcome), 1),
            "lag_seconds": {"p50": progress.lag["p50"], "p99": progress.lag["p99"]},
            "forms": {
                form: {"files": count.files, "records": count.records, "bytes": count.bytes}
                for form, count in progress.written.items()
            },
            "jobs": {line.job.name: _job_document(line) for line in outcome.jobs},
            "events": asdict(outcome.events) | {"problem": outcome.events.problem},
            "rewrite": asdict(outcome.rewrite) | {"problem": outcome.rewrite.problem},
            "products": asdict(outcome.products) | {"problem": outcome.products.problem},
            "steps": {step.name: round(step.seconds, 2) for step in self._steps},
            "data_dir": self._folder,
            "flower_url": endpoints["flower_url"],
            "flower_user": endpoints["flower_user"],
        }

    def _picture(self) -> RenderableType:
        steps = Table.grid(padding=(0, 2))
        steps.add_row("", f"everything lives in {self._folder}")
        for step in self._steps:
            steps.add_row(Text("✓", style="green"), step.name, f"{step.seconds:.1f} s")
        parts: list[RenderableType] = [steps, *map(Text, self._notes)]
        if self._progress is not None:
            conditions = f"{self._progress.seconds:.0f} s: {_conditions(self._progress)}"
            parts += ["", _table(self._progress), conditions]
        return Group(*parts)


def _table(progress: Progress) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(("form", "files written", "read", "records written", "in the archive")):
        table.add_column(title, justify="right" if number else "left")
    for form, written in progress.written.items():
        read = progress.read[form]
        table.add_row(form, *(f"{n:,}" for n in (written.files, read.files, written.records, read.records)))
    return table


def _jobs_table(jobs: Sequence[JobOutcome]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("job", "schedule", "runs", "ok", "failed", "skipped", "last"):
        table.add_column(title, justify="left" if title in ("job", "schedule", "last") else "right")
    for one in jobs:
        counts = (one.runs, one.succeeded, one.failed, one.skipped)
        table.add_row(one.job.name, one.job.schedule, *(f"{n:,}" for n in counts), Text(one.last))
    return table


def _about_jobs(jobs: Sequence[JobOutcome]) -> list[str]:
    problems = [f"The job {one.job.name} {one.problem}: that is WRONG." for one in jobs if one.problem]
    if problems:
        return problems
    runs, skipped = sum(one.runs for one in jobs), sum(one.skipped for one in jobs)
    passed_over = f" ({skipped} were skipped, with the reason)" if skipped else ""
    return [
        f"{len(jobs)} scheduled procedures ran {runs} times: each slot at most once, none without record{passed_over}.",
        *(
            f"{one.job.name} failed {_times(one.failed)}, on purpose; it was retried {_times(one.retries)}, and works."
            for one in jobs
            if one.job.failures
        ),
    ]


def _about_events(events: EventsOutcome) -> list[str]:
    if events.missing is not None:
        return [f"No change events were dispatched: {events.missing}."]
    if events.problem is not None or events.poison is None:
        return [f"Change events: {events.problem}; that is WRONG."]
    return [
        f"{events.applied} change events of {SOURCE} went through PgQ into {TARGET}, the last ones within "
        f"{_seconds(events.slowest_seconds)}; it has {len(events.partitions)} day partitions, "
        f"{events.made_ahead} of them made ahead.",
        f"One failed, on purpose ({events.poison.error}); the column was mended, the event replayed; 0 failed now.",
        f"Source and target agree: {events.rows} rows.",
    ]


def _about_rewrite(rewrite: RewriteOutcome) -> list[str]:
    if rewrite.problem is not None:
        return [f"Rewrite: {rewrite.problem}; that is WRONG."]
    return [
        f"{QUALIFIED} was bloated, on purpose: workers rewrote it while rows of it were changed; "
        f"{api.size(rewrite.bytes_before)} before, {api.size(rewrite.bytes_after)} after.",
        f"It was locked for {_seconds(rewrite.hold_seconds)}; {rewrite.replayed:,} changes were replayed into the "
        f"copy. No transaction of the writer took longer than {_seconds(rewrite.slowest_seconds)}.",
        f"No change was lost: all {rewrite.rows:,} rows agree with the ledger of {rewrite.changes:,} changes.",
        f"Still there: {', '.join(rewrite.attached)}.",
    ]


def _about_products(products: ProductsOutcome) -> list[str]:
    if products.problem is not None:
        return [f"Mission {NAME}: {products.problem}; that is WRONG."]
    return [
        f"Mission {NAME}: {products.came_in} files came in, {products.built} outputs were built, {products.repaired} "
        f"of them to repair what was damaged on purpose; {products.quarantined} file is in quarantine, on purpose.",
        f"All {products.verified} files verified: each output is there once, as the database has it, and is what its "
        "code makes of its newest inputs.",
    ]


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _job_document(one: JobOutcome) -> dict[str, Any]:
    return {
        "every_seconds": one.job.every.total_seconds(),
        "runs": one.runs,
        "succeeded": one.succeeded,
        "failed": one.failed,
        "skipped": one.skipped,
        "retries": one.retries,
        "missing_slots": one.missing,
        "last": one.last,
        "problem": one.problem,
    }


def _conditions(progress: Progress) -> str:
    lag, events = progress.lag, progress.events
    failed = f", {events.failed} failed" if events.failed else ""
    about_events = f"; events: {events.applied} applied{failed}, lag {_seconds(events.lag_seconds)}"
    return (
        f"{progress.rate:,.0f} records/s, lag p50 {_seconds(lag['p50'])} p99 {_seconds(lag['p99'])}, "
        f"{progress.waiting} messages waiting; jobs: {progress.runs} runs; products: {progress.outputs}"
        f"{about_events if events.missing is None else ''}"
    )


def _rate(outcome: Outcome) -> float:
    return outcome.rows / max(outcome.seconds, 0.001)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _without_password(dsn: str) -> str:
    url = urlsplit(dsn)
    return url._replace(netloc=f"{url.username}@{url.hostname}:{url.port}").geturl()


def _next_steps() -> list[str]:
    return [
        "`headrace demo --keep` stays up to look around with Flower, `headrace status` and psql;",
        "`headrace up` does the same for your own files: README.md tells how.",
    ]
