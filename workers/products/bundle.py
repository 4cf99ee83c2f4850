"""A bundle: one tar file with all that it takes to build a file anew elsewhere, and to check that it is the same."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter, ValidationError

from workers import paths
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products import proof, prov_json
from workers.products.proof import Limits, Verdict
from workers.products.provenance import Node, Tree, tree

FORMAT = "headrace bundle 1"
_TREE = TypeAdapter(Tree)
_README = """This archive proves how {filename} was made.

  manifest.json  every file that it comes from with its sha256; every build with its command, its inputs in their
                 order, its environment, its host and times; every code with its version and sha256
  prov.json      the same as a W3C PROV-JSON document
  files/ID/NAME  the {raw} delivered files that it comes from, byte for byte
  codes/ID/NAME  the {codes} executables that made the files in between

What is in between is not here: it is built anew, step by step, and each file's sha256 is compared with the recorded:

  headrace products provenance --verify THIS_FILE

The codes are run to do that: do it where you would run them otherwise. What they need beside their one file (an
interpreter, libraries, calibration tables elsewhere) is not here.
"""


def write(conn: Connection, file: int, target: Path) -> Path:
    """Write the bundle of a file; `target` is a folder, or the name of a .tar or .tar.gz. Says where it is.

    Every delivered file and code is compared with its recorded hash while it is copied. Raises PermanentFailure
    that names each one that is gone or differs; then nothing is left behind.
    """
    lineage = tree(conn, file)
    if target.is_dir():
        target = target / f"{proof.native(lineage.nodes[file].filename)}.bundle.tar"
    members, problems = _members(lineage)
    if problems:
        raise PermanentFailure(f"{lineage.nodes[file].filename} cannot be proven any more: " + "; ".join(problems))
    descriptor, name = tempfile.mkstemp(prefix=".bundle-", dir=target.parent)
    try:
        with os.fdopen(descriptor, "w+b") as raw:
            is_small = target.name.endswith((".gz", ".tgz"))
            with tarfile.open(fileobj=raw, mode="w:gz" if is_small else "w", format=tarfile.PAX_FORMAT) as tar:
                _fill(tar, lineage, members)
            raw.flush()
            os.fsync(raw.fileno())
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    return target


def verify(
    bundle: Path,
    scratch: Path,
    *,
    limits: Limits | None = None,
    cancelled: Callable[[], str | None] = lambda: None,
) -> Verdict:
    """Build all that a bundle describes below `scratch`, and compare. Its codes are run: trust where it comes from.

    Raises PermanentFailure for what is no bundle.
    """
    with _opened(bundle) as tar:
        lineage, members = _manifest(bundle, tar)
        source = _Packed(tar, members)
        return proof.prove(lineage, source, scratch, limits=limits or Limits(), cancelled=cancelled)


def verify_file(
    conn: Connection,
    file: int,
    scratch: Path,
    *,
    limits: Limits | None = None,
    cancelled: Callable[[], str | None] = lambda: None,
) -> Verdict:
    """Build a file anew below `scratch` from the delivered files and codes that lie on disk here, and compare.

    Codes are run where they are, so that what lies beside them is found. Ends the transaction first: it may take
    long. Raises PermanentFailure when no file has this id.
    """
    lineage = tree(conn, file)
    if not conn.autocommit:
        conn.rollback()
    return proof.prove(lineage, _OnDisk(), scratch, limits=limits or Limits(), cancelled=cancelled)


class _OnDisk:
    """The files of the mission itself."""

    def copy_raw(self, node: Node, target: Path) -> None:
        """A copy: what is compared is what the codes read, whatever happens to the file meanwhile."""
        shutil.copyfile(_native(node.path), target)

    def executable(self, node: Node, folder: Path) -> Path:
        """The code in its place."""
        assert node.code is not None
        path = Path(_native(node.code.path))
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return path


@dataclass(frozen=True, slots=True)
class _Packed:
    """The files of a bundle; a member's name is only ever looked up, never used as a path."""

    tar: tarfile.TarFile
    members: dict[str, str]

    def copy_raw(self, node: Node, target: Path) -> None:
        """A file out of the archive."""
        self._copy(self.members.get(f"file {node.id}", ""), target)

    def executable(self, node: Node, folder: Path) -> Path:
        """A code out of the archive."""
        assert node.code is not None
        path = folder / proof.native(node.code.filename)
        self._copy(self.members.get(f"code of {node.id}", ""), path)
        path.chmod(0o755)
        return path

    def _copy(self, member: str, target: Path) -> None:
        try:
            stream = self.tar.extractfile(_native(member))
        except KeyError:
            stream = None
        if stream is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{member or 'such member'} in the bundle")
        with target.open("wb") as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)


