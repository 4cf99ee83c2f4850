"""Rewrites that a person asked for: begun one after the other in this process, or by workers, followed and reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from producers.cli import follow
from producers.cli.context import DONE, SOME_FAILED, UNREACHABLE, State
from producers.cli.repack_progress import Bar, Ending, ends_by_signals
from workers import pauses, runs
from workers.errors import HeadraceError, NothingToDo
from workers.messages import Message
from workers.repack import api
from workers.settings import Settings

COUNTED = ("succeeded", "failed", "skipped", "lost", "timeout")
_KEYS = (
    "database", "schema", "table", "repack", "state", "reason", "problem", "rows_copied", "bytes_before", "bytes_after",
    "hold_seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """One table: a wish that is begun with when its turn comes, or a request that is there (`repack`)."""

    database: str
    schema: str
    table: str
    wish: api.Wish | None = None
    verdict: api.Verdict | None = None
    repack: int | None = None

    @property
    def name(self) -> str:
        """`schema.table`."""
        return f"{self.schema}.{self.table}"


@dataclass(slots=True)
class Report:
    """What came of the tables; `unreachable` are databases that did not answer at the start."""

    tables: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)
    skipped: int = 0

    def refused(self, job: Job, reasons: Sequence[str]) -> None:
        """A table that was not begun with, and why, a line each."""
        row: dict[str, Any] = dict.fromkeys(_KEYS)
        row |= {"database": job.database, "schema": job.schema, "table": job.table, "repack": job.repack}
        row |= {"state": "refused", "reason": "refused", "problem": "; ".join(reasons), "failed": True}
        self.tables.append(row)

    def ended(self, conf: Settings, job: Job, repack: int, problems: Sequence[str]) -> None:
        """How a request stands after what was done."""
        row = api.outcome(conf, job.database, repack)
        if row is not None:
            self.tables.append({
                "database": job.database, **row, "problem": "; ".join(problems) or row["problem"],
                "failed": bool(problems),
            })  # fmt: skip


def here(state: State, jobs: Sequence[Job], report: Report, *, timeout: float, alone: bool = True) -> int:
    """Do one after the other to its end, or until it is ready; report; the exit code.

    SIGTERM and ctrl-C end it: the statement in hand is rolled back, and the same command goes on next time.
    `alone`: no other process may be at the same request.
    """
    conf = state.settings
    if jobs:
        try:
            pauses.check(conf.target(), "repack", conf.host)
        except NothingToDo as reason:
            state.say(str(reason))
            report.skipped += len(jobs)
            jobs = []
    with ends_by_signals(conf) as ending:
        for job in jobs:
            try:
                _one_here(state, job, report, ending, timedelta(seconds=timeout), alone)
            except HeadraceError as error:
                _not_begun(state, job, report, error)
    return finished(state, report)


def _one_here(state: State, job: Job, report: Report, ending: Ending, timeout: timedelta, alone: bool) -> None:
    conf = state.settings
    repack = job.repack if job.repack is not None else _begun(state, job)
    holder = api.held(conf, job.database, repack) if alone else None
    requested: list[Message] = []
    try:
        ending.current = (job.database, repack)
        message = api.message(job.database, repack, job.schema, job.table)
        requested = follow.written_down(conf, [message])
        run = requested[0].run
        api.follow(conf, job.database, repack, run)
        report.runs += [run] if run is not None else []
        with Bar(conf, [(job.database, repack, job.name)]):
            problems = api.finish(conf, requested, timeout=timeout)
        # A request that waits for a person, or keeps the old table, goes on without this run.
        _close(conf, requested, "succeeded" if not problems else "failed", "; ".join(problems) or "all done for now")
        report.ended(conf, job, repack, problems)
    except KeyboardInterrupt as reason:
        ending.is_near.set()
        _close(conf, requested, "cancelled", str(reason) or "interrupted")
        row = api.outcome(conf, job.database, repack) or {}
        if row.get("state") == "active":
            state.say(
                f"{job.name}: {reason or 'interrupted'}: repack {repack} stays at {row['step']}, "
                f"{row['rows_copied']:,} rows copied; ask again and it goes on, or `headrace repack abort {job.name}`"
            )
        raise
    finally:
        ending.current = None
        if holder is not None:
            holder.close()


def enqueue(state: State, batches: Sequence[Sequence[Job]], report: Report, *, wait: bool) -> int:
    """Have workers do the first batch; with `wait` follow each to its end, and begin with the next. The exit code."""
    conf = state.settings
    begun: list[tuple[Job, int]] = []
    for batch in batches if wait else batches[:1]:
        sent = _send(state, batch, report)
        begun += sent
        if not wait:
            continue
        with Bar(conf, [(job.database, repack, job.name) for job, repack in sent]) as bar:
            ends = bar.follow()
        for job, repack in sent:
            report.ended(conf, job, repack, ends[job.database, repack])
    return finished(state, report) if wait else _enqueued(state, report, begun)


def _send(state: State, jobs: Sequence[Job], report: Report) -> list[tuple[Job, int]]:
    from workers.app import send

    conf = state.settings
    begun: list[tuple[Job, int]] = []
    messages: list[Message] = []
    for job in jobs:
        try:
            repack = job.repack if job.repack is not None else _begun(state, job)
            requested = follow.written_down(conf, [api.message(job.database, repack, job.schema, job.table)])
            api.follow(conf, job.database, repack, requested[0].run)
        except HeadraceError as error:
            _not_begun(state, job, report, error)
            continue
        begun.append((job, repack))
        messages += requested
    try:
        send(messages, slot="request")
    except HeadraceError as error:
        _close(conf, messages, "cancelled", f"not sent: {error}")
        for job, repack in begun:
            api.take_back(conf, job.database, repack, f"not sent: {error}")
        raise
    report.runs += [message.run for message in messages if message.run is not None]
    return begun


def _begun(state: State, job: Job) -> int:
    assert job.wish is not None
    repack, said = api.begin(state.settings, job.database, job.schema, job.table, job.wish, verdict=job.verdict)
    if said is not None:
        state.say(said)
    return repack


def _not_begun(state: State, job: Job, report: Report, error: HeadraceError) -> None:
    if isinstance(error, NothingToDo) and job.verdict is not None:  # nobody named this very table
        state.say(str(error))
        report.skipped += 1
    else:
        report.refused(job, str(error).splitlines())


def _close(conf: Settings, requested: Sequence[Message], outcome: str, reason: str) -> None:
    for message in requested:
        if message.run is not None:
            runs.close_request(conf.target(), message.run, outcome, reason)


def _enqueued(state: State, report: Report, begun: Sequence[tuple[Job, int]]) -> int:
    failed = _tell_failures(state, report)
    if state.json:
        state.emit({
            "enqueued": len(begun), "runs": [{"id": run} for run in report.runs],
            "tables": [
                {"database": job.database, "schema": job.schema, "table": job.table, "repack": repack}
                for job, repack in begun
            ] + [_without(row) for row in report.tables],
            "problems": report.problems,
        })  # fmt: skip
    elif begun:
        state.out(f"enqueued {len(begun)} on repack; `headrace repack status` shows how they go")
    return _code(report, failed)


def finished(state: State, report: Report) -> int:
    """Print how tables ended; 1 if any did not end well or anything else went wrong, else 0."""
    failed = _tell_failures(state, report)
    well = [row for row in report.tables if not row["failed"]]
    if state.json:
        counts = Counter(succeeded=len(well), failed=failed, skipped=report.skipped)
        rows = follow.run_rows(state.settings, report.runs)
        names = ("id", "room", "key", "state", "started_at", "finished_at", "error", "counters")
        state.emit({
            **{name: counts[name] for name in COUNTED},
            "runs": [{key: row[key] for key in names} for row in rows],
            "tables": [_without(row) for row in report.tables],
            "problems": report.problems,
        })  # fmt: skip
    else:
        for row in well:
            state.out(f"{_shown(row['database'], row['schema'] + '.' + row['table'])}: {_line(row)}")
        if not report.tables and not report.problems:
            state.out("nothing to do")
    return _code(report, failed)


def _tell_failures(state: State, report: Report) -> int:
    failed = [row for row in report.tables if row["failed"]]
    for row in failed:
        name = f"{row['schema']}.{row['table']}"
        problem = str(row["problem"] or row["reason"] or row["state"])
        state.say(_shown(row["database"], problem if row["table"] in problem else f"{name}: {problem}"))
    for problem in report.problems:
        state.say(problem)
    return len(failed)


def _code(report: Report, failed: int) -> int:
    if report.unreachable and not report.tables and not report.runs:
        return UNREACHABLE
    return SOME_FAILED if failed or report.problems else DONE


def _line(row: dict[str, Any]) -> str:
    sizes = ""
    if row["bytes_before"] is not None and row["bytes_after"] is not None:
        sizes = f", {api.size(row['bytes_before'])} -> {api.size(row['bytes_after'])}"
    if row["state"] == "aborted":
        return f"repack {row['repack']} is given up, and what it made is gone"
    if row["engine"] == "reindex":
        return f"indexes rebuilt{sizes}"
    locked = f", locked for {row['hold_seconds'] * 1000:.0f} ms" if row["hold_seconds"] is not None else ""
    repacked = f"repacked{sizes}, {row['rows_copied']:,} rows{locked}"
    if row["state"] == "done":
        return repacked
    if row["step"] == "drop":
        return f"{repacked}; the old table stays until {row['keep_until']:%Y-%m-%d %H:%M} UTC"
    return f"prepared (repack {row['repack']}), {row['backlog_rows'] or 0:,} changes wait to be replayed"


def _shown(database_name: str, text: str) -> str:
    return text if database_name == "control" else f"{database_name}: {text}"


def _without(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in _KEYS}
