"""What the events of one destination come to: rows to add, keys to take away, in steps that keep their order."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from workers.dispatch.names import Table
from workers.dispatch.shapes import Place, Shape

Key = str | tuple[str, ...]
Record = list[str]  # number, type, data, table, old key, time: a line of the batch, cut


@dataclass(slots=True)
class Newest:
    """The newest version of each row of one place: its shape and line, or None where it was deleted last.

    `stale` are the keys that may have a version there already, `everywhere` those that go from all partitions.
    """

    place: Place
    shape: Shape
    rows: dict[Key, tuple[Shape, str] | None] = field(default_factory=dict)
    stale: dict[Key, None] = field(default_factory=dict)
    everywhere: dict[Key, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Emptied:
    """What a TRUNCATE comes to: a table's rows go, or (`everywhere`) those of all partitions of its parent."""

    event: int
    table: Table
    parent: Table
    everywhere: bool


@dataclass(slots=True)
class Step:
    """Changes that may be made together: rows that are only added, and rows of which the newest version counts."""

    added: dict[Shape, list[str]] = field(default_factory=dict)
    newest: dict[Table, Newest] = field(default_factory=dict)
    # Before all that: the rows of these tables go.
    emptied: list[Emptied] = field(default_factory=list)

    def lines_of(self, shape: Shape) -> list[str]:
        """The lines of one shape, to be added to."""
        return self.added.setdefault(shape, [])

    def replace(self, shape: Shape, key: Key, line: str | None, *, is_new: bool, everywhere: bool) -> None:
        """The newest version of a row; None: it is gone. `is_new` where none can be there before."""
        place = shape.place
        newest = self.newest.get(place.table)
        if newest is None:
            newest = self.newest[place.table] = Newest(place, shape)
        # A delete takes away what is there, also where an insert of the same row came just before it: both may be
        # older than the rows that the target began with.
        if line is None or (not (is_new and shape.replaces) and key not in newest.rows):
            newest.stale[key] = None
        if everywhere:
            newest.everywhere[key] = None
            for other in self.newest.values():
                if other is not newest and other.place.parent == place.parent:
                    other.rows.pop(key, None)  # the row has moved on from there
        newest.rows[key] = None if line is None else (shape, line)


@dataclass(slots=True)
class Failure:
    """Why an event could not be applied; `key` and `destination` where they are known."""

    error: str
    sqlstate: str | None = None
    destination: str | None = None
    key: str | None = None
    state: str = "waiting"


@dataclass(slots=True)
class Plan:
    """The steps of one destination's events, in order, with the events that came to nothing."""

    steps: list[Step] = field(default_factory=list)
    failures: dict[int, Failure] = field(default_factory=dict)
    ignored: int = 0

    def step(self) -> Step:
        """The step in hand."""
        if not self.steps:
            self.steps.append(Step())
        return self.steps[-1]

    def step_of(self, shape: Shape, *, is_new: bool) -> Step:
        """The step for another version of a row; a new one where the versions before cannot be told from it.

        That is so where the key has changed in between, and where two texts may be the same key, such as 1.0 and 1.00;
        of new rows a unique index tells.
        """
        step = self.step()
        before = step.newest.get(shape.place.table)
        if before is None:
            return step
        is_vague = not shape.is_exact and not (is_new and shape.replaces) and any(before.rows.values())
        if is_vague or before.shape.key_columns != shape.key_columns:
            step = Step()
            self.steps.append(step)
        return step

    def empty(self, event: int, table: Table, parent: Table, *, everywhere: bool) -> None:
        """A TRUNCATE: what came before is done first."""
        self.steps.append(Step(emptied=[Emptied(event, table, parent, everywhere)]))


def key_text(key: Key) -> str:
    """A row's key as failed_event has it: a JSON array of texts."""
    # In ASCII: the target's encoding may lack the source's characters.
    return json.dumps(key if isinstance(key, tuple) else (key,), separators=(",", ":"))
