"""The plan of `telemetry setup`: from what stands in the database to the statements that are missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Facts:
    """What stands in schema public; `observations` is the view's definition if there is one."""

    telem: bool
    telem_is_ours: bool
    file_origins: bool
    origins_are_ours: bool
    file_ingest_times: bool
    file_replicas: bool
    telem_ts: bool
    observation_spans: bool
    observations: str | None
    has_reader: bool
    reader_may_read: bool

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing."""
        return not list(plan(self))

    @property
    def is_xtelemdb(self) -> bool:
        """Whether tables of xtelemdb stand here that setup would have to widen."""
        return (self.telem and not self.telem_is_ours) or (self.file_origins and not self.origins_are_ours)


@dataclass(frozen=True, slots=True)
class Step:
    """One named statement of `sql/queries/telemetry_setup.sql`, with text or identifiers for its slots."""

    query: str
    definition: str | None = None
    role: str | None = None


def plan(facts: Facts) -> Iterator[Step]:
    """The steps that are missing, in order; none on a database that is set up. All run in one transaction."""
    if not facts.telem:
        yield Step("create_telem")
    elif not facts.telem_is_ours:
        if facts.observations is not None:
            yield Step("drop_observations")
        yield Step("widen_telem")
        yield Step("drop_old_index")
    if not facts.telem_ts:
        yield Step("create_telem_ts")
    if not facts.observation_spans:
        yield Step("create_observation_spans")
    if not facts.file_origins:
        yield Step("create_file_origins")
    elif not facts.origins_are_ours:
        yield Step("widen_file_origins")
        if facts.file_ingest_times:
            yield Step("widen_file_ingest_times")
        if facts.file_replicas:
            yield Step("widen_file_replicas")
    if not facts.file_ingest_times:
        yield Step("create_file_ingest_times")
    if not facts.file_replicas:
        yield Step("create_file_replicas")
    if facts.observations is None:
        yield Step("create_observations")
    elif facts.telem and not facts.telem_is_ours:
        yield Step("restore_observations", definition=facts.observations)
    if facts.has_reader and not facts.reader_may_read:
        yield Step("grant_reader", role="xsup")
