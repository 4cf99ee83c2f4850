"""What a site decides about PgQ consumers: which events go where, in which form, and what becomes of the odd ones."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from workers.room_settings import Model, known_zone
from workers.targets import CONTROL

Mode = Literal["keep_latest", "keep_all", "plain"]
ChangePolicy = Literal["error", "ignore", "delete", "delete_all", "tombstone"]
NewColumnPolicy = Literal["add", "extra", "ignore", "error"]
MetaColumn = Literal["_op", "_ev_id", "_ev_time", "_tick"]
SOURCE_ZONE = "source"  # the zone that a session of the login has at the source by default: cube_dispatcher's way


class Partition(Model):
    """How a destination is cut by time: tables like the parent, or PostgreSQL's own partitions."""

    kind: Literal["none", "like", "native"] = "like"
    by: str = Field(default="batch_time", description="batch_time, event_time, or field:NAME (a column of the target)")
    dateformat: str = Field(default="YYYY_MM_DD", description="like: to_char() format of the suffix; empty: none")
    part_template: str | None = Field(default=None, description="like: SQL with _DEST_TABLE, _PARENT, _PKEY")
    period: Literal["hour", "day", "month"] = Field(default="day", description="native: what one partition holds")
    timezone: str = Field(default="UTC", description="whose midnight; `source`: the source session's own")
    premake: int = Field(default=4, ge=0, le=1000, description="native: partitions made ahead")
    late: Literal["create", "default"] = Field(default="create", description="native: a row outside all partitions")
    retention_days: float | None = Field(default=None, gt=0, description="older partitions go")
    retention: Literal["detach", "drop"] = "detach"

    @field_validator("by")
    @classmethod
    def _known_moment(cls, by: str) -> str:
        if by not in ("batch_time", "event_time") and not by.removeprefix("field:").strip() == by[6:] != "":
            raise ValueError(f"{by!r} is no moment of a row; use batch_time, event_time or field:NAME")
        return by

    @field_validator("timezone")
    @classmethod
    def _zone(cls, name: str) -> str:
        return name if name == SOURCE_ZONE else str(known_zone(name))

    @property
    def field(self) -> str | None:
        """The column of the target whose value says where a row belongs; None where a time of the event does."""
        return self.by.removeprefix("field:") if self.by.startswith("field:") else None

    @property
    def is_by_batch(self) -> bool:
        """Whether a row's place depends on the batch that it came with: such batches are never merged."""
        return self.kind != "none" and self.by == "batch_time" and (self.kind == "native" or bool(self.dateformat))


class TableRules(Model):
    """What one source table has its own way; what is left out is as the consumer says."""

    ignore: bool = False
    target: str | None = Field(default=None, description="schema.table; default: the source table's own name")
    mode: Mode | None = None
    key: tuple[str, ...] | None = Field(default=None, description="source columns; default: the event's own key")
    columns: dict[str, str] = Field(default={}, description="source column: target column")
    only_columns: tuple[str, ...] | None = None
    skip_columns: tuple[str, ...] = ()
    on_delete: ChangePolicy | None = None
    on_truncate: ChangePolicy | None = None
    on_new_column: NewColumnPolicy | None = None
    meta_columns: tuple[MetaColumn, ...] | None = None
    partition: Partition | None = None


class Consumer(Model):
    """One consumer of a PgQ queue, and where its events go."""

    enabled: bool = True
    source: str = Field(default=CONTROL, description="the database with the queue")
    target: str = Field(default=CONTROL, description="the database with the partitions")
    queue: str = Field(min_length=1)
    registered_as: str | None = Field(default=None, min_length=1, description="its name in PgQ; default: the name here")
    pgq_schema: str = Field(default="pgq", min_length=1)
    mode: Mode = "keep_latest"
    partition: Partition = Partition()
    on_delete: ChangePolicy | None = Field(default=None, description="default: delete; keep_all: error")
    on_truncate: ChangePolicy = "error"
    on_unknown: Literal["error", "ignore"] = "error"
    on_new_column: NewColumnPolicy = "add"
    meta_columns: tuple[MetaColumn, ...] = ()
    only_tables: tuple[str, ...] = Field(default=("*",), description="patterns such as public.*")
    skip_tables: tuple[str, ...] = ()
    tables: dict[str, TableRules] = Field(default={})
    leaf_to_root: bool = Field(default=True, description="rows of a partitioned source table go by its root's name")
    strip_suffix: str | None = Field(default=None, description="a regular expression cut off source tables' names")
    max_failed: int = Field(default=10_000, ge=0, description="per batch; beyond it the consumer is parked")
    slices: int = Field(default=1, ge=1, le=64)
    slice_events: int = Field(default=50_000, ge=1, description="smaller batches are not sliced")
    merge_events: int | None = Field(default=None, ge=1, description="when so many wait, ticks are taken together")
    max_lag_seconds: float = Field(default=600, gt=0, description="more is late: an alert")
    run_ticker: bool = Field(default=False, description="tick and rotate here, where no pgqd does")
    sync_pgq_ext: bool = Field(default=False, description="keep pgq_ext.completed_tick at the target in step")

    @field_validator("strip_suffix")
    @classmethod
    def _expression(cls, text: str | None) -> str | None:
        try:
            re.compile(text or "")
        except re.error as error:
            raise ValueError(f"{text!r} is no regular expression: {error}") from error
        return text

    @model_validator(mode="after")
    def _together(self) -> Consumer:
        for where, rules in (("", TableRules()), *((f"tables.{name}: ", rules) for name, rules in self.tables.items())):
            mode = rules.mode or self.mode
            meta = self.meta_columns if rules.meta_columns is None else rules.meta_columns
            policies = (rules.on_delete or self.on_delete, rules.on_truncate or self.on_truncate)
            if "tombstone" in policies and "_op" not in meta:
                raise ValueError(f"{where}a tombstone is a row with _op; add _op to meta_columns")
            if mode == "keep_all" and (policy := rules.on_delete or self.on_delete) in ("delete", "delete_all"):
                raise ValueError(f"{where}on_delete: {policy} takes rows away, and keep_all keeps all of them")
        return self


class Dispatch(Model):
    """PgQ change events into partitions."""

    consumers: dict[str, Consumer] = Field(default={})
    requeue_seconds: float = Field(default=5, gt=0, description="age at which a message counts as lost")
    poll_seconds: float = Field(default=0.25, ge=0.05, le=1, description="how often a queue is asked between ticks")
    chunk_bytes: int = Field(default=8_000_000, ge=10_000, description="of events that are loaded at once")
    lock_seconds: float = Field(default=10, gt=0, description="how long a lock at the target is waited for")
