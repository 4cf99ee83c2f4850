"""Working commands: a person's request is written down, sent or done here, followed, and reported."""

from __future__ import annotations

import getpass
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from producers.cli.context import DONE, SOME_FAILED, State
from workers import database, execution, logs, runs
from workers.errors import HeadraceError
from workers.messages import Message
from workers.settings import Settings
from workers.sql_files import queries

SQL = queries("foundation")
FINAL = ("succeeded", "failed", "timeout", "cancelled", "lost", "skipped")
COUNTED = ("succeeded", "failed", "skipped", "lost", "timeout")
SUMMED = ("records", "rows", "files", "duplicates", "restored", "quarantined", "built", "unchanged")
MOST_LINES = 20
_POLL_SECONDS = 0.3


def who() -> str:
    """The person at the keyboard, for the run rows."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def here(
    state: State, messages: Sequence[Message], *, timeout: timedelta, problems: Sequence[str] = (),
    afterwards: Callable[[], Sequence[str]] = tuple,
) -> int:  # fmt: skip
    """Do the messages and what follows from them in this process; report; the exit code.

    `afterwards` is asked at the end for problems that are not this run's own.
    """
    conf = state.settings
    logs.configure(conf.logs.model_copy(update={"level": "WARNING"}))
    requested = written_down(conf, messages)
    seen: list[int] = []
    token = runs.recorded.set(seen)
    try:
        trouble = [*problems, *execution.run_here(requested, conf, timeout=timeout)]
    finally:
        runs.recorded.reset(token)
    ids = {message.run for message in requested if message.run is not None} | set(seen)
    return report(state, sorted(ids), [*trouble, *afterwards()])


def enqueue(state: State, messages: Sequence[Message], *, wait: bool, problems: Sequence[str] = ()) -> int:
    """Write the request down and send it; with `wait` follow it to its end. The exit code."""
    from workers.app import send

    conf = state.settings
    requested = written_down(conf, messages)
    ids = [message.run for message in requested if message.run is not None]
    try:
        send(requested, slot="request")
    except HeadraceError as error:
        for run in ids:
            runs.close_request(conf.target(), run, "cancelled", f"not sent: {error}")
        raise
    if wait:
        _follow(conf, ids)
        return report(state, ids, problems)
    for problem in problems:
        state.say(problem)
    if state.json:
        state.emit({"enqueued": len(ids), "runs": [{"id": run} for run in ids], "problems": list(problems)})
    elif ids:
        queues = ", ".join(sorted({message.queue() for message in requested}))
        state.out(f"enqueued {len(ids)} on {queues}; `headrace runs` shows how they go (first run: {ids[0]})")
    return SOME_FAILED if problems else DONE


def report(state: State, ids: Sequence[int], problems: Sequence[str]) -> int:
    """Print how runs ended; 1 if any did not end well or anything else went wrong, else 0."""
    rows = run_rows(state.settings, ids)
    counts = Counter(row["state"] for row in rows)
    failed = any(counts[name] for name in ("failed", "timeout", "lost", "cancelled", "queued", "running"))
    told = {str((row["error"] or {}).get("message")) for row in rows}
    remaining = [problem for problem in problems if not any(text in problem for text in told if text != "None")]
    if state.json:
        document: dict[str, Any] = {name: counts[name] for name in COUNTED}
        document["runs"] = [
            {key: row[key] for key in ("id", "room", "key", "state", "started_at", "finished_at", "error", "counters")}
            for row in rows
        ]
        document["problems"] = remaining
        state.emit(document)
    else:
        totals: Counter[str] = Counter()
        for row in rows:
            totals.update({key: value for key, value in row["counters"].items() if key in SUMMED})
        summary = ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "nothing to do"
        more = ", ".join(f"{value:,.0f} {name}" for name, value in totals.items() if value)
        state.out(f"{summary}{': ' + more if more else ''}")
    lines = [
        f"{row['state']}: {row['error'].get('message')} (run {row['id']})"
        for row in sorted(rows, key=lambda row: row["state"] == "skipped")
        if row["state"] != "succeeded" and row["error"] and not (state.json and row["state"] == "skipped")
    ]
    for line in [*lines[:MOST_LINES], *remaining]:
        state.say(line)
    if len(lines) > MOST_LINES:
        state.say(f"... and {len(lines) - MOST_LINES} more; `headrace runs` lists them")
    return SOME_FAILED if failed or problems else DONE


def run_rows(conf: Settings, ids: Sequence[int]) -> list[dict[str, Any]]:
    """The run rows of these ids, oldest first."""
    if not ids:
        return []
    facts = {"room": None, "failed": False, "ids": list(ids), "limit": len(ids)}
    with database.connection(conf.target(), purpose="cli", autocommit=True) as conn:
        return SQL["runs"].records(conn, facts)[::-1]


def written_down(conf: Settings, messages: Sequence[Message]) -> list[Message]:
    """The messages as requests of the person at the keyboard, each with its queued run row."""
    with database.connection(conf.target(), purpose="cli") as conn:
        requested = runs.request(conn, list(messages), by=who())
        conn.commit()
    return requested


def _follow(conf: Settings, ids: list[int]) -> None:
    """Wait until every run is over, with a bar on a terminal. Ctrl-C stops the waiting, not the work."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("waiting for a worker", total=len(ids))
        while True:
            rows = run_rows(conf, ids)
            over = sum(row["state"] in FINAL for row in rows)
            records = sum(row["counters"].get("records", 0) for row in rows)
            text = f"{records:,.0f} records" if records else "waiting for a worker"
            progress.update(bar, completed=over, description=text)
            if over >= len(ids):
                return
            time.sleep(_POLL_SECONDS)
