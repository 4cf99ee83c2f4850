"""The export of a release: a folder with its files and manifests that appears whole, or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from workers import paths
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products import fixity, placing, releases
from workers.products.releases import Release, ReleaseFile

How = Literal["copy", "link", "symlink"]
SUMS, LIST = "MANIFEST.sha256", "manifest.json"


@dataclass(slots=True)
class Exported:
    """Where the files of a release went, how many and how many bytes; and what is missing of it, a line each."""

    folder: Path
    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)


def export(
    conn: Connection,
    release: Release,
    folder: Path,
    *,
    how: How = "copy",
    progress: Callable[[int, int], object] | None = None,
) -> Exported:
    """Write the files of a release into a new folder, each with the bytes that were tagged. Commits before it reads.

    Besides them: MANIFEST.sha256 for `sha256sum -c`, and manifest.json with products, days and versions. The folder
    gets its name when everything is in it and durable; with problems it is called NAME.incomplete instead.
    `progress` is told how many of how many files are done, and may raise: then nothing is left.
    Raises PermanentFailure when the folder is there already or cannot be written, placing.NoRoom on a full disk.
    """
    members = releases.files(conn, release)
    conn.commit()
    incomplete = folder.with_name(f"{folder.name}.incomplete")
    for one in (folder, incomplete):
        if os.path.lexists(one):
            raise PermanentFailure(f"{one} is there already; name another folder, or remove it")
    work = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    done = Exported(folder)
    if not releases.manifest_is_right(release, members):
        done.problems.append(f"the list of files of {release.name} is not the one that was tagged")
    try:
        work.mkdir(parents=True)
        good = _fill(work, members, how, done, progress)
        _write(work / SUMS, releases.manifest((digest, one.filename) for one, digest in good))
        _write(work / LIST, _document(release, good, done).encode())
        if done.problems:
            done.folder = incomplete
        placing.sync_folders([os.fsencode(work)])
        work.rename(done.folder)
        placing.sync_folders([os.fsencode(folder.absolute().parent)])
    except OSError as error:
        raise placing.refused(error, os.fsencode(folder)) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return done


def _fill(
    work: Path, members: list[ReleaseFile], how: How, done: Exported, progress: Callable[[int, int], object] | None
) -> list[tuple[ReleaseFile, str]]:
    good = []
    for number, one in enumerate(members, 1):
        source = one.expected.path
        try:
            read = _bring(source, os.path.join(os.fsencode(work), paths.to_bytes(one.filename)), one, how)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            done.problems.append(f"{paths.to_text(source)} is not there; `headrace products fsck` says more")
        except (fixity.FileChanged, _Differs) as error:
            done.problems.append(str(error))
        else:
            good.append((one, read.sha256))
            done.files += 1
            done.bytes += read.sight.bytes
        if progress is not None:
            progress(number, len(members))
    return good


class _Differs(Exception):
    pass


def _bring(source: bytes, target: bytes, one: ReleaseFile, how: How) -> fixity.Digest:
    needs_sha1 = one.expected.sha1 is not None
    real = os.path.realpath(source)
    try:
        if how == "copy":
            with open(target, "xb") as copied:
                read = fixity.digest(real, needs_sha1=needs_sha1, sink=copied.write)
                copied.flush()
                os.utime(copied.fileno(), ns=(read.sight.modified_ns, read.sight.modified_ns))
                os.fsync(copied.fileno())
        elif how == "link":
            os.link(real, target)
            # Read through the link: whatever takes the file's name afterwards, this is what was linked.
            read = fixity.digest(target, needs_sha1=needs_sha1)
        else:
            read = fixity.digest(real, needs_sha1=needs_sha1)
            os.symlink(os.path.abspath(source), target)
        difference = fixity.differs(one.expected, read)
        if difference is not None:
            raise _Differs(f"{paths.to_text(source)}: {difference}; `headrace products fsck --deep` says more")
    except BaseException as error:
        placing.remove(target)
        if isinstance(error, OSError) and error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK) and how == "link":
            raise PermanentFailure(
                f"{paths.to_text(target)}: {error.strerror}; export with copies or symlinks"
            ) from error
        raise
    return read


def _document(release: Release, good: list[tuple[ReleaseFile, str]], done: Exported) -> str:
    document = {
        "release": release.name,
        "comment": release.comment,
        "tagged_by": release.tagged_by,
        "tagged_at": release.tagged_at.isoformat(),
        "manifest_sha256": release.manifest_sha256,
        "problems": done.problems,
        "files": [
            {
                "filename": one.filename, "product": one.product, "day": one.day.isoformat(), "key": one.key,
                "version": one.version, "bytes": one.bytes, "sha256": digest, "tagged_as": one.checksum,
            }
            for one, digest in good
        ],
    }  # fmt: skip
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
