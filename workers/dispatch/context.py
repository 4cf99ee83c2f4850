"""One batch as its loader sees it: whose it is, when it ended, and whom to ask about the source's tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from workers import database
from workers.database import Connection
from workers.dispatch import catalog, rules, source_store, store
from workers.dispatch.names import Table, table
from workers.dispatch.rules import Rules
from workers.dispatch_settings import SOURCE_ZONE, Consumer
from workers.targets import Target

Decode = Callable[[str], "dict[str, str | None]"]


@dataclass(frozen=True, slots=True)
class Context:
    """A batch, or a failed event's batch of long ago. `end` is the time of its end tick, `zone` the source's own.

    `lock` is how long DDL at the target waits for locks.
    """

    name: str
    consumer: Consumer
    target: Target
    tick: int
    end: datetime
    zone: str
    lock: timedelta
    decode: Decode
    tables: Tables


class Tables:
    """What the source says of its tables, asked once each, over a connection of its own: the other one streams."""

    def __init__(
        self, source: Target, consumer: Consumer, zone: str, *, name: str, memory: Connection, remembers: bool = True
    ) -> None:
        self._source, self._consumer, self._zone = source, consumer, zone
        # The target remembers leaves that the source has dropped.
        self._name, self._memory, self._remembers = name, memory, remembers
        self._identity: str | None = None
        self._rules: dict[str | Table, tuple[Table, Rules | None]] = {}
        self._types: dict[tuple[Table, str], str | None] = {}

    def rules(self, named: str | Table) -> tuple[Table, Rules | None]:
        """The source table that an event names (its root, if it is a leaf), and its rules; None if filtered out."""
        if named not in self._rules:
            found = self._resolve(named)
            own = rules.of(self._consumer, rules.stripped(self._consumer, found))
            if own is not None and own.partition.timezone == SOURCE_ZONE:
                own = replace(own, partition=own.partition.model_copy(update={"timezone": self._zone}))
            self._rules[named] = (found, own)
        return self._rules[named]

    def column_type(self, where: Table, column: str) -> str | None:
        """A source column's type; None where it is gone."""
        if (where, column) not in self._types:
            with database.connection(self._source, purpose="dispatch tables", autocommit=True) as conn:
                self._types[where, column] = source_store.column_type(conn, where, column)
        return self._types[where, column]

    def identity(self) -> str:
        """Which database of which running server the source is."""
        if self._identity is None:
            with database.connection(self._source, purpose="dispatch tables", autocommit=True) as conn:
                self._identity = catalog.identity(conn)
        return self._identity

    def _resolve(self, named: str | Table) -> Table:
        found = table(named) if isinstance(named, str) else named
        if isinstance(named, str) and named.count(".") != 1:
            # schema.table with dots inside the names: the source knows which of the readings is a table.
            with database.connection(self._source, purpose="dispatch tables", autocommit=True) as conn:
                meant = source_store.tables_named(conn, named)
            found = meant[0] if len(meant) == 1 else found
        if self._consumer.leaf_to_root and str(rules.stripped(self._consumer, found)) not in self._consumer.tables:
            with database.connection(self._source, purpose="dispatch tables", autocommit=True) as conn:
                root = source_store.root_of(conn, found)
                is_gone = root is None and not source_store.table_exists(conn, found)
            if root is not None and self._remembers:
                store.remember_leaf(self._memory, self._name, found, root)
            elif is_gone:
                root = store.remembered_root(self._memory, self._name, found)
            found = root or found
        return found
