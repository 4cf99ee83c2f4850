"""Publishing an output: checked, hashed, brought to its place, and registered with all that it was made of."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from workers import logs, paths
from workers.database import Connection, DatabaseError, sqlstate
from workers.errors import PermanentFailure
from workers.products import build_store, failing, identifying, places, placing, planning, running, store
from workers.products.failing import Making
from workers.products.identify import Identity
from workers.products.identifying import Identifier, Refusal
from workers.products.plan_store import Pending
from workers.products.running import Outcome
from workers.products.store import NewFile
from workers.products.versions import Version

__all__ = ["Making", "Refused", "publish"]

log = logs.get(__name__)

_UNIQUE_VIOLATION = "23505"


class Refused(Exception):
    """What a code left cannot be published; `kind` says why in a word."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def publish(
    conn: Connection, making: Making, outcome: Outcome, identifier: Identifier, host: str
) -> Literal["succeeded", "unchanged"] | None:
    """Bring the output of a run that ended well to its place; None when somebody else has ended this build.

    Equal bytes make no new version where the mission says so: then the file that is there is confirmed, and nothing
    that was built from it is stale. Raises Refused for an output that is missing, damaged or of another product.
    """
    if making.product is None:
        return _registered(conn, making, outcome, None)
    assert making.name is not None
    path = os.path.join(making.scratch, paths.to_bytes(making.name))
    _check(path, making)
    top = making.top
    if _is_written(path):
        running.kill_survivors([making.token])  # it left the code's session: of a quick code nobody has looked for that
    content = placing.read_content(path, with_sha1=top is not None and top.sha256 is None)
    is_same = top is not None and (
        content.sha256 == top.sha256 if top.sha256 is not None else top.sha1 is not None and content.sha1 == top.sha1
    )
    if top is not None and is_same and not making.is_forced and (top.state != "present" or making.process.cut_off):
        return _confirmed(conn, making, outcome, path, content)
    version = making.version
    if top is not None and top.version == version:
        version = version.bumped("quality")  # it was to take the place of a damaged one, and is another
    return _placed(conn, making, outcome, identifier, host, path, content, version)


def _check(path: bytes, making: Making) -> None:
    assert making.product is not None
    try:
        facts = os.lstat(path)
    except FileNotFoundError:
        there = sorted(paths.to_text(name) for name in os.listdir(making.scratch))[:5]
        beside = f"; it left {', '.join(there)}" if there else ""
        raise Refused("no_output", f"it ended well, but wrote no {making.name}{beside}") from None
    if not stat.S_ISREG(facts.st_mode):
        raise Refused("no_output", f"its output {making.name} is no regular file")
    refusal = identifying.incomplete(path, making.product)
    if refusal is not None:
        raise Refused("bad_output", f"its output {making.name} is not whole: {refusal.message}")


