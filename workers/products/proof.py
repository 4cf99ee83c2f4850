"""Building a file anew from what was delivered, in a folder of its own, and comparing each hash with its record."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol
from uuid import uuid4

from workers import paths
from workers.errors import Cancelled, PermanentFailure
from workers.products import running
from workers.products.provenance import Build, Node, Tree

LOG_BYTES = 16_000


@dataclass(frozen=True, slots=True)
class Step:
    """One link of the chain. `problem` is a sentence unless it is `equal`; `untried`: something before it is broken."""

    kind: Literal["raw", "build"]
    file: int
    filename: str
    result: Literal["equal", "differs", "gone", "failed", "untried"]
    problem: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of each link; `folder` holds what was built, and is None when it was removed because all is equal."""

    file: int
    filename: str
    steps: tuple[Step, ...]
    folder: Path | None

    @property
    def is_proven(self) -> bool:
        """Whether every file came out with the recorded bytes."""
        return all(step.result == "equal" for step in self.steps)

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each link that is gone, differs or failed."""
        return tuple(step.problem for step in self.steps if step.problem is not None)


class Source(Protocol):
    """Where delivered files and codes come from: the disk, or a bundle. Both raise PermanentFailure or OSError."""

    def copy_raw(self, node: Node, target: Path) -> None:
        """Put the bytes of a file that is not built anew to `target`."""

    def executable(self, node: Node, folder: Path) -> Path:
        """The code that made a file; `folder` exists, and may be used to unpack it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for codes that declare nothing themselves."""

    timeout_seconds: float | None = None
    memory_bytes: int | None = None
    output_bytes: int | None = None


def chain(tree: Tree) -> list[tuple[int, bool]]:
    """(file, whether it is built anew) for all that a proof needs, inputs first.

    What an imported build made is taken as it is, like a delivered file; then its inputs are not needed.
    """
    links = {file: ends if is_rebuilt(tree.nodes.get(file)) else () for file, ends in tree.links.items()}
    return [(file, is_rebuilt(tree.nodes.get(file))) for file in Tree(tree.root, tree.nodes, links).inputs_first()]


def is_rebuilt(node: Node | None) -> bool:
    """Whether a file can be made again, as its build and code are known."""
    return node is not None and node.build is not None and node.build.can_be_repeated and node.code is not None


def prove(
    tree: Tree, source: Source, scratch: Path, *, limits: Limits, cancelled: Callable[[], str | None] = lambda: None
) -> Verdict:
    """Take every delivered file, run every build in order, compare every hash.

    Works in a new folder below `scratch`, which goes away when all is equal. A broken link does not end it: what
    does not depend on it is still tried. `cancelled` is asked while codes run: an answer ends it, with Cancelled.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="proof-", dir=scratch)).resolve()
    attempt = _Attempt(tree, source, folder, limits, cancelled)
    try:
        steps = tuple(attempt.step(file, is_build) for file, is_build in chain(tree))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    verdict = Verdict(tree.root, tree.nodes[tree.root].filename, steps, folder)
    if verdict.is_proven:
        shutil.rmtree(folder)
        return Verdict(verdict.file, verdict.filename, steps, None)
    return verdict


def difference(node: Node, path: Path) -> str | None:
    """How a file's bytes differ from the recorded ones, or None. One that was imported may have a sha1 only."""
    kind, recorded = ("sha256", node.sha256) if node.sha256 else ("sha1", node.sha1)
    if recorded is None:
        return f"{node.filename}: no hash is recorded; `headrace products fsck --deep --fix` records it"
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, kind).hexdigest()
    return None if found == recorded else f"{node.filename}: {kind} is {found}, but recorded is {recorded}"


def code_difference(node: Node, path: Path) -> str | None:
    """How an executable differs from the one that made a file, or None, also if no hash was recorded."""
    assert node.build is not None and node.code is not None
    recorded = node.build.code_sha256 or node.code.sha256
    if recorded is None:
        return None
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    code = node.code
    return None if found == recorded else (
        f"{node.filename}: was made by {code.filename} {code.version} with sha256 {recorded}, but it is {found} now"
    )  # fmt: skip


