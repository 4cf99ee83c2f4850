"""Prometheus metrics of the PgQ consumers; one whose source or target does not answer leaves its figures out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import Metric

from workers.monitor.consumers import Answers
from workers.monitor.families import Rows, counter, gauge

_CONSUMER = ("consumer", "queue")


def families(answers: Answers) -> Iterator[Metric]:
    """Every metric that the answers can tell; none at all where no consumer is configured."""
    if not answers:
        return
    yield gauge(
        "headrace_dispatch_up",
        "Whether both the source and the target of the consumer answer.",
        _CONSUMER,
        ((name, float(answer.error is None)) for name, answer in answers.items()),
    )
    yield gauge(
        "headrace_dispatch_lag_seconds",
        "How old the newest tick is that the consumer has finished: PgQ's own lag.",
        _CONSUMER,
        _rows(answers, lambda known: known["lag_seconds"]),
    )
    yield gauge(
        "headrace_dispatch_pending_events",
        "About how many events wait for the consumer, as PgQ estimates it.",
        _CONSUMER,
        _rows(answers, lambda known: known["pending_events"]),
    )
    yield gauge(
        "headrace_dispatch_ticker_lag_seconds",
        "Time since the last tick of the consumer's queue; a queue that was never ticked has none.",
        _CONSUMER,
        _rows(answers, lambda known: known.get("ticker_lag_seconds")),
    )
    yield gauge(
        "headrace_dispatch_failed_events",
        "Events that could not be applied and wait for a replay or a drop.",
        _CONSUMER,
        _rows(answers, lambda known: known["failed_events"]),
    )
    yield counter(
        "headrace_dispatch_events",
        "Events of the batches that are applied; a consumer without a position has none.",
        _CONSUMER,
        _rows(answers, lambda known: known.get("events")),
    )
    yield counter(
        "headrace_dispatch_batches",
        "Batches that are applied; a consumer without a position has none.",
        _CONSUMER,
        _rows(answers, lambda known: known.get("batches")),
    )
    yield gauge(
        "headrace_dispatch_parked",
        "1 while the consumer stands still until a person has looked.",
        _CONSUMER,
        _rows(answers, lambda known: known["state"] == "parked"),
    )
    yield gauge(
        "headrace_dispatch_open_batch_seconds",
        "How long the batch in hand has been open; 0 when none is.",
        _CONSUMER,
        _rows(answers, lambda known: (known["open_batch_seconds"] or 0.0) if known["registered"] else None),
    )
    yield gauge(
        "headrace_dispatch_rotation_blocked",
        "1 while the tables of the queue are not rotated for over two periods, so that they grow.",
        _CONSUMER,
        _rows(answers, lambda known: known.get("rotation_blocked")),
    )


def _rows(answers: Answers, number: Callable[[dict[str, Any]], float | None]) -> Rows:
    """The labels and the number of each consumer that answers and has one."""
    for name, answer in answers.items():
        value = None if answer.value is None else number(answer.value)
        if value is not None:
            yield name, float(value)
