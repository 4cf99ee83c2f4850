"""`headrace dispatch status`, and its part of `headrace status`: how far consumers are, and which need somebody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from producers.cli.context import DONE, SOME_FAILED, UNREACHABLE, State, asked_at_once, json_option, pass_state
from producers.cli.dispatch_options import consumer_argument, consumers_of, legacy_option
from workers.dispatch import api
from workers.errors import HeadraceError, ServerUnavailable
from workers.settings import Settings


@click.command()
@consumer_argument
@legacy_option
@json_option
@pass_state
def status(state: State, consumer: str | None) -> int:
    """How far every consumer is, what waits and what failed; exit 1 if any needs somebody."""
    conf = state.settings
    documents = statuses(conf, consumers_of(conf, [consumer] if consumer else []))
    needs = needs_of(documents)
    if state.json:
        state.emit({"consumers": documents, "needs_a_person": needs})
    else:
        print_status(state, documents)
        for need in needs:
            state.out(f"  - {need}")
    if all("unreachable" in document for document in documents):
        return UNREACHABLE
    return SOME_FAILED if needs else DONE


def statuses(conf: Settings, names: Sequence[str]) -> list[dict[str, Any]]:
    """How every consumer stands, asked at the same time; one whose servers cannot be reached says so."""

    def one(name: str) -> dict[str, Any]:
        try:
            return api.status(conf, name)
        except ServerUnavailable as error:
            return {"consumer": name, "unreachable": str(error)}
        except HeadraceError as error:
            return {"consumer": name, "needs": [str(error)]}

    return asked_at_once(names, one)


def needs_of(documents: Sequence[dict[str, Any]]) -> list[str]:
    """Every reason to wake somebody up because of a consumer, with what to do."""
    told: dict[str, None] = {}  # two consumers of one queue have one ticker
    for document in documents:
        for need in [document["unreachable"]] if "unreachable" in document else document["needs"]:
            told[need] = None
    return list(told)


def tells_of(documents: Sequence[dict[str, Any]], key: str) -> bool:
    """Whether a failed run of this key is history: the consumer's own state says whether it matters still."""
    names = [document["consumer"] for document in documents if "state" in document]
    return any(key in (name, f"{name}:replay") or key.startswith(f"{name}:slice ") for name in names)


def print_status(state: State, documents: Sequence[dict[str, Any]]) -> None:
    """A line per consumer whose servers answer."""
    rows = [
        (
            document["consumer"],
            document["state"],
            document["queue"],
            document["tick"],
            document["lag_seconds"],
            document["pending_events"],
            document.get("ticker_lag_seconds"),
            document["failed_events"],
            document.get("events"),
        )
        for document in documents
        if "state" in document
    ]
    if rows:
        columns = (
            "consumer", "state", "queue", "tick", "lag [s]", "pending", "ticker lag [s]", "failed", "applied",
        )  # fmt: skip
        state.table("Dispatch", columns, rows)
