"""The repack room's tasks: a message, one verb."""

from __future__ import annotations

from workers.app import BACKSTOP, handles
from workers.messages import BuildIndex, ChooseTables, Message, RepackStep
from workers.repack import choosing, machine
from workers.settings import Settings

# One index of a large table may take hours; everything else ends its message after a slice of time.
_LONG = {"time_limit": BACKSTOP.total_seconds(), "soft_time_limit": BACKSTOP.total_seconds() - 120}


@handles(RepackStep, **_LONG)
def repack_step(message: RepackStep, settings: Settings) -> list[Message]:
    """Take one table's rewrite a step further."""
    return machine.step(message, settings)


@handles(BuildIndex, **_LONG)
def build_index(message: BuildIndex, settings: Settings) -> list[Message]:
    """Build one index of a copy."""
    return machine.build_index(message, settings)


@handles(ChooseTables)
def choose_tables(message: ChooseTables, settings: Settings) -> list[Message]:
    """Begin with the tables of a plan that are worth it."""
    return choosing.choose(message, settings)
