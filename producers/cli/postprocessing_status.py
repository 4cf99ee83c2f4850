"""`headrace postprocessing status`, and its part of `headrace status`: what jobs do, and which need somebody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from producers.cli.context import DONE, SOME_FAILED, State, asked_at_once, json_option, pass_state
from producers.cli.postprocessing_options import database_option, legacy_option
from workers.errors import HeadraceError
from workers.postprocessing import api
from workers.settings import Settings


@click.command()
@database_option
@legacy_option
@json_option
@pass_state
def status(state: State, db: str | None) -> int:
    """What every database's jobs do, and which need somebody; exit 1 if any does."""
    conf = state.settings
    documents = statuses(conf, [api.check_name(conf, db)] if db else api.names(conf))
    needs = needs_of(documents)
    if state.json:
        state.emit({"databases": documents, "needs_a_person": needs})
    else:
        print_status(state, documents)
        for need in needs:
            state.out(f"  - {need}")
    return SOME_FAILED if needs else DONE


def statuses(conf: Settings, names: Sequence[str]) -> list[dict[str, Any]]:
    """The state of every database's jobs, asked at the same time; one that cannot be reached says so."""

    def one(name: str) -> dict[str, Any]:
        try:
            return api.status(conf, name)
        except HeadraceError as error:
            return {"database": name, "unreachable": str(error)}

    return asked_at_once(names, one)


def needs_of(documents: Sequence[dict[str, Any]]) -> list[str]:
    """Every reason to wake somebody up because of jobs, with what to do."""
    needs = []
    for document in documents:
        name = document["database"]
        if "unreachable" in document:
            needs.append(document["unreachable"])
            continue
        for trouble in document.get("troubles", []):
            what = f"{name}: job {trouble['job_id']}" + (f" ({trouble['name']})" if trouble["name"] else "")
            why = trouble["problem"] or trouble["message"] or "no success for longer than its alert_after"
            history = f"headrace postprocessing history {trouble['job_id']} --database {name}"
            needs.append(f"{what} is {trouble['trouble']}: {why}; `{history}`")
        if document.get("overdue") and not document.get("pauses") and not document.get("read_only"):
            needs.append(f"{name}: {document['overdue']} jobs are due for over a minute; are beat and a worker up?")
    return needs


def print_status(state: State, documents: Sequence[dict[str, Any]]) -> None:
    """A line per database that has jobs."""
    rows = [
        (
            document["database"],
            "read-only, waits" if document["read_only"] else "paused" if document["pauses"] else "ok",
            *(document[key] for key in ("jobs", "scheduled", "queued", "running", "overdue", "next_start")),
        )
        for document in documents
        if document.get("set_up")
    ]
    if rows:
        columns = ("database", "state", "jobs", "scheduled", "queued", "running", "overdue", "next start [UTC]")
        state.table("Postprocessing", columns, rows)
