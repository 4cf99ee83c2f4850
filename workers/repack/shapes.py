"""Shape: what is copied, by which key, in which order, and under which names; text quoted by the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

PARAMETER = "\0"  # stands for %s until the text is complete: a name may have a % of its own
PREFIX = "headrace_repack_"  # of everything that a request leaves at the user's own table


@dataclass(frozen=True, slots=True)
class Place:
    """The schemas and names of one request's tables; none of them needs quotes but the table's own."""

    repack: int
    quoted: str

    @property
    def new_schema(self) -> str:
        """Where the copy is made, under the table's own name."""
        return f"headrace_new_{self.repack}"

    @property
    def old_schema(self) -> str:
        """Where the old table waits to be dropped, under its own name."""
        return f"headrace_old_{self.repack}"

    @property
    def log_schema(self) -> str:
        """Where the change log and its functions are."""
        return f"headrace_log_{self.repack}"

    @property
    def new(self) -> str:
        """The copy."""
        return f"{self.new_schema}.{self.quoted}"

    @property
    def old(self) -> str:
        """The old table after the swap."""
        return f"{self.old_schema}.{self.quoted}"

    @property
    def log(self) -> str:
        """The keys that were changed."""
        return f"{self.log_schema}.log"

    @property
    def truncation(self) -> str:
        """A row for each TRUNCATE."""
        return f"{self.log_schema}.truncation"

    @property
    def batch(self) -> str:
        """The keys that are being replayed."""
        return f"{self.log_schema}.batch"

    @property
    def trigger_prefix(self) -> str:
        """What the names of this request's triggers begin with."""
        return f"{PREFIX}{self.repack}_"


@dataclass(frozen=True, slots=True)
class Keys:
    """Columns by which rows are told apart or put in order, with their types.

    `equals` are a key's operators, qualified: an extension's type (citext) has its own, beyond our search path.
    """

    columns: tuple[str, ...]
    types: tuple[str, ...]
    equals: tuple[str, ...] = ()

    def listed(self, alias: str = "") -> str:
        """`a.k1, a.k2`."""
        return ", ".join(f"{alias}.{name}" if alias else name for name in self.columns)

    def row(self, alias: str = "") -> str:
        """`(a.k1, a.k2)`; of one column just that, so that every kind of index serves a comparison."""
        return f"({self.listed(alias)})" if len(self.columns) > 1 else self.listed(alias)

    def values(self) -> str:
        """Placeholders of a position, cast to the columns' types."""
        inner = ", ".join(f"{PARAMETER}::{kind}" for kind in self.types)
        return f"({inner})" if len(self.columns) > 1 else inner

    def same(self, left: str, right: str) -> str:
        """`l.k1 = r.k1 AND l.k2 = r.k2`."""
        pairs = zip(self.columns, self.equals, strict=True)
        return " AND ".join(f"{left}.{name} {equal} {right}.{name}" for name, equal in pairs)

    def changed(self) -> str:
        """Whether a row's key is another one after an UPDATE, for a trigger's WHEN; keys are never null."""
        pairs = zip(self.columns, self.equals, strict=True)
        return " OR ".join(f"NOT OLD.{name} {equal} NEW.{name}" for name, equal in pairs)


@dataclass(frozen=True, slots=True)
class Shape:
    """What is copied. `expressions` are over the source's row `s`; `order` is the key unless another order is wanted.

    `in_chunks`: an index serves the order and its columns are never null, so that the copy can go on where it was.
    `search_path` has the schemas of the columns' types: positions are compared by those types' own operators.
    `key_places`: where the key's columns stand among all, from 1, if no others stand before or between them; else ().
    `role`: whose rights the rows are copied with, if the table is somebody else's: its checks and generated columns may
    call functions of the owner, which must not have more rights than the owner.
    `is_sorted`: an order was asked for; else the rows of a chunk come as they are found, which is a fifth less work.
    """

    source: str
    key: Keys
    key_index: str
    columns: tuple[str, ...]
    expressions: tuple[str, ...]
    order: Keys
    order_text: str
    in_chunks: bool
    search_path: str
    key_places: tuple[int, ...] = ()
    role: str = ""
    is_sorted: bool = True

    @property
    def is_key_order(self) -> bool:
        """Whether chunks are disjoint ranges of the key itself: then no row can be copied twice."""
        return self.order.columns == self.key.columns

    def as_json(self) -> dict[str, Any]:
        """For the request's row."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Shape:
        """Out of the request's row."""
        keys = {
            name: Keys(*(tuple(found[name][part]) for part in ("columns", "types", "equals")))
            for name in ("key", "order")
        }
        lists = {name: tuple(found[name]) for name in ("columns", "expressions")}
        return cls(**{**found, **keys, **lists, "key_places": tuple(found["key_places"])})


def expressions(
    columns: Sequence[tuple[str, str, str]],
    *,
    cleanup_nulls: Sequence[str],
    remove_keys: dict[str, Sequence[str]],
) -> list[str]:
    """What is read of the source's row `s` for each (quoted, name, type), in order; the same in copy and replay."""
    found = []
    for quoted, name, kind in columns:
        value = f"s.{quoted}"
        if name in cleanup_nulls:
            value = f"pg_catalog.{kind}_strip_nulls({value})"
        elif name in remove_keys:
            keys = ", ".join(literal(key) for key in remove_keys[name])
            value = f"{value} - ARRAY[{keys}]::text[]"
        found.append(value)
    return found


def literal(text: str) -> str:
    """A string constant that means the same whatever standard_conforming_strings says."""
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
