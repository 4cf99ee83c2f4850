"""The whole wire format on one page: frozen messages, each with its task's name and its queue.

A message says "look at this", never "this is so": it carries identifiers only. `run` names the queued
row of a person's request, so that its outcome can be followed; messages of sweeps and watchers have none.
"""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from workers.errors import PermanentFailure

TICKS_QUEUE = "ticks"
_NAMESPACE = uuid.UUID("5b0c2f6e-6f0e-5b1f-9d0b-2f6a4d1c7e11")  # fixed for ever: ids must not change between versions


class Message(BaseModel):
    """What all messages have; a subclass is one task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: ClassVar[str]
    room: ClassVar[str]
    run: int | None = None
    # Not on the wire: how long its sender holds the message back. `--here` leaves such a one to the next look.
    wait_seconds: float = Field(default=0, exclude=True)

    def key(self) -> str:
        """The natural key: what two messages about the same thing have in common."""
        return ":".join(str(value) for name, value in self if name not in ("run", "wait_seconds"))

    def queue(self) -> str:
        """The queue's name; a room whose files live on a host's disks has one per host."""
        host = getattr(self, "host", None)
        return f"{self.room}.{host}" if host else self.room

    def fields(self) -> dict[str, Any]:
        """The keyword arguments on the wire, without empty ones."""
        return self.model_dump(mode="json", exclude_none=True)

    def message_id(self, slot: str) -> str:
        """uuid5 of natural key and slot or attempt: the same request always has the same id."""
        return str(uuid.uuid5(_NAMESPACE, f"{self.task}|{self.key()}|{self.run or ''}|{slot}"))


class IngestFile(Message):
    """Bring one telemetry file's new records into its database."""

    task: ClassVar[str] = "telemetry.ingest"
    room: ClassVar[str] = "telemetry"
    host: str = Field(min_length=1)
    path: str = Field(min_length=1, description="absolute, escaped as workers.paths describes")
    force: bool = False

    def key(self) -> str:
        return f"{self.host}:{self.path}"


class TakeInventory(Message):
    """Compare a host's data folders, or one folder below them, with the inventory."""

    task: ClassVar[str] = "telemetry.inventory"
    room: ClassVar[str] = "telemetry"
    host: str = Field(min_length=1)
    folder: str | None = None
    then_ingest: bool = True

    def key(self) -> str:
        return f"{self.host}:inventory:{self.folder or '*'}"


class IngestIncoming(Message):
    """Look at a mission's incoming folder, and take in the files that have settled."""

    task: ClassVar[str] = "products.ingest"
    room: ClassVar[str] = "products"
    host: str = Field(min_length=1)
    mission: str = Field(min_length=1)
    then_build: bool = True

    def key(self) -> str:
        return f"{self.host}:ingest {self.mission}"


class PlanProducts(Message):
    """Ask which outputs of a mission are stale, and have them built."""

    task: ClassVar[str] = "products.plan"
    room: ClassVar[str] = "products"
    host: str = Field(min_length=1)
    mission: str = Field(min_length=1)

    def key(self) -> str:
        return f"{self.host}:plan {self.mission}"


class BuildProducts(Message):
    """Build what is due, one output after the other, for a while. A host has so many lanes as it builds at once."""

    task: ClassVar[str] = "products.build"
    room: ClassVar[str] = "products"
    host: str = Field(min_length=1)
    lane: int = Field(ge=1)

    def key(self) -> str:
        return f"{self.host}:lane {self.lane}"


class TendProducts(Message):
    """End what dead workers left on a host: processes of codes, half-placed files, scratch folders."""

    task: ClassVar[str] = "products.tend"
    room: ClassVar[str] = "products"
    host: str = Field(min_length=1)

    def key(self) -> str:
        return f"{self.host}:tend"


class CheckFiles(Message):
    """Compare what the database says of a mission's files with the disk of a host."""

    task: ClassVar[str] = "products.check"
    room: ClassVar[str] = "products"
    host: str = Field(min_length=1)
    mission: str = Field(min_length=1)

    def key(self) -> str:
        return f"{self.host}:check {self.mission}"


class RunJob(Message):
    """Run one queued run of a job of a database."""

    task: ClassVar[str] = "postprocessing.run"
    room: ClassVar[str] = "postprocessing"
    database: str = Field(min_length=1)
    job: int
    job_run: int

    def key(self) -> str:
        return f"{self.database}:job {self.job}"

    def message_id(self, slot: str) -> str:
        return super().message_id(f"{self.job_run}|{slot}")


