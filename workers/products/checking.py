"""The check of a mission's files: the database against the disk, and what can be put right."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, timedelta
from threading import Event
from typing import Literal

from workers import paths
from workers.database import Connection
from workers.errors import RetryLater
from workers.products import fixity, keep_store
from workers.products.dark import dark_files
from workers.products.fixity import Look
from workers.products.keep_store import FileRow, Folders

Kind = Literal["missing", "corrupt", "found", "half_placed", "leftover", "dark", "unreadable", "lineage"]

HASHING_THREADS = 2
LOCKED_AT_ONCE = 100  # rows that wait for a second look at the disk hold up whoever writes them
FINDINGS_KEPT = 10_000  # beyond it they are counted only: a lost disk must not fill the memory as well


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be; `path` in text form, `remedy` says what to do or what happens next."""

    kind: Kind
    path: str
    detail: str
    remedy: str
    file_id: int | None = None
    product: str | None = None
    day: date | None = None
    is_fixed: bool = False


@dataclass(slots=True)
class Report:
    """What a check saw: `counts` has all findings by kind, `fixed` those put right, `findings` the first 10,000."""

    mission: str
    files: int = 0
    bytes_read: int = 0
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    fixed: Counter[str] = field(default_factory=Counter)

    @property
    def is_clean(self) -> bool:
        """Whether database and disk agree now: nothing was found, or all of it is put right."""
        return self.counts == self.fixed

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it if there is room."""
        self.counts[finding.kind] += 1
        if finding.is_fixed:
            self.fixed[finding.kind] += 1
        if len(self.findings) < FINDINGS_KEPT:
            self.findings.append(finding)


def check(
    conn: Connection,
    mission_id: int,
    *,
    fix: bool,
    deep: bool,
    since: date | None = None,
    until: date | None = None,
    batch: int = 1000,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Compare what the rows of a mission say of its files with the disk, in the order of their ids. Commits as it goes.

    A file is read when its time differs from its row's, when its row says that it is in trouble, or when `deep`.
    With `fix` rows are set to what the disk says, so that outputs are built again; a row that changed meanwhile is
    left alone. Dark files are looked for when no days are given; `until` is included. `progress` is told how many of
    how many files are done, and may raise, for example Cancelled: what was put right until then stays so.
    Raises RetryLater when the root looks like a disk that is not mounted, PermanentFailure for an unknown mission.
    """
    folders = keep_store.mission(conn, mission_id)
    total = keep_store.count_files(conn, mission_id, since, until)
    conn.commit()
    require_disk(folders)
    report, stop, after = Report(folders.name), Event(), 0
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        try:
            while rows := keep_store.files_after(conn, mission_id, after, since=since, until=until, limit=batch):
                conn.commit()
                looks = list(pool.map(lambda row: _look(row, deep, stop), rows))
                _judge(conn, report, list(zip(rows, looks, strict=True)), fix=fix)
                after = rows[-1].id
                report.files += len(rows)
                if progress is not None:
                    progress(report.files, max(total, report.files))
        except BaseException:
            stop.set()  # a large file is not read to its end for a check that was given up
            raise
    if report.fixed:
        keep_store.ask_for_a_plan(conn, [mission_id])  # what can be built again is, as soon as somebody can
    conn.commit()
    if since is None and until is None:
        for path, detail in dark_files(conn, folders):
            text = paths.to_text(path)
            words = f"--mission {shlex.quote(folders.name)} {shlex.quote(text)}"
            report.add(Finding("dark", text, detail, f"`headrace products ingest {words}` takes it in where it is"))
    return report


def require_disk(folders: Folders) -> None:
    """Raise RetryLater when a mission has files and its root is empty: then everything would look lost."""
    try:
        is_empty = fixity.is_empty(paths.to_bytes(folders.root))
    except OSError as error:
        raise RetryLater(f"{folders.root} cannot be read: {error.strerror}", after=timedelta(minutes=5)) from error
    if is_empty and folders.has_files:
        raise RetryLater(
            f"{folders.root} is empty or not there, and mission {folders.name} has files in it; is its disk mounted?",
            after=timedelta(minutes=5),
        )


def _look(row: FileRow, deep: bool, stop: Event) -> Look:
    if row.state == "placing":
        return Look("same")
    found = fixity.look(row.expected, deep=deep or row.state != "present", stop=stop)
    outside = os.path.isabs(paths.to_bytes(row.place))
    if found.verdict == "gone" and outside and not os.path.isdir(os.path.dirname(row.path)):
        return Look("unreadable", "its folder, outside the mission's root, is not there; is its disk mounted?")
    return found


