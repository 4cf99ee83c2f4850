"""Lineage: what a file was made of and by, down to what was delivered, and what was made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products import ask_store
from workers.products.versions import Version


@dataclass(frozen=True, slots=True)
class Code:
    """A version of an executable; `path` in text form, `sha256` as its row has it."""

    id: int
    filename: str
    path: str
    version: Version
    sha256: str | None
    timeout_seconds: float | None
    memory_bytes: int | None
    output_bytes: int | None


@dataclass(frozen=True, slots=True)
class Build:
    """The run of a code that made a file, or made it again with the same bytes. Words and paths in text form."""

    id: int
    process: str
    reason: str
    state: str
    host: str | None
    started_at: datetime
    finished_at: datetime | None
    exit_status: int | None
    command: tuple[str, ...]
    environment: Mapping[str, str]
    inputs: tuple[int, ...]
    scratch: str | None
    output_name: str | None
    code_sha256: str | None
    cpu_seconds: float | None
    peak_bytes: int | None

    @property
    def can_be_repeated(self) -> bool:
        """Whether it was ours: of an imported one only the command's text is known."""
        return self.state != "imported" and bool(self.command)


@dataclass(frozen=True, slots=True)
class Older:
    """The version before a file."""

    id: int
    filename: str
    version: Version
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Node:
    """A file in a lineage. Without a build and a code it was delivered."""

    id: int
    mission: str
    filename: str
    path: str
    product: str
    level: float
    day: date
    key: str
    version: Version
    state: str
    sha256: str | None
    sha1: str | None
    bytes: int | None
    host: str | None
    registered_at: datetime
    build: Build | None
    code: Code | None
    older: Older | None


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a printed tree: `node` is None for a file whose row is gone; a repeated one is not followed again."""

    depth: int
    id: int
    node: Node | None
    is_repeated: bool


@dataclass(frozen=True, slots=True)
class Tree:
    """Files around one, each once: `links` leads from an id to its inputs in their order, or to what was built from it.

    An id in `links` that is not in `nodes` has no row any more: the file was forgotten.
    """

    root: int
    nodes: Mapping[int, Node]
    links: Mapping[int, tuple[int, ...]]

    @property
    def forgotten(self) -> tuple[int, ...]:
        """Ids without a row, ascending."""
        return tuple(sorted(set(self.links) - set(self.nodes)))

    def lines(self) -> Iterator[Line]:
        """The tree as it is printed, from its root; a file that was shown with its links before is only named."""
        seen: set[int] = set()
        waiting = [(0, self.root)]
        while waiting:
            depth, file = waiting.pop()
            below = self.links.get(file, ())
            yield Line(depth, file, self.nodes.get(file), file in seen and bool(below))
            if file not in seen:
                seen.add(file)
                waiting += [(depth + 1, one) for one in reversed(below)]

    def inputs_first(self) -> list[int]:
        """Every id after all that its links lead to. A circle, which no writer makes, is cut where it closes."""
        order: list[int] = []
        seen: set[int] = {self.root}
        path: list[tuple[int, Iterator[int]]] = [(self.root, iter(self.links.get(self.root, ())))]
        while path:
            file, rest = path[-1]
            following = next((one for one in rest if one not in seen), None)
            if following is None:
                order.append(file)
                path.pop()
            else:
                seen.add(following)
                path.append((following, iter(self.links.get(following, ()))))
        return order


def tree(conn: Connection, file: int) -> Tree:
    """What a file was made of: itself, its inputs, theirs, with the builds and codes between them.

    Raises PermanentFailure when no file has this id.
    """
    return _tree(conn, file, ask_store.ancestry(conn, file))


def descendants(conn: Connection, file: int) -> Tree:
    """What was made of a file, directly and further on. Raises PermanentFailure when no file has this id."""
    return _tree(conn, file, ask_store.descent(conn, file))


def find(conn: Connection, text: str) -> list[int]:
    """Ids of the files that a person may mean by a name, a path or an id; paths and names in text form.

    A path is one from `/` on, or below its mission's root. A number is an id, and a name if there is a file of it.
    """
    found: list[int] = []
    if text.isascii() and text.isdigit() and len(text) < 19 and ask_store.is_file(conn, int(text)):
        found.append(int(text))
    for file, root, place in ask_store.named(conn, text.rpartition("/")[2]):
        if ("/" not in text or text in (place, path_of(root, place))) and file not in found:
            found.append(file)
    return found


def path_of(root: str, place: str) -> str:
    """Where a file lies: a place is below the root, or absolute. All in text form."""
    return place if place.startswith("/") else f"{root.rstrip('/')}/{place}"


def _tree(conn: Connection, file: int, links: Mapping[int, tuple[int, ...]]) -> Tree:
    nodes = {row["id"]: _node(row) for row in ask_store.facts(conn, list(links))}
    if file not in nodes:
        raise PermanentFailure(f"there is no file with the id {file}; `headrace products coverage` shows what is there")
    return Tree(file, nodes, links)


def _node(row: Mapping[str, Any]) -> Node:
    same = ("id", "mission", "filename", "product", "level", "day", "key", "state", "sha256", "sha1", "bytes", "host")
    older = None
    if row["older_id"] is not None:
        older = Older(row["older_id"], row["older_filename"], _version(row, "older_"), row["older_sha256"])
    return Node(
        **{name: row[name] for name in same},
        path=path_of(row["root"], row["place"]), version=_version(row, ""), registered_at=row["registered_at"],
        build=_build(row) if row["build_id"] is not None else None,
        code=_code(row) if row["code_id"] is not None else None,
        older=older,
    )  # fmt: skip


def _build(row: Mapping[str, Any]) -> Build:
    same = (
        "process", "reason", "started_at", "finished_at", "exit_status", "scratch", "output_name", "code_sha256",
        "cpu_seconds", "peak_bytes",
    )  # fmt: skip
    return Build(
        **{name: row[name] for name in same},
        id=row["build_id"], state=row["build_state"], host=row["build_host"], command=tuple(row["command"]),
        environment={name: str(value) for name, value in row["environment"].items()},
        inputs=tuple(row["build_inputs"]),
    )  # fmt: skip


def _code(row: Mapping[str, Any]) -> Code:
    folder = path_of(row["codes"], row["code_folder"]) if row["code_folder"] else row["codes"]
    return Code(
        id=row["code_id"], filename=row["code_filename"], path=path_of(folder, row["code_filename"]),
        version=_version(row, "code_"), sha256=row["code_row_sha256"], timeout_seconds=row["timeout_seconds"],
        memory_bytes=row["memory_bytes"], output_bytes=row["output_bytes"],
    )  # fmt: skip


def _version(row: Mapping[str, Any], prefix: str) -> Version:
    return Version(row[f"{prefix}interface"], row[f"{prefix}quality"], row[f"{prefix}revision"])