class DeliverAlerts(Message):
    """Tell people what a database has to tell them."""

    task: ClassVar[str] = "postprocessing.alert"
    room: ClassVar[str] = "postprocessing"
    database: str = Field(min_length=1)

    def key(self) -> str:
        return f"{self.database}:alerts"


class DispatchBatch(Message):
    """Apply one batch of a PgQ consumer. The worker believes the source and the position, not the ticks in here."""

    task: ClassVar[str] = "dispatch.batch"
    room: ClassVar[str] = "dispatch"
    consumer: str = Field(min_length=1, description="its name in the settings")
    queue_name: str
    registered_as: str
    batch_id: int
    prev_tick: int
    tick: int

    def key(self) -> str:
        return self.consumer

    def message_id(self, slot: str) -> str:
        return super().message_id(f"{self.batch_id}|{slot}")


class DispatchSlice(Message):
    """Apply one slice of a batch: the rows whose keys fall into it."""

    task: ClassVar[str] = "dispatch.slice"
    room: ClassVar[str] = "dispatch"
    consumer: str = Field(min_length=1)
    batch_id: int
    tick: int
    slice: int
    slices: int

    def key(self) -> str:
        return f"{self.consumer}:slice {self.slice + 1} of {self.slices}"

    def message_id(self, slot: str) -> str:
        return super().message_id(f"{self.batch_id}|{slot}")


class ReplayEvents(Message):
    """Try a consumer's failed events again: those named, or all that wait."""

    task: ClassVar[str] = "dispatch.replay"
    room: ClassVar[str] = "dispatch"
    consumer: str = Field(min_length=1)
    events: tuple[int, ...] = ()

    def key(self) -> str:
        return f"{self.consumer}:replay"


class TendPartitions(Message):
    """Make a consumer's partitions ahead, and let go of those beyond their retention."""

    task: ClassVar[str] = "dispatch.partitions"
    room: ClassVar[str] = "dispatch"
    consumer: str = Field(min_length=1)

    def key(self) -> str:
        return f"{self.consumer}:partitions"


class RepackStep(Message):
    """Take one table's rewrite a step further."""

    task: ClassVar[str] = "repack.step"
    room: ClassVar[str] = "repack"
    database: str = Field(min_length=1)
    repack: int
    table: str = Field(default="", description="for people; the row says which it is")

    def key(self) -> str:
        return f"{self.database}:{self.table or f'repack {self.repack}'}"

    def message_id(self, slot: str) -> str:
        return super().message_id(f"{self.repack}|{slot}")


class BuildIndex(Message):
    """Build one index of a copy."""

    task: ClassVar[str] = "repack.index"
    room: ClassVar[str] = "repack"
    database: str = Field(min_length=1)
    repack: int
    number: int
    table: str = Field(default="", description="for people")

    def key(self) -> str:
        return f"{self.database}:{self.table or f'repack {self.repack}'} index {self.number}"

    def message_id(self, slot: str) -> str:
        return super().message_id(f"{self.repack}|{slot}")


class ChooseTables(Message):
    """Estimate the bloat of a plan's tables in one database, and begin with those that are worth it."""

    task: ClassVar[str] = "repack.choose"
    room: ClassVar[str] = "repack"
    database: str = Field(min_length=1)
    plan: str = Field(min_length=1)

    def key(self) -> str:
        return f"{self.database}:choose {self.plan}"


MESSAGES: dict[str, type[Message]] = {
    kind.task: kind
    for kind in (
        IngestFile, TakeInventory, IngestIncoming, PlanProducts, BuildProducts, TendProducts, CheckFiles,
        RunJob, DeliverAlerts, DispatchBatch, DispatchSlice, ReplayEvents, TendPartitions,
        RepackStep, BuildIndex, ChooseTables,
    )
}  # fmt: skip


def parse(task: str, fields: dict[str, Any]) -> Message:
    """The message of a task's name and keyword arguments. Raises PermanentFailure for an unknown task."""
    if task not in MESSAGES:
        raise PermanentFailure(f"no task is called {task!r}; known: {', '.join(MESSAGES)}")
    return MESSAGES[task](**fields)
