"""Inventory: what files a host has, kept equal to its folders, and which telemetry files are to be read.

Each folder's listing has a digest that is stored with its files in one transaction, so an unchanged folder
costs no SQL and a run that is killed has done whole folders or nothing of them. A folder with files that
have just gone missing keeps no digest: it is looked at again, and a file is missing after two looks. An
empty or absent data folder that had files is taken for a disk that is not mounted: nothing is missed there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache

from workers import database, paths, runs
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.messages import IngestFile, Message, TakeInventory
from workers.settings import Settings
from workers.telemetry import inventory_store, store
from workers.telemetry.folders import Listing, walk
from workers.telemetry.inventory_store import Folder
from workers.telemetry.names import parse_name
from workers.telemetry.records import DELIMITER, EMPTY_FIELD, copy_field

PORTION_FILES = 20_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PLAIN_NAME = re.compile(r"[\x20-\x5b\x5d-\x7e]+")  # printable ASCII without a backslash: its own text form


@dataclass(slots=True)
class Counts:
    """What one inventory found."""

    files: int = 0
    folders: int = 0
    changed_folders: int = 0
    changed_files: int = 0
    missing: int = 0
    problems: list[str] = field(default_factory=list)


def take_inventory(message: TakeInventory, settings: Settings) -> list[Message]:
    """Bring the inventory of this host up to date; messages for the telemetry files that are to be read.

    Raises PermanentFailure when the message is for another host or no data folder is configured.
    """
    if message.host != settings.host:
        raise PermanentFailure(f"an inventory of host {message.host!r} cannot be taken on {settings.host!r}")
    telemetry = settings.telemetry
    roots = [message.folder] if message.folder else [str(folder) for folder in telemetry.data_dirs]
    if not roots:
        raise PermanentFailure("telemetry.data_dirs is empty: name the folders to look at in the settings")
    work = settings.target(telemetry.database)
    with database.connection(work, purpose="telemetry inventory") as conn:
        store.ensure_schema(conn, work.dsn)
        with ExitStack() as stack:

            @cache
            def begin() -> runs.Run:
                control = settings.target()
                return stack.enter_context(
                    runs.running(message, control=control, work=work, conn=conn, host=message.host)
                )

            if message.run is not None:
                begin()
            look = _Look(conn, message.host, telemetry.suffixes, begin)
            for root in roots:
                look.take(os.path.abspath(root))
            counts = look.counts
            if inventory_store.taken(conn, message.host, counts.files, counts.problems) or counts.changed_folders:
                run = begin()
                run.problems += counts.problems
                run.counters.update(
                    files=counts.files,
                    folders=counts.folders,
                    changed_files=counts.changed_files,
                    missing=counts.missing,
                )
    return due_files(settings, message.host) if message.then_ingest else []


def due_files(settings: Settings, host: str) -> list[Message]:
    """Messages for the telemetry files of a host that are to be read and were not asked for lately."""
    telemetry = settings.telemetry
    work = settings.target(telemetry.database)
    with database.connection(work, purpose="telemetry sweep") as conn:
        found = inventory_store.due_files(conn, host, telemetry.requeue_seconds, telemetry.in_flight)
    return [IngestFile(host=host, path=path) for path in found]


class _Look:
    """One look at a host's folders. A run row is begun only when something has changed."""

    def __init__(self, conn: Connection, host: str, suffixes: tuple[str, ...], begin: Callable[[], runs.Run]) -> None:
        self.conn, self.host, self.suffixes, self.begin = conn, host, suffixes, begin
        self.known = inventory_store.folder_digests(conn, host)
        self.counts = Counts()

    def take(self, root: str) -> None:
        """Bring the inventory of everything below one data folder up to date."""
        counts = self.counts
        seen: set[str] = set()
        portion: list[tuple[Folder, Listing]] = []
        held = 0
        files_before, problems_before = counts.files, len(counts.problems)
        for listing in walk(root, counts.problems):
            now = Folder(paths.to_text(listing.folder), listing.digest(), len(listing.names))
            seen.add(now.name)
            counts.folders += 1
            counts.files += now.files
            if self.known.get(now.name) == now:
                continue
            portion.append((now, listing))
            held += now.files
            if held >= PORTION_FILES:
                self._store(portion)
                portion, held = [], 0
        prefix = paths.to_text(root)
        had = sum(known.files for name, known in self.known.items() if (name + "/").startswith(prefix + "/"))
        if had and counts.files == files_before:
            counts.problems.append(
                f"{prefix}: has no file any more and had {had}; is its disk mounted? Nothing is marked missing"
            )
            return
        if portion:
            self._store(portion)
        if len(counts.problems) == problems_before:
            self._forget(name for name in self.known if name.startswith(prefix + "/") and name not in seen)
        self.conn.commit()

    def _store(self, portion: list[tuple[Folder, Listing]]) -> None:
        """One transaction: the files of some folders, the telemetry among them marked, the folders' digests."""
        self.begin().check()
        counts = self.counts
        staged = [listing for folder, listing in portion if folder.name in self.known]
        new = [listing for folder, listing in portion if folder.name not in self.known]
        if new and inventory_store.copy_new(self.conn, _origin_lines(self.host, new)):
            counts.changed_files += sum(len(listing.names) for listing in new)
            lines = _sighting_lines(new, self.suffixes, telemetry_only=True)
            inventory_store.mark_pending(self.conn, self.host, lines)
        else:
            staged += new
        if staged:
            lines = _sighting_lines(staged, self.suffixes, telemetry_only=False)
            counts.changed_files += inventory_store.merge(self.conn, self.host, lines)
        settled = []
        for folder, listing in portion:
            waits = 0
            if folder.name in self.known:
                waits = inventory_store.miss(
                    self.conn, self.host, folder.name, {text for text, _odd in _texts(listing)}
                )
            counts.missing += waits
            counts.changed_folders += 1
            if not waits:
                settled.append(folder)
        inventory_store.save_folders(self.conn, self.host, settled)
        self.conn.commit()

    def _forget(self, gone: Iterable[str]) -> None:
        """Folders that are not there any more: their files are missed, and after two looks they are forgotten."""
        forgotten = []
        for name in gone:
            waits = inventory_store.miss(self.conn, self.host, name, set())
            self.counts.missing += waits
            if not waits:
                forgotten.append(name)
        if forgotten:
            inventory_store.forget_folders(self.conn, self.host, forgotten)


