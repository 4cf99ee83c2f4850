"""The import of a dbprocessing database: its mission becomes a definition, its files are known where they lie."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from workers import paths
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products import graph_rules, legacy_store, loading, planning, releases
from workers.products.legacy_mission import Named, Warnings, named_of
from workers.products.legacy_rows import Legacy, LegacyFile, LegacyProcess
from workers.products.legacy_store import Here
from workers.products.templates import date_fields
from workers.products.versions import Part, Version

__all__ = ["Counts", "Legacy", "import_into", "read"]

COUNTED = ("missions", "products", "processes", "codes", "files", "builds", "links", "releases")


@dataclass(frozen=True, slots=True)
class Counts:
    """What an import added; all 0 where everything was here already. `warnings` are for a person to read."""

    missions: int
    products: int
    processes: int
    codes: int
    files: int
    builds: int
    links: int
    releases: int
    changes: tuple[loading.Change, ...]
    warnings: tuple[str, ...]


def read(source: str) -> Legacy:
    """What a dbprocessing database holds: a sqlite file, or PostgreSQL by connection string, URL or database name.

    Raises PermanentFailure for what is none, ServerUnavailable for a server that cannot be reached.
    """
    return legacy_store.read(source)


def import_into(conn: Connection, legacy: Legacy, *, host: str, root: Path | None = None, by: str = "import") -> Counts:
    """Take over all that is not here yet, in the caller's transaction; files stay in place, and nobody writes others.

    `root` is where the mission's data lie now, should they have moved. A mission that has been loaded from a file of
    ours since keeps its definition. Raises SettingsError for a definition that cannot be loaded, PermanentFailure for
    a database without a mission, RetryLater while somebody writes files for half a minute.
    """
    if not legacy.missions:
        raise PermanentFailure(f"{legacy.source}: it holds no mission, so there is nothing to import")
    if root is not None and len(legacy.missions) > 1:
        raise PermanentFailure(f"{legacy.source}: it holds several missions, which cannot all lie below {root}")
    warnings = Warnings()
    if legacy.is_locked:
        warnings.add("dbprocessing is at work on it, or died there: what it makes from now on is not imported")
    sums = [0] * len(COUNTED)
    changes: list[loading.Change] = []
    for mission in legacy.missions:
        named = named_of(legacy, mission, root, warnings)
        before = legacy_store.mission(conn, mission.name)
        had = legacy_store.totals(conn, before[0] if before else None)
        if before is None or before[2]:
            changes += loading.load(conn, named.mission, host=host, by=by)
            for line in graph_rules.doubts(named.mission):
                warnings.add(line)
        else:
            warnings.add(
                "this mission has been loaded from another file since, and keeps that definition", mission.name
            )
        here = legacy_store.here(conn, mission.name)
        has = legacy_store.totals(conn, here.id)
        added = _Import(conn, legacy, named, here, host, by, warnings).run()
        sums = [one + more for one, more in zip(sums, [*_less(has, had), *added], strict=True)]
    return Counts(**dict(zip(COUNTED, sums, strict=True)), changes=tuple(changes), warnings=tuple(warnings.lines()))


def _less(some: Sequence[int], fewer: Sequence[int]) -> list[int]:
    return [one - other for one, other in zip(some, fewer, strict=True)]


@dataclass(slots=True)
class _Import:
    """The files of one mission on their way in."""

    conn: Connection
    legacy: Legacy
    named: Named
    here: Here
    host: str
    by: str
    warnings: Warnings
    ids: dict[int, int] = field(default_factory=dict)  # there -> here
    days: dict[int, date] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)
    folders: dict[int, str] = field(default_factory=dict)

    def run(self) -> tuple[int, int, int, int]:
        """How many files, builds, links and releases are new."""
        mine = [one for one in self.legacy.files.values() if self._product(one) is not None]
        taken = sum(1 for one in self.legacy.files.values() if one.product in self.named.products) - len(mine)
        if taken:
            self.warnings.add(f"{taken} files are of products that this mission has no more; they are left out")
        self.keys = _keys(self.legacy)
        folders = {one.name: os.fsdecode(paths.to_bytes(one.folder)) for one in self.named.mission.products}
        self.folders = {one: folders[name] for one, name in self.named.products.items()}
        legacy_store.hold_files(self.conn)
        new = self._new(mine)
        builds = {one.id: self.legacy.made_by[one.id] for one in new if self._code(one) is not None}
        build_ids = dict(zip(builds, legacy_store.reserve(self.conn, "product_build", len(builds)), strict=True))
        legacy_store.copy_builds(self.conn, (self._build(one, build_ids[one.id]) for one in new if one.id in builds))
        legacy_store.copy_files(self.conn, (self._file(one, build_ids.get(one.id)) for one in new))
        links = legacy_store.copy_links(
            self.conn, ((parent, self.ids[one.id]) for one in new for parent in self._parents(one.id))
        )
        legacy_store.mark_newest(self.conn, self.here.id)
        released = self._releases()
        if new:
            self._settle({one.id for one in new})
        return len(new), len(builds), links, released

    def _product(self, one: LegacyFile) -> int | None:
        return self.here.products.get(self.named.products.get(one.product, ""))

    def _code(self, one: LegacyFile) -> int | None:
        return self.here.codes.get(self.named.codes.get(self.legacy.made_by.get(one.id, 0), ("", Version(1, 0, 0))))

    def _process(self, one: LegacyFile) -> int:
        return self.here.processes[self.named.codes[self.legacy.made_by[one.id]][0]]

    def _parents(self, one: int) -> list[int]:
        """Ids here, ascending."""
        return sorted({self.ids[parent] for parent in self.legacy.parents.get(one, ()) if parent in self.ids})

    def _new(self, mine: Sequence[LegacyFile]) -> list[LegacyFile]:
        """The files that are not here, with days, keys and ids; ids ascend as theirs do, so later stays later."""
        known = legacy_store.files(self.conn, self.here.id)
        by_name = {row[1]: (row[0], row[8]) for row in known}
        taken = {tuple(row[2:8]) for row in known}
        new = []
        for one in mine:
            name = paths.to_text(one.name)
            if name in by_name:
                self.ids[one.id], sha1 = by_name[name]
                if sha1 is not None and one.sha1 is not None and sha1 != one.sha1:
                    self.warnings.add("here is a file of this name with other content; it is kept", name)
                continue
            day = one.day or (one.start.date() if one.start else None)
            if day is None:
                self.warnings.add("no day is known, only mission elapsed time; left out", name)
                continue
            self.days[one.id] = day
            series = (self._product(one), day)
            if (*series, self.keys[one.id], *one.version) in taken:
                self.keys[one.id] = f"{self.keys[one.id]} legacy={one.id}".strip()
                self.warnings.add("another file has this product, day and version, so its key tells them apart", name)
            taken.add((*series, self.keys[one.id], *one.version))
            if one.id in self.legacy.made_by and self._code(one) is None:
                self.warnings.add("the code that made it is not here, so it counts as delivered", name)
            new.append(one)
        ids = legacy_store.reserve(self.conn, "product_file", len(new))
        self.ids |= {one.id: mine for one, mine in zip(new, ids, strict=True)}
        return new

    def _file(self, one: LegacyFile, build: int | None) -> list[Any]:
        """A row for copy_files."""
        day, name = self.days[one.id], paths.to_text(one.name)
        midnight = datetime.combine(day, time())
        start = one.start or midnight
        stop = one.stop or max(start, midnight + timedelta(days=1, microseconds=-1))
        if one.start is None or one.stop is None:
            self.warnings.add("no times are known in UTC; taken as the whole day", name)
        path = self._path(one, day, start.replace(tzinfo=UTC))
        place = _below(path, os.fsdecode(paths.to_bytes(self.here.root)))
        state, size, changed = "removed", None, None
        if one.exists:
            try:
                found = os.stat(path)
                state, size = "present", found.st_size
                changed = datetime.fromtimestamp(found.st_mtime, UTC)
            except OSError:
                state = "missing"
                self.warnings.add("believed to be there, yet not on disk", paths.to_text(path))
        return [
            self.ids[one.id], self.here.id, self._product(one), name, paths.to_text(place), day, self.keys[one.id],
            start.replace(tzinfo=UTC), stop.replace(tzinfo=UTC), *one.version, state, one.sha1, size, changed,
            one.keywords, json.dumps(dict(one.notes)) if one.notes else None,
            self._parents(one.id) if build is not None else None, self._code(one), build, self.host,
        ]  # fmt: skip

    def _path(self, one: LegacyFile, day: date, start: datetime) -> str:
        folder = self.folders[one.product]
        if "{" in folder:
            for name, value in (date_fields(day, start) | {"VERSION": str(one.version)}).items():
                folder = folder.replace(f"{{{name}}}", value)
        return os.path.normpath(os.path.join(self.named.mission.root, folder, one.name))

    def _build(self, one: LegacyFile, build: int) -> list[Any]:
        """A row for copy_builds. dbprocessing keeps no times of a run: the file's own is the nearest."""
        # Its clock was the host's, without a word on the zone: that of this host is taken.
        at = (one.created or datetime.combine(self.days[one.id], time())).astimezone(UTC)
        return [
            build, self._process(one), self._code(one), self.days[one.id], self.keys[one.id], "IMPORTED",
            self._parents(one.id), "imported", one.command.split(), 0, at, at, self.ids[one.id],
            paths.to_text(one.name),
        ]  # fmt: skip

    def _releases(self) -> int:
        """Releases that are not here yet; how many. One that is here never changes."""
        known, count = legacy_store.releases(self.conn, self.here.id), 0
        for name, members in self.legacy.releases.items():
            ids = sorted({self.ids[one] for one in members if one in self.ids})
            if name in known:
                if known[name] != len(ids):
                    self.warnings.add(f"has {known[name]} files here and {len(ids)} there; it stays", f"release {name}")
                continue
            if not ids:
                continue
            manifest = releases.manifest_sha256(legacy_store.release_members(self.conn, ids))
            comment = f"imported from {self.legacy.source}"
            legacy_store.add_release(self.conn, self.here.id, name, ids, comment=comment, by=self.by, manifest=manifest)
            count += 1
        return count

    def _settle(self, new: set[int]) -> None:
        """What dbprocessing held for current is current, but what its queue would have it look at."""
        queued = {one: bump for one, bump in self.legacy.queue.items() if one in self.ids}
        outputs = list(self._of_queue(queued, new))
        but = [self.ids[one] for _, one, _ in outputs]
        planning.settle_imported(self.conn, self.here.id, but=but)
        legacy_store.settle_runs(self.conn, self.here.id, queued=[self.ids[one] for one in queued])
        legacy_store.force(
            self.conn,
            [(self.here.processes[process], self.ids[one], bump) for process, one, bump in outputs if bump is not None],
        )

    def _of_queue(self, queued: Mapping[int, Part | None], new: set[int]) -> Iterator[tuple[str, int, Part | None]]:
        """(process, output there, asked-for bump) of what is made of queued files, where it is new here."""
        readers: dict[int, list[LegacyProcess]] = defaultdict(list)
        for process in self.legacy.processes:
            for link in process.inputs if process.id in self.named.processes else ():
                readers[link.product].append(process)
        made: dict[tuple[int, date], list[int]] = defaultdict(list)
        for one in new if queued else ():
            if one in self.legacy.made_by:
                made[self.legacy.files[one].product, self.days[one]].append(one)
        newest: dict[tuple[int, date | None], Version] = {}
        for file in self.legacy.files.values() if queued else ():
            series = (file.product, file.day)
            newest[series] = max(file.version, newest.get(series, file.version))
        for one, bump in queued.items():
            file = self.legacy.files[one]
            if file.version < newest[file.product, file.day]:
                continue  # dbprocessing takes it off its queue and does nothing
            for process in readers[file.product]:
                for day in _days(file):
                    for output in made.get((process.output or 0, day), ()):
                        if process.timebase != "FILE" or self.keys[output] == self.keys[one]:
                            yield self.named.processes[process.id], output, bump


