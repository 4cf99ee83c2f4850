"""What a site decides about repacking: which tables, when, in which form, and how much harm is allowed meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from workers import windows
from workers.room_settings import Model, known_zone
from workers.targets import CONTROL

DeadlockResolution = Literal["nothing", "cancel_query", "kill_query"]
Engine = Literal["auto", "shadow", "reindex"]
Goal = Literal["swap", "ready"]


class Limits(Model):
    """How much harm is allowed, and when to give up. A request keeps those that it began with."""

    lock_timeout_seconds: float = Field(default=0.5, gt=0, le=60, description="others wait this long per attempt")
    lock_attempts: int = Field(default=100, ge=1, description="then the swap is given up; what was copied stays")
    lock_pause_seconds: float = Field(default=5, gt=0, le=30, description="the longest pause between attempts")
    hold_seconds: float = Field(default=1, gt=0, description="budget of one ACCESS EXCLUSIVE lock, else rolled back")
    deadlock_resolution: DeadlockResolution = "nothing"
    max_replay_rows: int = Field(default=100_000, ge=1, description="log rows per replay transaction")
    swap_below_rows: int = Field(default=1000, ge=1, description="of the log that the swap itself may replay")
    check_seconds: float = Field(default=10, gt=0, description="how long the log is watched to see whether it shrinks")
    catch_up_seconds: float = Field(default=600, gt=0, description="a log that does not shrink for so long: give up")
    max_log_bytes: int | None = Field(default=None, ge=1, description="a larger log: give up")
    chunk_seconds: float = Field(default=1, gt=0, le=60, description="of copying per transaction, about")
    slice_seconds: float = Field(default=30, gt=0, le=600, description="a longer step goes on in a new message")
    sleep_ratio: float = Field(default=0, ge=0, le=100, description="pause after each chunk, in chunk durations")
    max_replication_lag_bytes: int | None = Field(default=None, ge=0, description="of the worst standby")
    max_replication_lag_seconds: float | None = Field(default=None, gt=0)
    max_wal_bytes_per_second: int | None = Field(default=None, gt=0, description="of the whole server")
    reindex_hours: float = Field(default=6, gt=0, le=20, description="index-only: the longest that one may take")
    reindex_wait_seconds: float = Field(default=300, gt=0, description="index-only: for transactions that began before")
    max_failures: int = Field(default=5, ge=1, description="of one step in a row: give up")
    keep_old_hours: float = Field(default=0, ge=0, description="the old table stays so long after the swap")
    verify: bool = Field(default=True, description="compare old and new, range by range, before the old one goes")
    analyze: bool = True
    rehearse: bool = Field(default=True, description="try the swap with an empty copy first, and roll it back")


class TableRules(Model):
    """What one table gets its own way."""

    fillfactor: int | None = Field(default=None, ge=10, le=100)
    order_by: tuple[str, ...] = Field(default=(), description="columns; the copy's rows are in this order")
    cluster: str | None = Field(default=None, description="an index whose order the copy gets")
    tablespace: str | None = None
    index_tablespace: str | None = None
    cleanup_nulls: tuple[str, ...] = Field(default=(), description="json and jsonb columns that lose their nulls")
    remove_keys: dict[str, tuple[str, ...]] = Field(default={}, description="jsonb column: keys that it loses")

    @model_validator(mode="after")
    def _together(self) -> TableRules:
        if self.order_by and self.cluster:
            raise ValueError("order_by and cluster both say the order; take one away")
        if both := sorted(set(self.cleanup_nulls) & set(self.remove_keys)):
            raise ValueError(f"{', '.join(both)}: cleanup_nulls and remove_keys exclude each other for one column")
        return self


class SchemaRules(Model):
    """What the tables of one schema get, if they say nothing themselves."""

    fillfactor: int | None = Field(default=None, ge=10, le=100)


class DatabaseRules(Model):
    """What one database's tables get, and how much of its disk may be used."""

    fillfactor: int | None = Field(default=None, ge=10, le=100, description="a schema's, then a table's own go before")
    schemas: dict[str, SchemaRules] = Field(default={})
    tables: dict[str, TableRules] = Field(default={}, description="schema.table")
    disk_budget_bytes: int | None = Field(default=None, ge=0, description="copies and logs together may have so much")
    disk_path: Path | None = Field(default=None, description="a folder of the server's disk, if it is on this host")
    min_free_bytes: int = Field(default=1_000_000_000, ge=0, description="must stay free there")

    def fillfactor_of(self, schema: str, table: str) -> int | None:
        """The table's own before its schema's before the database's; None: as it is."""
        own = self.tables.get(f"{schema}.{table}", TableRules()).fillfactor
        of_schema = self.schemas.get(schema, SchemaRules()).fillfactor
        return own if own is not None else of_schema if of_schema is not None else self.fillfactor


class Thresholds(Model):
    """Which tables are worth it."""

    min_bloat_percent: float = Field(default=30, ge=0, le=100)
    min_bloat_bytes: int = Field(default=10_000_000, ge=0)
    min_bytes: int = Field(default=0, ge=0, description="smaller tables are left alone")
    max_bytes: int | None = Field(default=None, ge=1, description="larger tables are left alone")
    top: int | None = Field(default=None, ge=1, description="at most so many at a time, the most wasteful first")
    budget_bytes: int | None = Field(default=None, ge=1, description="of tables rewritten per window, or per day")


class Plan(Model):
    """What is repacked by itself: where, when, and what is worth it."""

    enabled: bool = True
    databases: tuple[str, ...] = (CONTROL,)
    schemas: tuple[str, ...] = Field(default=(), description="both lists empty: every table")
    tables: tuple[str, ...] = Field(default=(), description="schema.table; patterns such as hist.*")
    skip_tables: tuple[str, ...] = ()
    windows: str | None = Field(default=None, description="such as 'Sat-Sun 01:00-05:00'; default: at any time")
    timezone: str = "UTC"
    engine: Engine = "auto"
    goal: Goal = Field(default="swap", description="ready: prepared and kept in step; a person swaps")
    at_once: int = Field(default=1, ge=1, description="tables of one database that are rewritten at the same time")
    thresholds: Thresholds = Thresholds()

    @field_validator("timezone")
    @classmethod
    def _zone(cls, name: str) -> str:
        return str(known_zone(name))

    @field_validator("windows")
    @classmethod
    def _windows(cls, text: str | None) -> str | None:
        if text is not None:
            windows.parse(text)
        return text


class Repack(Model):
    """Bloated tables rewritten online."""

    plans: dict[str, Plan] = Field(default={})
    databases: dict[str, DatabaseRules] = Field(default={}, description="by the names below databases:")
    limits: Limits = Limits()
    requeue_seconds: float = Field(default=60, gt=0, description="age at which a message counts as lost")
    replay_seconds: float = Field(default=10, gt=0, description="how often a prepared copy is brought up to date")
    choose_minutes: float = Field(default=60, gt=0, description="how often bloat is estimated within a window")
    history_days: int = Field(default=400, ge=1)
