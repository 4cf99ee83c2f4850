"""What to do with an open batch, given where the target stands: a pure decision, and the heart of exactly once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workers.dispatch.source_store import Batch
from workers.dispatch.store import Position


@dataclass(frozen=True, slots=True)
class Verdict:
    """`apply`, `finish` (it is applied already), `wait` (a person must look; it is parked), or `park` now, and why."""

    what: Literal["apply", "finish", "wait", "park"]
    why: str = ""


def verdict(name: str, position: Position | None, batch: Batch) -> Verdict:
    """Compare the target's position with a batch that is open at the source.

    Ticks are numbered upwards without end; the position is the end tick of the last batch that committed here. The
    number alone is not enough: a queue that was made anew counts from 1 again.
    """
    if position is None or position.tick is None:
        return Verdict(
            "park",
            f"{name} has no position at the target, so nobody knows which batches were applied; `headrace dispatch"
            f" register {name}` for a new consumer, `headrace dispatch adopt {name}` for one of cube_dispatcher",
        )
    if position.state == "parked":
        return Verdict("wait", f"{name} is parked: {position.problem}")
    if (position.queue, position.registered_as) != (batch.queue, batch.consumer):
        return Verdict(
            "park",
            f"{name} stands at tick {position.tick} of {position.registered_as} on queue {position.queue}, and the"
            f" batch is of {batch.consumer} on {batch.queue}: were the settings changed? Give the new consumer a new"
            f" name, or `headrace dispatch rewind {name} --reset`",
        )
    known = {batch.tick: batch.end, batch.prev_tick: batch.start}.get(position.tick)
    if known is not None and position.tick_at not in (None, known):
        return Verdict(
            "park",
            f"{name} lost its place: the target stands at tick {position.tick} of {position.tick_at:%Y-%m-%d %H:%M:%S}"
            f" UTC, and the source made its tick of that number at {known:%Y-%m-%d %H:%M:%S} (was the queue made anew,"
            f" or the source restored?); compare both sides (`headrace dispatch verify {name}`), then `headrace"
            f" dispatch rewind {name} --reset`",
        )
    if position.tick == batch.tick:
        return Verdict("finish", f"tick {batch.tick} is applied already")
    if position.tick == batch.prev_tick:
        return Verdict("apply")
    if position.tick < batch.prev_tick:
        return Verdict(
            "park",
            f"{name} lost its place: the target stands at tick {position.tick}, and the source goes on after tick"
            f" {batch.prev_tick} (was the target restored from a backup?); `headrace dispatch rewind {name}` takes the"
            " source back, as long as it still has the events",
        )
    return Verdict(
        "park",
        f"{name} lost its place: the target stands at tick {position.tick}, which the source's open batch"
        f" ({batch.prev_tick} to {batch.tick}) has not come to (was the source restored, or the queue made anew?);"
        f" compare both sides (`headrace dispatch verify {name}`), then `headrace dispatch rewind {name} --reset`",
    )