def _days(file: LegacyFile) -> Iterator[date]:
    """The days for which dbprocessing looks at what is made of a file: those that it covers."""
    first, last = (at.date() if at else file.day for at in (file.start, file.stop))
    if first is not None and last is not None:
        yield from (first + timedelta(days=number) for number in range((last - first).days + 1))


def _keys(legacy: Legacy) -> dict[int, str]:
    """Each file's key as it would be here: keywords of what was delivered; of what was built, that of its slot."""
    processes = {one.id: one for one in legacy.processes}
    found: dict[int, str] = {}
    for one in legacy.files.values():
        code = legacy.codes.get(legacy.made_by.get(one.id, 0))
        process = processes.get(code.process) if code else None
        if process is None:
            found[one.id] = one.keywords
        elif process.timebase != "FILE":
            found[one.id] = ""
        else:
            # The product whose files have an output each: see headrace.product_expected.
            inputs = sorted(process.inputs, key=lambda link: not link.is_required)
            leading = inputs[0].product if inputs else None
            parents = [legacy.files[parent] for parent in legacy.parents.get(one.id, ()) if parent in legacy.files]
            keys = {found.get(parent.id, parent.keywords) for parent in parents if parent.product == leading}
            found[one.id] = keys.pop() if len(keys) == 1 else one.keywords
    return found


def _below(path: str, root: str) -> str:
    """A path as a place: relative where it lies below the root."""
    return path[len(root.rstrip("/")) + 1 :] if path.startswith(root.rstrip("/") + "/") else path