@dataclass(slots=True)
class _Attempt:
    tree: Tree
    source: Source
    folder: Path
    limits: Limits
    cancelled: Callable[[], str | None]
    made: dict[int, Path] = field(default_factory=dict)

    def step(self, file: int, is_build: bool) -> Step:
        """One file: taken or built, then compared; only one that is equal is used further on."""
        node, kind = self.tree.nodes.get(file), "build" if is_build else "raw"
        if node is None:
            name = f"file {file}"
            return Step("raw", file, name, "gone", f"{name} was forgotten: nothing says any more what it was")
        broken = [one for one in self.tree.links[file] if one not in self.made] if is_build else []
        if broken:
            return Step("build", file, node.filename, "untried", None)
        target = self.folder / "files" / str(file) / native(node.filename)
        target.parent.mkdir(parents=True)
        try:
            if is_build:
                result, problem = self._build(node, target)
            else:
                self.source.copy_raw(node, target)
                problem = difference(node, target)
                result = "equal" if problem is None else "differs"
        except FileNotFoundError as error:
            result, problem = "gone", f"{node.filename}: {self._state(node)}there is no {_text(error.filename)}"
        except (PermanentFailure, OSError) as error:
            result, problem = "failed", f"{node.filename}: {error}"
        if result == "equal":
            self.made[file] = target
        return Step(kind, file, node.filename, result, problem)  # type: ignore[arg-type]

    def _build(self, node: Node, target: Path) -> tuple[str, str | None]:
        build, code = node.build, node.code
        assert build is not None and code is not None
        folder, unpacked = self.folder / "builds" / str(node.id), self.folder / "codes" / str(node.id)
        folder.mkdir(parents=True)
        unpacked.mkdir(parents=True)
        executable = self.source.executable(node, unpacked)
        if problem := code_difference(node, executable):
            return "differs", problem
        outputs = [folder / native(name) for name in output_names(build, node) if "/" not in name]
        words = mapped(build, self._places(node, executable, outputs[0], folder))
        order = running.Order(
            argv=tuple(words[0]), folder=folder, environment=words[1], token=f"proof-{uuid4().hex}",
            timeout_seconds=code.timeout_seconds or self.limits.timeout_seconds,
            memory_bytes=code.memory_bytes or self.limits.memory_bytes,
            output_bytes=code.output_bytes or self.limits.output_bytes, log_bytes=LOG_BYTES,
        )  # fmt: skip
        outcome = running.run(order, started=lambda group, ticks: None, cancelled=self.cancelled)
        if outcome.kind == "cancelled":
            raise Cancelled(f"the proof of {self.tree.nodes[self.tree.root].filename} was ended: {outcome.problem}")
        if outcome.kind is not None:
            return "failed", f"{node.filename}: {outcome.problem}"
        output = next((one for one in outputs if one.is_file()), None)
        if output is None:
            return "failed", f"{node.filename}: {code.filename} ended well, but wrote no {_text(outputs[0].name)}"
        output.rename(target)
        problem = difference(node, target)
        return ("equal", None) if problem is None else ("differs", problem)

    def _places(self, node: Node, executable: Path, output: Path, folder: Path) -> dict[str, str]:
        """Paths as the command had them, in text form, and where the same things are now."""
        build, code = node.build, node.code
        assert build is not None and code is not None
        places = {self.tree.nodes[one].path: _text(self.made[one]) for one in self.tree.links[node.id]}
        places |= {code.path: _text(executable), node.path: _text(output)}
        if build.command[0].startswith("/"):
            places[build.command[0]] = _text(executable)
        # Where a mission has moved since, its old paths are known by the names of files, which are unique in it.
        names = {path.rpartition("/")[2]: new for path, new in places.items()}
        if build.scratch:
            places[build.scratch.rstrip("/")] = _text(folder)
        for word in build.command[1:]:
            if word.startswith("/") and (new := names.get(word.rpartition("/")[2])):
                places.setdefault(word, new)
        return places

    def _state(self, node: Node) -> str:
        return "" if node.state == "present" else f"its row says {node.state}, and "


def mapped(build: Build, places: Mapping[str, str]) -> tuple[list[bytes], dict[str, str]]:
    """A build's words and environment with its paths replaced, also within words: `-I{INPUT}`, `--in={INPUTS}`."""
    longest_first = sorted(places, key=len, reverse=True)
    # A longer name that begins like a known path is another file.
    known = re.compile("(" + "|".join(map(re.escape, longest_first)) + r""")(?=$|[\s,:;/'")\]}])""")

    def replaced(text: str) -> bytes:
        return paths.to_bytes(known.sub(lambda found: places[found[1]], text))

    return (
        [replaced(word) for word in build.command],
        {name: os.fsdecode(replaced(value)) for name, value in build.environment.items()},
    )


def output_names(build: Build, node: Node) -> list[str]:
    """What the output may be called in the scratch folder, likeliest first.

    A build that changed nothing wrote under the name of a version that was then not made: only its command says it.
    """
    names = [build.output_name or node.filename]
    if build.scratch:
        folder = build.scratch.rstrip("/") + "/"
        names += [word.partition(folder)[2] for word in reversed(build.command) if folder in word]
    return names


def native(name: str) -> str:
    """A file's name as Python's functions take it. Raises PermanentFailure for one that leads to another folder."""
    if "/" in name or name in ("", ".", ".."):
        raise PermanentFailure(f"{name!r} is no name of a file; the lineage was changed by somebody")
    return os.fsdecode(paths.to_bytes(name))


def _text(path: Path | str | bytes | None) -> str:
    return paths.to_text(os.fsencode(path)) if path is not None else "file"
