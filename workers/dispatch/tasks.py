"""The dispatch room's tasks: a message, one verb."""

from __future__ import annotations

from workers.app import BACKSTOP, handles
from workers.dispatch import batches, replay, slices, tending
from workers.messages import DispatchBatch, DispatchSlice, Message, ReplayEvents, TendPartitions
from workers.settings import Settings

# A bulk load at the source is one batch, however long it takes; lost servers and locks end it much earlier.
_LONG = {"time_limit": BACKSTOP.total_seconds(), "soft_time_limit": BACKSTOP.total_seconds() - 120}


@handles(DispatchBatch, **_LONG)
def dispatch_batch(message: DispatchBatch, settings: Settings) -> list[Message]:
    """Apply one batch of a PgQ consumer."""
    return batches.dispatch_batch(message, settings)


@handles(DispatchSlice, **_LONG)
def dispatch_slice(message: DispatchSlice, settings: Settings) -> list[Message]:
    """Apply one slice of a batch."""
    return slices.dispatch_slice(message, settings)


@handles(ReplayEvents, **_LONG)
def replay_events(message: ReplayEvents, settings: Settings) -> list[Message]:
    """Try failed events again."""
    return replay.replay_events(message, settings)


@handles(TendPartitions)
def tend_partitions(message: TendPartitions, settings: Settings) -> list[Message]:
    """Make partitions ahead, and let go of old ones."""
    return tending.tend(message, settings)