def _is_written(path: bytes) -> bool:
    """Whether a process has a file open for writing; also where the file system cannot tell."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)  # the kernel gives it only if there is none
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _confirmed(
    conn: Connection, making: Making, outcome: Outcome, path: bytes, content: placing.Content
) -> Literal["unchanged"] | None:
    top = making.top
    assert top is not None
    final = making.mission.path(top.place)
    if top.state != "present" or not os.path.isfile(final):  # it may have been deleted unnoticed: here are its bytes
        _into_place(path, final)
    build_store.confirm_file(
        conn, top.id, inputs=making.step.slot.inputs, code=making.code.id, build=making.build, sha256=content.sha256,
        size=content.bytes,
    )  # fmt: skip
    if _ended(conn, making, outcome, "unchanged", output=top.id, output_name=top.filename):
        return "unchanged"
    return None


def _placed(
    conn: Connection, making: Making, outcome: Outcome, identifier: Identifier, host: str, path: bytes,
    content: placing.Content, version: Version,
) -> Literal["succeeded"] | None:  # fmt: skip
    product = making.product
    assert product is not None and making.name is not None
    slot = making.slot
    name = making.name
    if version != making.version:
        try:
            name = places.name_of(
                product, day=slot.day, start_at=slot.start_at, version=version, keywords=making.keywords
            )
        except PermanentFailure as error:
            raise Refused("definition", str(error)) from error
    identity = identifier.as_product(path, name, product.id)
    if isinstance(identity, Refusal):
        raise Refused("not_the_product", f"its output: {identity.message}")
    if identity.day != slot.day:
        raise Refused("not_the_product", f"its output is of {identity.day}, not of {slot.day}")
    place = places.place_of(
        product, name, day=slot.day, start_at=identity.start_at, version=version,
        keywords=identity.keywords or " ".join(f"{key}={value}" for key, value in making.keywords.items()),
    )  # fmt: skip
    final = making.mission.path(place)
    row = _row(making, identity, version, name, place, content, host, path, final)
    if os.path.lexists(final) and not _is(final, content):
        raise Refused("place_taken", f"{paths.to_text(final)} is there with other content, and unknown; move it away")
    if not build_store.hold_build(conn, making.build):
        conn.rollback()
        return None
    try:
        file = store.begin_placing(conn, row)
    except DatabaseError as error:
        if sqlstate(error) != _UNIQUE_VIOLATION:
            raise
        conn.rollback()
        raise Refused(
            "name_taken", f"{name}: its name or version is taken by another file: {str(error).splitlines()[-1]}"
        ) from error
    conn.commit()
    try:
        _into_place(path, final)
    except Refused:
        store.not_placed(conn, file)
        conn.commit()
        raise
    if not store.placed(conn, [file]):
        conn.rollback()
        return None
    build_store.link(conn, file, making.step.slot.inputs)
    return "succeeded" if _ended(conn, making, outcome, "succeeded", output=file, output_name=name) else None


def _row(
    making: Making, identity: Identity, version: Version, name: str, place: str, content: placing.Content, host: str,
    path: bytes, final: bytes,
) -> NewFile:  # fmt: skip
    notes: Mapping[str, Any] | None = identity.notes
    start_at, stop_at = identity.start_at, identity.stop_at
    if making.process.timebase in ("WEEKLY", "ORBIT") and making.product and making.product.inspector is None:
        start_at, stop_at = making.slot.start_at, making.slot.stop_at  # no name tells these periods
    return NewFile(
        mission=making.mission.id, product=identity.product_id, filename=name, place=place, day=making.slot.day,
        key=making.slot.key, start_at=start_at, stop_at=stop_at, version=version, sha256=content.sha256,
        bytes=content.bytes, modified_at=datetime.fromtimestamp(content.modified, UTC), host=host,
        source=paths.to_text(path), temporary=paths.to_text(placing.temporary_of(final)),
        keywords=identity.keywords or making.slot.key, notes=notes, inputs=making.step.slot.inputs, code=making.code.id,
        build=making.build, is_forced=making.is_forced,
    )  # fmt: skip


def _registered(conn: Connection, making: Making, outcome: Outcome, output: int | None) -> Literal["succeeded"] | None:
    return "succeeded" if _ended(conn, making, outcome, "succeeded", output=output) else None


def _ended(conn: Connection, making: Making, outcome: Outcome, state: str, **facts: Any) -> bool:
    """The one transaction that ends a build: file, lineage, slot. False when it was ended by others."""
    slot = making.slot
    if not build_store.end_build(conn, making.build, state, **failing.facts_of(outcome), **facts):
        conn.rollback()
        log.warning("build.ended_by_others", build=making.build)
        return False
    build_store.slot_done(conn, slot, inputs=making.step.slot.inputs, code=making.code.id, build=making.build)
    if making.code.sha256 is None and making.code_sha256 is not None:
        build_store.code_was_read(conn, making.code.id, making.code_sha256)
    if slot.failures:
        failing.tell(conn, making, "recovery", "built again")
    conn.commit()
    if making.process.output_product is not None:
        changed = [Pending(making.process.output_product, slot.day, slot.key, slot.start_at, slot.stop_at)]
        planning.mark_after(
            conn, making.mission, changed, processes=making.graph,
            priority=build_store.inherited(slot, making.process.priority),
        )  # fmt: skip
    log.info("build.done", build=making.build, what=making.title, state=state)
    return True


def _into_place(path: bytes, final: bytes) -> None:
    try:
        placing.make_folder(os.path.dirname(final))
        placing.move(path, placing.temporary_of(final), final, replace=True)
        placing.sync_folders([os.path.dirname(final)])
    except placing.NoRoom as error:
        raise Refused("no_space", str(error)) from error
    except (PermanentFailure, OSError) as error:
        raise Refused("place", str(error)) from error


def _is(final: bytes, content: placing.Content) -> bool:
    return os.path.isfile(final) and placing.read_content(final).sha256 == content.sha256
