"""Releases: sets of files that were given a name and are never changed, cleaned or forgotten again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import date, datetime

from workers import paths
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products import fixity, keep_store, release_store
from workers.products.fixity import Expected

SHA1 = "sha1 "


@dataclass(frozen=True, slots=True)
class Release:
    """A named set of files; `manifest_sha256` is the sha256 of its manifest, `bytes` what its files hold together."""

    id: int
    mission_id: int
    name: str
    comment: str
    tagged_by: str
    tagged_at: datetime
    manifest_sha256: str | None
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ReleaseFile:
    """A file as it was tagged; `checksum` is its sha256, `sha1 HEX` where only that was known, or empty.

    `filename`, `place` and `root` in text form; `state` is what its row says now.
    """

    file_id: int
    filename: str
    place: str
    checksum: str
    bytes: int | None
    root: str
    product: str
    day: date
    key: str
    version: str
    state: str

    @property
    def expected(self) -> Expected:
        """What its place has to hold."""
        is_sha1 = self.checksum.startswith(SHA1)
        return Expected(
            fixity.path_of(self.root, self.place),
            self.bytes,
            self.checksum if self.checksum and not is_sha1 else None,
            self.checksum.removeprefix(SHA1) if is_sha1 else None,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a release is what was tagged: how many files are, and a line on everything that is not."""

    release: str
    good: int
    problems: list[str]


def tag(
    conn: Connection,
    mission_id: int,
    name: str,
    *,
    by: str,
    comment: str = "",
    products: Collection[str] | None = None,
    since: date | None = None,
    until: date | None = None,
    files: Collection[int] | None = None,
) -> Release:
    """Tag the newest present files of a mission, of some products and days (`until` included); the caller commits.

    With `files` (ids) exactly these, newest or not, which must all be present and match the rest. What is being
    tagged cannot be cleaned meanwhile. Raises PermanentFailure when there is nothing to tag, when a file is not
    there, for an unknown product, and for a name that is taken or empty.
    """
    if not name.strip() or "/" in name or name != name.strip():
        raise PermanentFailure(f"{name!r} is no name for a release; give it one such as 2027.1")
    keep_store.mission(conn, mission_id)
    keep_store.require_products(conn, mission_id, products)
    chosen = release_store.choose(conn, mission_id, products=products, since=since, until=until, files=files)
    if missing := sorted(set(files or ()) - set(chosen)):
        told = ", ".join(str(one) for one in missing)
        raise PermanentFailure(f"nothing was tagged: no present file of this mission and choice has the id {told}")
    if not chosen:
        raise PermanentFailure(
            "nothing was tagged: no present file matches; `headrace products coverage` says what is there"
        )
    release = release_store.begin(conn, mission_id, name, by=by, comment=comment)
    if release is None:
        raise PermanentFailure(f"there is a release {name} already, and it never changes; choose another name")
    release_store.add(conn, release, chosen)
    sealed = manifest_sha256((one.checksum, one.filename) for one in _files(conn, release))
    release_store.seal(conn, release, sealed)
    return find(conn, mission_id, name)


def listing(conn: Connection, mission_id: int) -> list[Release]:
    """The releases of a mission, oldest first."""
    return [Release(**row) for row in release_store.releases(conn, mission_id)]


def find(conn: Connection, mission_id: int, name: str) -> Release:
    """A release by its name. Raises PermanentFailure when there is none."""
    found = release_store.releases(conn, mission_id, name)
    if not found:
        raise PermanentFailure(f"there is no release {name}; `headrace products releases list` shows those there are")
    return Release(**found[0])


def files(conn: Connection, release: Release) -> list[ReleaseFile]:
    """The files of a release, by level, product, day and key."""
    return _files(conn, release.id)


def verify(conn: Connection, release: Release, *, progress: Callable[[int, int], object] | None = None) -> Verdict:
    """Read every file of a release and compare it, and the list itself, with what was tagged. Commits before it reads.

    `progress` is told how many of how many files are read, and may raise.
    """
    members = files(conn, release)
    conn.commit()
    problems = [] if manifest_is_right(release, members) else ["its list of files is not the one that was tagged"]
    good = 0
    for number, one in enumerate(members, 1):
        problem = problem_of(one)
        good += problem is None
        problems += [problem] if problem else []
        if progress is not None:
            progress(number, len(members))
    return Verdict(release.name, good, problems)


def problem_of(one: ReleaseFile) -> str | None:
    """What is wrong with a released file's bytes on disk, in a line; None: it is what was tagged."""
    found = fixity.look(one.expected, deep=True)
    return None if found.verdict == "same" else f"{paths.to_text(one.expected.path)}: {found.detail}"


def manifest_is_right(release: Release, members: Iterable[ReleaseFile]) -> bool:
    """Whether the files of a release are those that its manifest was made of."""
    return release.manifest_sha256 == manifest_sha256((one.checksum, one.filename) for one in members)


def manifest_line(checksum: str, filename: str) -> bytes:
    """A line as `sha256sum` writes and reads it, also where the checksum is a sha1; the name is in text form.

    A name with a newline or a backslash is escaped as there: then the line begins with a backslash.
    """
    raw = paths.to_bytes(filename)
    escaped = raw.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != raw else b"") + checksum.removeprefix(SHA1).encode() + b"  " + escaped + b"\n"


def manifest(members: Iterable[tuple[str, str]]) -> bytes:
    """The lines of (checksum, file name in text form), sorted as bytes."""
    return b"".join(sorted(manifest_line(checksum, name) for checksum, name in members))


def manifest_sha256(members: Iterable[tuple[str, str]]) -> str:
    """The hash that makes a release final."""
    return hashlib.sha256(manifest(members)).hexdigest()


def _files(conn: Connection, release_id: int) -> list[ReleaseFile]:
    return [ReleaseFile(**row) for row in release_store.files(conn, release_id)]
