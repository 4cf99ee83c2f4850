"""Forgetting: rows of files go, with those of everything built from them, and on demand the files themselves."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

from workers import paths
from workers.database import Connection
from workers.errors import PermanentFailure, RetryLater
from workers.products import fixity, keep_store
from workers.products.keep_store import FileRow

BATCH = 200  # files a transaction: each holds two locks until it ends


@dataclass(frozen=True, slots=True)
class Doomed:
    """A file that would be forgotten; `path` in text form. `is_asked`: named itself, not as a descendant."""

    id: int
    product: str
    filename: str
    path: str
    day: date
    state: str
    bytes: int | None
    is_asked: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What forgetting would do, descendants first; with any of `refusals` it does nothing."""

    files: list[Doomed]
    refusals: list[str]


@dataclass(slots=True)
class Forgotten:
    """What went: rows, files and their bytes; and which files stayed although they should have gone, and why."""

    rows: int = 0
    deleted: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)


def plan(conn: Connection, file_ids: Collection[int], *, descendants: bool = True) -> Plan:
    """The files that forgetting some would take, and why it may not. Writes nothing.

    Raises PermanentFailure when one of the ids has no row.
    """
    order = _order(conn, file_ids, descendants=descendants)
    rows = _rows(conn, order)
    files = [
        Doomed(
            row.id, row.product, row.filename, paths.to_text(row.path), row.day, row.state, row.bytes, id_ in file_ids
        )
        for id_ in order
        if (row := rows.get(id_)) is not None
    ]
    return Plan(files, keep_store.refusals(conn, order))


def forget(conn: Connection, file_ids: Collection[int], *, descendants: bool = True, disk: bool = False) -> Forgotten:
    """Delete the rows of files, and with `disk` those files that hold what their rows say. Commits as it goes.

    Descendants go first: a crash leaves no file whose ancestors are forgotten, and another call does the rest. Builds
    stay as history, outputs that were due or had failed are looked at anew. Without `descendants`, what was built from
    these files is built again of what there is. Raises PermanentFailure when a file belongs to a release, to
    a running build, or is being placed; RetryLater when somebody is writing one of them.
    """
    order = _order(conn, file_ids, descendants=descendants)
    refused = keep_store.refusals(conn, order)
    conn.commit()
    if refused:
        raise PermanentFailure("nothing was forgotten: " + "; ".join(refused))
    done = Forgotten()
    for start in range(0, len(order), BATCH):
        rows = _rows(conn, order[start : start + BATCH])
        conn.commit()
        read = {id_: _verified(row, done) for id_, row in rows.items()} if disk else {}
        done.rows += _forget_rows(conn, rows)
        for id_, digest in read.items():
            if digest is not None:
                _delete(rows[id_], digest, done)
    return done


def clear_dependencies(conn: Connection, file_ids: Collection[int]) -> int:
    """Let files count as delivered: what they were built from is forgotten, their code is kept. The caller commits.

    How many files were not so already. From then on only an input that comes after them makes them stale.
    Raises PermanentFailure when one of the ids has no row.
    """
    rows = _rows(conn, _order(conn, file_ids, descendants=False))
    cleared = keep_store.forget_parents(conn, list(rows))
    keep_store.ask_for_a_plan(conn, {row.mission_id for row in rows.values()})
    return cleared


def _order(conn: Connection, file_ids: Collection[int], *, descendants: bool) -> list[int]:
    """The ids, children before those that they were built from. Raises PermanentFailure for an unknown one."""
    unknown = set(file_ids) - {row.id for row in keep_store.files_by_id(conn, file_ids)}
    if unknown:
        raise PermanentFailure(f"no file has the id {', '.join(str(one) for one in sorted(unknown))}")
    if not descendants:
        return sorted(file_ids, reverse=True)
    return _children_first(keep_store.descendants(conn, file_ids))


def _children_first(parents: Mapping[int, set[int]]) -> list[int]:
    children: dict[int, int] = dict.fromkeys(parents, 0)
    for above in parents.values():
        for parent in above:
            children[parent] += 1
    order = sorted(id_ for id_, count in children.items() if count == 0)
    for id_ in order:  # it grows while we walk it
        for parent in sorted(parents[id_]):
            children[parent] -= 1
            if children[parent] == 0:
                order.append(parent)
    # A circle cannot be built; if somebody wrote one, its files are forgotten all the same.
    return order + sorted(set(parents) - set(order), reverse=True)


def _rows(conn: Connection, ids: Collection[int]) -> dict[int, FileRow]:
    return {row.id: row for row in keep_store.files_by_id(conn, ids)}


def _forget_rows(conn: Connection, rows: Mapping[int, FileRow]) -> int:
    held = keep_store.unchanged(conn, list(rows.values()), lock=True)
    if held != set(rows):
        conn.rollback()
        busy = ", ".join(row.filename for id_, row in rows.items() if id_ not in held)
        raise RetryLater(f"{busy}: somebody is writing there; try again in a moment", after=timedelta(seconds=2))
    # Asked again under the locks: a release or a build may have begun since.
    refused = keep_store.refusals(conn, held)
    if refused:
        conn.rollback()
        raise PermanentFailure("these and their ancestors stay: " + "; ".join(refused))
    count = keep_store.forget(conn, held)
    keep_store.ask_for_a_plan(conn, {row.mission_id for row in rows.values()})
    conn.commit()
    return count


def _verified(row: FileRow, done: Forgotten) -> fixity.Digest | None:
    """The digest of a file that is what its row says, and so may be deleted."""
    told = paths.to_text(row.path)
    found = fixity.look(row.expected, deep=True)
    if found.verdict == "same" and (row.sha256 or row.sha1) is not None:
        return found.digest
    if found.verdict != "gone":
        done.problems.append(f"{told} stays on disk: {found.detail or 'its row has no hash to compare it with'}")
    return None


def _delete(row: FileRow, digest: fixity.Digest, done: Forgotten) -> None:
    told = paths.to_text(row.path)
    # By now somebody may have delivered another file of this name.
    if not fixity.is_still(row.path, digest.sight):
        done.problems.append(f"{told} stays on disk: it changed since it was read")
        return
    try:
        os.unlink(row.path)
    except OSError as error:
        done.problems.append(f"{told} stays on disk: {error.strerror}")
        return
    done.deleted += 1
    done.bytes += digest.sight.bytes
