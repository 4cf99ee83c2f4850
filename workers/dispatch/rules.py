"""The rules for one source table: the consumer's, with what the table has its own way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from workers.dispatch.names import Table, table
from workers.dispatch_settings import ChangePolicy, Consumer, Mode, NewColumnPolicy, Partition, TableRules

EXTRA = "extra"  # the jsonb column for what the destination has no column for


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """What becomes of one source table's events; `key` is None where the events' own key holds."""

    destination: Table
    mode: Mode
    on_delete: ChangePolicy
    on_truncate: ChangePolicy
    on_new_column: NewColumnPolicy
    meta: tuple[str, ...]
    partition: Partition
    key: tuple[str, ...] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    only: frozenset[str] | None = None
    skip: frozenset[str] = frozenset()

    def renamed(self, column: str) -> str | None:
        """The destination's column for a source column; None where it is left out."""
        if column in self.skip or (self.only is not None and column not in self.only):
            return None
        return self.rename.get(column, column)


def of(consumer: Consumer, source: Table) -> Rules | None:
    """The rules for a source table, its leaf's name and suffix resolved already; None where it is filtered out."""
    own = consumer.tables.get(str(source))
    if own is None and not _wanted(consumer, str(source)):
        return None
    own = own or TableRules()
    if own.ignore:
        return None
    mode = own.mode or consumer.mode
    return Rules(
        destination=table(own.target) if own.target else source,
        mode=mode,
        on_delete=own.on_delete or consumer.on_delete or _default_on_delete(mode),
        on_truncate=own.on_truncate or consumer.on_truncate,
        on_new_column=own.on_new_column or consumer.on_new_column,
        meta=consumer.meta_columns if own.meta_columns is None else own.meta_columns,
        partition=own.partition or consumer.partition,
        key=own.key,
        rename=own.columns,
        only=frozenset(own.only_columns) if own.only_columns is not None else None,
        skip=frozenset(own.skip_columns),
    )


def stripped(consumer: Consumer, source: Table) -> Table:
    """The source table without the suffix that the settings cut off."""
    if not consumer.strip_suffix:
        return source
    name = re.sub(rf"(?:{consumer.strip_suffix})\Z", "", source.name)
    return Table(source.schema, name or source.name)


def merges(consumer: Consumer) -> bool:
    """Whether ticks may be taken together: not where a row's partition depends on its batch."""
    layouts = [consumer.partition, *(own.partition for own in consumer.tables.values() if own.partition)]
    return consumer.merge_events is not None and not any(layout.is_by_batch for layout in layouts)


def _wanted(consumer: Consumer, name: str) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in consumer.skip_tables):
        return False
    return any(fnmatchcase(name, pattern) for pattern in consumer.only_tables)


def _default_on_delete(mode: Mode) -> ChangePolicy:
    return "error" if mode == "keep_all" else "delete"
