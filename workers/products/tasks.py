"""The products room's tasks: a message, one verb."""

from __future__ import annotations

from workers.app import BACKSTOP, handles
from workers.messages import BuildProducts, CheckFiles, IngestIncoming, Message, PlanProducts, TendProducts
from workers.products import building, ingesting, scrubbing, sweeping, tending
from workers.settings import Settings

# A code may run for hours, a file may be terabytes; their own limits and people end them.
_LONG = {"time_limit": BACKSTOP.total_seconds(), "soft_time_limit": BACKSTOP.total_seconds() - 120}


@handles(IngestIncoming, **_LONG)
def ingest_incoming(message: IngestIncoming, settings: Settings) -> list[Message]:
    """Take in what has settled in an incoming folder."""
    return ingesting.ingest(message, settings)


@handles(PlanProducts)
def plan_products(message: PlanProducts, settings: Settings) -> list[Message]:
    """Have everything built that is stale in a mission."""
    return sweeping.sweep(message, settings)


@handles(BuildProducts, **_LONG)
def build_products(message: BuildProducts, settings: Settings) -> list[Message]:
    """Build what is due, for a while."""
    return building.build(message, settings)


@handles(TendProducts)
def tend_products(message: TendProducts, settings: Settings) -> list[Message]:
    """End what dead workers left on this host."""
    return tending.tend(message, settings)


@handles(CheckFiles, **_LONG)
def check_files(message: CheckFiles, settings: Settings) -> list[Message]:
    """Compare a mission's files with the disk."""
    return scrubbing.scrub(message, settings)