def _texts(listing: Listing) -> Iterator[tuple[str, bytes]]:
    """(path as text, its bytes as a COPY field where the text is escaped, else empty) of every file."""
    head = paths.to_text(listing.folder).rstrip("/") + "/"
    folder = listing.folder.rstrip("/") + "/"
    odd_folder = head != folder
    plain = _PLAIN_NAME.fullmatch
    for name in listing.names:
        if not odd_folder and plain(name):
            yield head + name, b""
            continue
        text = paths.to_text(folder + name)
        raw = os.fsencode(folder + name)
        yield text, b"" if raw == text.encode() else b"\\x" + raw.hex().encode()


def _origin_lines(host: str, listings: Iterable[Listing]) -> Iterator[bytes]:
    owner = copy_field(host.encode()) + DELIMITER
    for listing in listings:
        for line, _text, _mtime in _lines(listing):
            yield owner + line


def _sighting_lines(listings: Iterable[Listing], suffixes: tuple[str, ...], *, telemetry_only: bool) -> Iterator[bytes]:
    for listing in listings:
        for line, text, mtime in _lines(listing, suffixes if telemetry_only else None):
            device, stamp = b"", b""
            if text.endswith(suffixes):
                name = parse_name(text.rsplit("/", 1)[1])
                device = copy_field(name.device.encode()) or EMPTY_FIELD
                stamp = name.stamp.isoformat().encode() if name.stamp else b""
            yield DELIMITER.join((line, b"%d" % mtime, device, stamp))


def _lines(listing: Listing, suffixes: tuple[str, ...] | None = None) -> Iterator[tuple[bytes, str, int]]:
    """(path, modified, created, size and bytes of an odd name as COPY fields; the path's text; mtime in ns) of
    every file, or of those with certain endings."""
    for (text, odd), name, size, mtime, ctime in zip(
        _texts(listing), listing.names, listing.sizes, listing.mtimes, listing.ctimes, strict=True
    ):
        if suffixes is not None and not name.endswith(suffixes):
            continue
        encoded = text.encode()
        field = copy_field(encoded) if odd or not text.isprintable() else encoded
        yield (
            b"%b\x02%b\x02%b\x02%d\x02%b" % (field, _timestamp(mtime // 1000), _created(name, ctime), size, odd),
            text,
            mtime,
        )


# The usual stamp of a name, with days that every month has: PostgreSQL reads it without a look at the calendar.
_USUAL_STAMP = re.compile(
    r"_(2\d{3})(0[1-9]|1[0-2])(0[1-9]|1\d|2[0-8])([01]\d|2[0-3])([0-5]\d)([0-5]\d)(\d{6})\d{3}\.", re.ASCII
)


def _created(name: str, ctime: float) -> bytes:
    """The time in a file's name, else the change time of its inode."""
    usual = _USUAL_STAMP.search(name)
    if usual and usual.end() > name.rfind("_"):
        return "{}-{}-{} {}:{}:{}.{}".format(*usual.groups()).encode()
    stamp = parse_name(name).stamp if "_" in name else None
    return stamp.isoformat().encode() if stamp else _timestamp(int(ctime * 1e6))


_minutes: dict[int, bytes] = {}


def _timestamp(microseconds: int) -> bytes:
    """Unix time as PostgreSQL reads it."""
    minute, rest = divmod(microseconds, 60_000_000)
    head = _minutes.get(minute)
    if head is None:
        if len(_minutes) > 100_000:
            _minutes.clear()
        head = (_EPOCH + timedelta(minutes=minute)).strftime("%Y-%m-%d %H:%M:").encode()
        _minutes[minute] = head
    return b"%b%02d.%06d" % (head, *divmod(rest, 1_000_000))