def _opened(bundle: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(bundle)
    except (tarfile.TarError, EOFError) as error:
        raise PermanentFailure(f"{bundle} is no tar file: {error}") from error


def _manifest(bundle: Path, tar: tarfile.TarFile) -> tuple[Tree, dict[str, str]]:
    try:
        stream = tar.extractfile("manifest.json")
        manifest = json.load(stream) if stream is not None else None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise PermanentFailure(f"{bundle}: manifest.json does not say {FORMAT!r}; another version wrote it?")
        return _TREE.validate_python(manifest["lineage"]), manifest["members"]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PermanentFailure(f"{bundle}: manifest.json: {where}: {first['msg']}") from error
    except (tarfile.TarError, EOFError, KeyError, ValueError) as error:
        raise PermanentFailure(f"{bundle} is no bundle, or not all of it: {error}; write it again") from error


def _members(lineage: Tree) -> tuple[dict[str, str], list[str]]:
    """What goes into the archive, by what it is, as member names in text form; and why that is not possible."""
    members: dict[str, str] = {}
    problems: list[str] = []
    for file, is_build in proof.chain(lineage):
        node = lineage.nodes.get(file)
        if node is None:
            problems.append(f"file {file}, which it comes from, was forgotten")
            continue
        try:
            if is_build:
                assert node.code is not None
                problem = proof.code_difference(node, Path(_native(node.code.path)))
                members[f"code of {file}"] = f"codes/{node.code.id}/{node.code.filename}"
            else:
                problem = None if os.path.isfile(_native(node.path)) else f"there is no {node.path} ({node.state})"
                members[f"file {file}"] = f"files/{file}/{node.filename}"
        except FileNotFoundError:
            problem = f"{node.filename}: its code {node.code.path if node.code else ''} is gone"
        if problem is not None:
            problems.append(problem)
    return members, problems


def _fill(tar: tarfile.TarFile, lineage: Tree, members: dict[str, str]) -> None:
    manifest: dict[str, Any] = {
        "format": FORMAT, "written_at": datetime.now(UTC).isoformat(), "members": members,
        "lineage": _TREE.dump_python(lineage, mode="json"),
    }  # fmt: skip
    codes = {member for what, member in members.items() if what.startswith("code")}
    root = lineage.nodes[lineage.root]
    readme = _README.format(filename=root.filename, raw=len(members) - sum(w.startswith("code") for w in members),
                            codes=len(codes))  # fmt: skip
    _add_text(tar, "README.txt", readme)
    _add_text(tar, "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
    _add_text(tar, "prov.json", json.dumps(prov_json.document(lineage), indent=1, ensure_ascii=False))
    written: set[str] = set()
    for what, member in members.items():
        if member not in written:
            written.add(member)
            _add_file(tar, member, lineage.nodes[int(what.rpartition(" ")[2])], is_code=what.startswith("code"))


def _add_file(tar: tarfile.TarFile, member: str, node: Node, *, is_code: bool) -> None:
    path, recorded, kind = node.path, node.sha256 or node.sha1, "sha256" if node.sha256 else "sha1"
    if is_code:
        assert node.code is not None and node.build is not None
        path, recorded, kind = node.code.path, node.build.code_sha256 or node.code.sha256, "sha256"
    with open(_native(path), "rb") as stream:
        facts = os.fstat(stream.fileno())
        info = tarfile.TarInfo(_native(member))
        info.size, info.mtime, info.mode = facts.st_size, int(facts.st_mtime), 0o755 if is_code else 0o644
        hashing = _Hashing(stream, hashlib.new(kind))
        tar.addfile(info, hashing)  # type: ignore[arg-type]
    if recorded is None and not is_code:
        raise PermanentFailure(f"{path} has no recorded hash; `headrace products fsck --deep --fix` records it")
    if recorded is not None and hashing.digest.hexdigest() != recorded:
        raise PermanentFailure(f"{path}: {kind} is {hashing.digest.hexdigest()}, but recorded is {recorded}")


@dataclass(frozen=True, slots=True)
class _Hashing:
    """A stream that hashes what is read of it, so that a file is read once."""

    stream: IO[bytes]
    digest: Any

    def read(self, size: int) -> bytes:
        """The next bytes."""
        block = self.stream.read(size)
        self.digest.update(block)
        return block


def _add_text(tar: tarfile.TarFile, member: str, text: str) -> None:
    data = text.encode()
    info = tarfile.TarInfo(member)
    info.size, info.mtime, info.mode = len(data), int(datetime.now(UTC).timestamp()), 0o644
    tar.addfile(info, io.BytesIO(data))


def _native(text: str) -> str:
    return os.fsdecode(paths.to_bytes(text))