def _judge(conn: Connection, report: Report, seen: list[tuple[FileRow, Look]], *, fix: bool) -> None:
    report.bytes_read += sum(look.digest.sight.bytes for _, look in seen if look.digest is not None)
    for row, _ in seen:
        if row.vanished and row.state == "present":
            told = ", ".join(str(one) for one in row.vanished)
            remedy = "nothing has to be done" if row.is_superseded else "it is built again of what there is"
            report.add(_finding("lineage", row, f"files that it was built from have no row any more: {told}", remedy))
    read = [
        (row, look.digest) for row, look in seen if look.digest and look.verdict == "same" and row.state == "present"
    ]
    if fix and read:
        keep_store.verified(conn, [(row, digest) for row, digest in read if digest is not None])
        conn.commit()
    troubled = [(row, look, kind) for row, look in seen if (kind := _kind(row, look)) is not None]
    for start in range(0, len(troubled), LOCKED_AT_ONCE):
        _settle(conn, report, troubled[start : start + LOCKED_AT_ONCE], fix=fix)


def _kind(row: FileRow, look: Look) -> Kind | None:
    if row.state == "placing":
        return "half_placed" if row.is_half_placed else None
    if look.verdict == "unreadable":
        return None if row.state == "removed" else "unreadable"
    if look.verdict == "changing":
        return None  # somebody is at it; the next check sees what became of it
    if row.state == "removed":
        return None if look.verdict == "gone" else "leftover"
    if look.verdict == "same":
        return None if row.state == "present" else "found"
    return "missing" if look.verdict == "gone" else "corrupt"


def _settle(conn: Connection, report: Report, troubled: Sequence[tuple[FileRow, Look, Kind]], *, fix: bool) -> None:
    """Report, and with `fix` put right, what is still so: a build may have come in between."""
    same = keep_store.unchanged(conn, [row for row, _, _ in troubled], lock=fix)
    states: dict[int, str] = {}
    findings = []
    for row, look, kind in troubled:
        if row.id not in same or not (kind in ("half_placed", "unreadable") or fixity.is_still(row.path, look.sight)):
            continue
        new = {"missing": "missing", "corrupt": "corrupt", "found": "present"}.get(kind, row.state)
        if new != row.state:
            states[row.id] = new
        is_fixed = fix and (new != row.state or (kind == "leftover" and _is_deleted(row, look)))
        findings.append(
            _finding(kind, row, look.detail, _remedy(kind, row, look, is_fixed=is_fixed), is_fixed=is_fixed)
        )
    if fix and states:
        keep_store.set_states(conn, states.items())
    conn.commit()
    for finding in findings:
        report.add(finding)


def _is_deleted(row: FileRow, look: Look) -> bool:
    # Its row is locked and says removed: nobody brings a file of this name back until we are done.
    if not _is_ours(row, look):
        return False
    try:
        os.unlink(row.path)
    except OSError:
        return False  # it stays reported
    return True


def _is_ours(row: FileRow, look: Look) -> bool:
    return look.verdict == "same" and (row.sha256 or row.sha1) is not None


def _finding(kind: Kind, row: FileRow, detail: str, remedy: str, *, is_fixed: bool = False) -> Finding:
    return Finding(kind, paths.to_text(row.path), detail, remedy, row.id, row.product, row.day, is_fixed)


def _remedy(kind: Kind, row: FileRow, look: Look, *, is_fixed: bool) -> str:
    if kind in ("missing", "corrupt"):
        if row.is_superseded:
            return "a newer version is there: nothing has to be done"
        if not row.is_built:
            return "it cannot be rebuilt; deliver it again"
        return "it is built again" if is_fixed or row.state == kind else "with --fix it is built again"
    if kind == "found":
        return "it counts as present again" if is_fixed else "with --fix it counts as present again"
    if kind == "half_placed":
        return f"a worker of {row.host or 'its host'} finishes or undoes it within a minute or two; is one running?"
    if kind == "unreadable":
        return "nothing was changed; look at the disk, its mount and the rights on it, and check again"
    if not _is_ours(row, look):
        return "it may not be the file that was removed, and stays; move it away, or deliver it under its name"
    return "it was cleaned, and is deleted now" if is_fixed else "it was cleaned; with --fix it is deleted"
