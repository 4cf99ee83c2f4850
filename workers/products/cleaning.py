"""Cleaning: superseded files that nothing needs any more are taken off the disk; their rows stay, as removed."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from workers import paths
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products import fixity, keep_store
from workers.products.checking import require_disk

BATCH = 200  # files a transaction: each holds two locks until it ends


@dataclass(frozen=True, slots=True)
class Victim:
    """A file that may go. `root` and `place` in text form; `bytes` as its row has it."""

    id: int
    mission_id: int
    root: str
    product: str
    filename: str
    place: str
    day: date
    version: str
    state: str
    bytes: int | None
    registered_at: datetime
    superseded_by: str

    @property
    def path(self) -> fixity.RawPath:
        """Where it lies."""
        return fixity.path_of(self.root, self.place)


@dataclass(slots=True)
class Cleaned:
    """What went: rows set to removed, files deleted and their bytes; whom something needs by now; what did not work."""

    removed: int = 0
    deleted: int = 0
    bytes: int = 0
    skipped: list[Victim] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def plan(
    conn: Connection,
    mission_id: int,
    *,
    older_than: timedelta,
    products: Collection[str] | None = None,
    superseded: bool = True,
) -> list[Victim]:
    """The superseded files of a mission that are registered for longer than `older_than` and that nothing needs.

    Needed are released and newest files, inputs of running builds and of outputs that are due or have failed, and
    whatever any of these was built from, at any remove. Writes nothing. Raises PermanentFailure for an unknown mission
    or product, and without `superseded`: nothing else can be cleaned.
    """
    if not superseded:
        raise PermanentFailure("only superseded files can be cleaned; say --superseded")
    if older_than < timedelta(0):
        raise PermanentFailure(f"an age of {older_than} lies in the future; give one such as 30d")
    keep_store.mission(conn, mission_id)
    keep_store.require_products(conn, mission_id, products)
    kept = keep_store.kept_although_superseded(conn, mission_id)
    found = keep_store.candidates(conn, mission_id, older_than, products)
    return [Victim(**row) for row in found if row["id"] not in kept]


def clean(
    conn: Connection, victims: Sequence[Victim], *, progress: Callable[[int, int], object] | None = None
) -> Cleaned:
    """Take files off the disk that a plan named and that nothing needs by now either. Commits as it goes.

    A row says removed, durably, before its file is deleted: nobody reads a file that is on its way out. A crash
    in between leaves a file that the check reports as leftover. A file whose size is not its row's is not deleted.
    `progress` is told how many of how many are done, and may raise. Raises RetryLater when a root is not mounted.
    """
    for mission_id in sorted({victim.mission_id for victim in victims}):
        require_disk(keep_store.mission(conn, mission_id))
    conn.commit()
    done = Cleaned()
    for start in range(0, len(victims), BATCH):
        batch = victims[start : start + BATCH]
        free = _remove_rows(conn, batch)
        done.removed += len(free)
        done.skipped += [victim for victim in batch if victim.id not in free]
        _delete(conn, [victim for victim in batch if victim.id in free], done)
        if progress is not None:
            progress(start + len(batch), len(victims))
    return done


def _remove_rows(conn: Connection, batch: Sequence[Victim]) -> set[int]:
    rows = keep_store.files_by_id(conn, [victim.id for victim in batch])
    held = keep_store.unchanged(conn, rows, lock=True)
    # Asked in statements of their own after the locks: only these see what others committed while we came to them.
    free = keep_store.superseded(conn, held)
    free -= keep_store.needed(conn, free)
    keep_store.set_states(conn, [(id_, "removed") for id_ in sorted(free)])
    conn.commit()
    return free


def _delete(conn: Connection, gone: Sequence[Victim], done: Cleaned) -> None:
    held = keep_store.lock_removed(conn, [victim.id for victim in gone])
    for victim in gone:
        told = paths.to_text(victim.path)
        if victim.id not in held:
            done.problems.append(f"{told} is in somebody's hands and stays; `headrace products fsck` says more")
            continue
        try:
            seen = fixity.sight(victim.path)
            if seen is None:
                continue
            if not seen.is_file or (victim.bytes is not None and seen.bytes != victim.bytes):
                done.problems.append(f"{told} has {seen.bytes} bytes, not {victim.bytes}, and stays; look at it")
                continue
            os.unlink(victim.path)
        except OSError as error:
            done.problems.append(f"{told} cannot be deleted: {error.strerror}; then `headrace products fsck --fix`")
            continue
        done.deleted += 1
        done.bytes += seen.bytes
    conn.commit()
