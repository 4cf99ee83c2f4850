"""Taking files in: what has settled in an incoming folder is identified, checked, hashed, and comes to its place.

A file's place and its row cannot share a transaction. So a row `placing` with both paths and the hash is committed
first, then the bytes are moved durably, then the row becomes `present`. One process at a time holds an incoming
folder, so whoever finds a row `placing` there knows that its writer is dead, and finishes or undoes it by the hash.
"""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from workers import logs, paths, runs
from workers.database import Connection
from workers.errors import NothingToDo, PermanentFailure
from workers.messages import IngestIncoming, Message
from workers.products import (
    identifying,
    incoming,
    lanes,
    places,
    placing,
    plan_store,
    planning,
    quarantine,
    recovery,
    room,
    store,
)
from workers.products.identify import Identity
from workers.products.identifying import Identifier, Refusal
from workers.products.incoming import Arrival
from workers.products.plan_store import Mission, Pending
from workers.products.store import Known, NewFile, Product
from workers.products.versions import Version
from workers.runs import Run
from workers.settings import Settings

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file that may come in: what it is and what it holds. `adopted` lies in its place already."""

    arrival: Arrival
    identity: Identity
    product: Product
    content: placing.Content
    source: bytes
    adopted: str | None


def ingest(message: IngestIncoming, settings: Settings) -> list[Message]:
    """Take in what has settled in a mission's incoming folder; messages for what can be built now.

    Raises NothingToDo when somebody else is at it or nothing lies there, placing.NoRoom when a disk is full.
    """
    with room.connection(settings, purpose="ingest") as conn:
        mission = plan_store.mission(conn, message.mission)
        if not mission.is_seen_by(settings.host):
            raise NothingToDo(f"mission {mission.name} has its files on {', '.join(mission.hosts)}")
        with store.folder(conn, mission.incoming) as is_ours:
            if not is_ours:
                raise NothingToDo(f"another process takes in the files of {mission.incoming}")
            return _Ingest(conn, mission, settings, message).run()


class _Ingest:
    """One look at one folder, and what comes of it."""

    def __init__(self, conn: Connection, mission: Mission, settings: Settings, message: IngestIncoming) -> None:
        self.conn, self.mission, self.settings, self.message = conn, mission, settings, message
        self.host, self.rules = settings.host, settings.products
        self.products = store.products(conn, mission.id)
        self.identifier: Identifier = identifying.identifier(
            mission, self.products, inspector_seconds=self.rules.inspector_seconds
        )
        self.markers = sorted({one.marker for one in self.products if one.marker})
        conn.commit()

    def run(self) -> list[Message]:
        recovered = recovery.recover(self.conn, self.mission, self.host)
        quarantine.finish(self.conn, self.mission, self.host)
        look = self._look()
        if self.message.run is not None and look.growing:
            # A person waits: files that have been quiet so far get the time to prove it, once.
            time.sleep(self.rules.settle_seconds + 0.1)
            look = self._look()
        if not look.settled and self.message.run is None and not recovered:
            raise NothingToDo(f"nothing has settled in {self.mission.incoming}")
        with runs.running(
            self.message, control=self.settings.target(), work=room.target(self.settings), conn=self.conn,
            host=self.host,
        ) as run:  # fmt: skip
            self.conn.rollback()
            run.count(open=len(look.growing), ignored=len(look.ignored))
            began = time.monotonic()
            for batch in _batches(look.settled, self.rules.batch_files):
                run.check()
                self._take(batch, run)
                if time.monotonic() - began > self.rules.slice_seconds and self.message.run is None:
                    break
        follow_up: list[Message] = lanes.wake(self.conn, self.settings) if self.message.then_build else []
        self.conn.commit()
        return follow_up

    def _look(self) -> incoming.Look:
        settle = timedelta(seconds=self.rules.settle_seconds)
        try:
            look = incoming.look(self.conn, self.host, self.mission.incoming, settle=settle, markers=self.markers)
        except FileNotFoundError:
            self.conn.rollback()
            placing.make_folder(paths.to_bytes(self.mission.incoming))
            return incoming.Look([], [], [])
        except OSError as error:
            raise PermanentFailure(
                f"{self.mission.incoming}: {error.strerror}; check its owner, mode and mount"
            ) from error
        self.conn.commit()
        return look

    def _take(self, arrivals: Sequence[Arrival], run: Run) -> None:
        """Take a batch in; each file ends in its place, in quarantine, dropped as a copy, or stays with its reason."""
        candidates = []
        for arrival in arrivals:
            try:
                found = self._candidate(arrival)
            except (placing.Changed, FileNotFoundError):
                continue  # it is being written again, or was taken away: the next look sees it
            except OSError as error:
                self._leave(arrival, f"cannot be read: {error.strerror}; check its owner and mode", run)
                continue
            if isinstance(found, Refusal):
                self._quarantine(arrival, found, None, run)
            elif found is not None:
                candidates.append(found)
        accepted = self._without_conflicts(candidates, run)
        if accepted:
            self._place(accepted, run)

    def _candidate(self, arrival: Arrival) -> _Candidate | Refusal | None:
        """What a file is and holds; None if it waits for its marker."""
        source, adopted = arrival.path, None
        if arrival.is_link:
            if not os.path.isfile(arrival.path):
                return Refusal(
                    "dangling", f"a symbolic link to {paths.to_text(os.readlink(arrival.path))}, which is no file"
                )
            source = os.path.realpath(arrival.path)
            adopted = places.below(self.mission.root, source)
            if adopted is not None and places.below(self.mission.incoming, source) is not None:
                adopted = None
        identity = self.identifier.identify(arrival.path, arrival.name)
        if isinstance(identity, Refusal):
            return identity
        product = self.identifier.products[identity.product_id]
        if product.marker and not os.path.lexists(arrival.path + paths.to_bytes(product.marker)):
            return None
        if (refusal := identifying.incomplete(source, product)) is not None:
            return refusal
        content = placing.read_content(source)
        if not incoming.is_same(arrival):
            raise placing.Changed(arrival.text)
        return _Candidate(arrival, identity, product, content, source, adopted)

    def _without_conflicts(self, candidates: Sequence[_Candidate], run: Run) -> list[_Candidate]:
        """Those that are new; copies are dropped, contradictions quarantined, what was missed is put back."""
        known = store.known_names(self.conn, self.mission.id, [one.arrival.name for one in candidates])
        taken = store.known_versions(self.conn, [_version_of(one.identity) for one in candidates])
        self.conn.commit()
        accepted: list[_Candidate] = []
        for one in candidates:
            row = known.get(one.arrival.name)
            if row is not None:
                try:
                    self._known_name(one, row, run)
                except (placing.NoRoom, PermanentFailure, OSError) as error:
                    self._leave(one.arrival, str(error), run)
                continue
            other = taken.get(_version_of(one.identity))
            if other is not None:
                self._quarantine(
                    one.arrival,
                    Refusal(
                        "version_conflict",
                        f"{one.product.name} of {one.identity.day} has version {one.identity.version} already, as"
                        f" {other}; give it a higher version", (other,),
                    ),
                    one.content, run,
                )  # fmt: skip
                continue
            taken[_version_of(one.identity)] = one.arrival.name
            accepted.append(one)
        return accepted

    def _known_name(self, one: _Candidate, row: Known, run: Run) -> None:
        is_equal = row.sha256 == one.content.sha256
        if row.sha256 is None and row.sha1 is not None:
            is_equal = placing.read_content(one.source, with_sha1=True).sha1 == row.sha1
        if not is_equal:
            self._quarantine(
                one.arrival,
                Refusal(
                    "content_conflict",
                    f"{one.arrival.name} is known with other content: sha256 {row.sha256 or row.sha1} there,"
                    f" {one.content.sha256} here; give it a higher version", (row.filename,),
                ),
                one.content, run,
            )  # fmt: skip
            return
        if row.state == "placing":
            # Its writer may be dead, and this the only copy: who settles that row decides what this one is.
            self._leave(one.arrival, "a file of this name is being placed", run)
            return
        final = self.mission.path(row.place)
        is_there = self._is_ours(final, one)
        if row.state != "present" or not is_there:
            if not is_there:
                placing.make_folder(os.path.dirname(final))
                if one.arrival.is_link:
                    placing.copy(one.source, placing.temporary_of(final), final, replace=True)
                else:
                    placing.move(one.arrival.path, placing.temporary_of(final), final, replace=True)
                placing.sync_folders([os.path.dirname(final)])
            store.found_again(self.conn, row.id, one.content.sha256)
            self.conn.commit()
            placing.remove(one.arrival.path)
            self._mark([Pending(row.product, row.day, row.key, row.start_at, row.stop_at)])
            run.count(restored=1)
        else:
            placing.remove(one.arrival.path)
            run.count(duplicates=1)
        self._done([one])
        self.conn.commit()

    def _place(self, accepted: Sequence[_Candidate], run: Run) -> None:
        ready = [(one, place) for one in accepted if (place := self._free_place(one, run)) is not None]
        rows: dict[int, tuple[_Candidate, bytes]] = {}
        finals = [self.mission.path(place) for _, place in ready]
        files = [self._row(one, place, final) for (one, place), final in zip(ready, finals, strict=True)]
        for (one, _), final, file in zip(ready, finals, store.begin_placing_all(self.conn, files), strict=True):
            rows[file] = (one, final)
        self.conn.commit()
        durable = placing.sync_files(
            one.arrival.path for one, _ in rows.values() if one.adopted is None and not one.arrival.is_link
        )
        moved = [file for file, (one, final) in rows.items() if self._moved(file, one, final, durable, run)]
        placing.sync_folders({os.path.dirname(rows[file][1]) for file in moved})
        present = [rows[file][0] for file in store.placed(self.conn, moved)]
        self._done(present)
        self.conn.commit()
        self._mark(
            [
                Pending(one.product.id, one.identity.day, one.identity.key, one.identity.start_at, one.identity.stop_at)
                for one in present
            ]
        )
        for product, count in Counter(one.product.name for one in present).items():
            log.info("files.ingested", mission=self.mission.name, product=product, files=count)
        run.count(files=len(present), bytes=sum(one.content.bytes for one in present))

    def _free_place(self, one: _Candidate, run: Run) -> str | None:
        """Where a file belongs; None if it cannot go there and is in quarantine therefore."""
        try:
            place = one.adopted or places.place_of(
                one.product, one.arrival.name, day=one.identity.day, start_at=one.identity.start_at,
                version=one.identity.version, keywords=one.identity.keywords,
            )  # fmt: skip
        except PermanentFailure as error:
            self._quarantine(one.arrival, Refusal("no_place", str(error)), one.content, run)
            return None
        final = self.mission.path(place)
        if one.adopted is None and os.path.lexists(final) and not self._is_ours(final, one):
            message = f"{paths.to_text(final)} is there with other content, and unknown; move it away"
            self._quarantine(one.arrival, Refusal("place_taken", message), one.content, run)
            return None
        return place

    def _row(self, one: _Candidate, place: str, final: bytes) -> NewFile:
        identity = one.identity
        return NewFile(
            mission=self.mission.id, product=one.product.id, filename=one.arrival.name, place=place, day=identity.day,
            key=identity.key, start_at=identity.start_at, stop_at=identity.stop_at, version=identity.version,
            sha256=one.content.sha256, bytes=one.content.bytes,
            modified_at=datetime.fromtimestamp(one.content.modified, UTC), host=self.host, source=one.arrival.text,
            temporary=paths.to_text(placing.temporary_of(final)), keywords=identity.keywords, notes=identity.notes,
        )  # fmt: skip

    def _moved(self, file: int, one: _Candidate, final: bytes, durable: Collection[bytes], run: Run) -> bool:
        """Bring one file's bytes to its place; if that cannot be, its row is taken back and it stays where it came."""
        temporary = placing.temporary_of(final)
        try:
            if not incoming.is_same(one.arrival):
                raise FileNotFoundError(errno.ENOENT, "it was replaced since it was read")
            if one.adopted is not None:
                placing.remove(one.arrival.path)
                return True
            placing.make_folder(os.path.dirname(final))
            if one.arrival.is_link:
                if not os.path.lexists(final):
                    placing.copy(one.source, temporary, final)
                placing.remove(one.arrival.path)
            else:
                placing.move(one.arrival.path, temporary, final, replace=True, is_durable=one.arrival.path in durable)
                facts = os.lstat(final)
                if (facts.st_size, facts.st_mtime) != (one.content.bytes, one.content.modified):
                    placing.move(final, temporary, one.arrival.path)
                    raise FileNotFoundError(errno.ENOENT, "it was replaced while it was moved")
        except (placing.NoRoom, PermanentFailure, OSError) as error:
            store.not_placed(self.conn, file)
            self._leave(one.arrival, str(error), run)
            return False
        return True

    def _leave(self, arrival: Arrival, problem: str, run: Run) -> None:
        """It stays in the incoming folder, with the reason; the next look tries again."""
        store.note_arrival(
            self.conn, self.host, arrival.text, size=arrival.bytes, changed_ns=arrival.changed_ns, problem=problem
        )
        self.conn.commit()
        run.problems.append(f"{arrival.text}: {problem}")
        run.count(waiting=1)

    def _quarantine(self, arrival: Arrival, refusal: Refusal, content: placing.Content | None, run: Run) -> None:
        self.conn.rollback()
        try:
            quarantine.put(self.conn, self.mission, self.host, arrival.path, refusal, content)
        except (placing.NoRoom, PermanentFailure, OSError) as error:
            self._leave(arrival, f"{refusal.message}; it cannot be moved aside: {error}", run)
            return
        store.forget_arrivals(self.conn, self.host, [arrival.text])
        self.conn.commit()
        run.problems.append(f"{arrival.name} is in quarantine: {refusal.message}")
        run.count(quarantined=1)

    def _is_ours(self, final: bytes, one: _Candidate) -> bool:
        return os.path.isfile(final) and placing.read_content(final).sha256 == one.content.sha256

    def _mark(self, changed: list[Pending]) -> None:
        """What can be built of these is due."""
        planning.mark_after(self.conn, self.mission, changed)

    def _done(self, files: Sequence[_Candidate]) -> None:
        store.forget_arrivals(self.conn, self.host, [one.arrival.text for one in files])
        for one in files:
            if one.product.marker:
                placing.remove(one.arrival.path + paths.to_bytes(one.product.marker))


def _version_of(identity: Identity) -> tuple[int, date, str, Version]:
    return (identity.product_id, identity.day, identity.key, identity.version)


def _batches(arrivals: Sequence[Arrival], size: int) -> Iterator[Sequence[Arrival]]:
    for first in range(0, len(arrivals), size):
        yield arrivals[first : first + size]
