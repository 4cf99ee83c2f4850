"""Folders as the file system shows them: a listing with a digest, cheap enough to take every minute."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

_OS_ERRORS_OF_A_RACE = (FileNotFoundError, NotADirectoryError)


@dataclass(slots=True)
class Listing:
    """Regular files of one folder: names, sizes in bytes, times in nanoseconds since 1970, in the same order."""

    folder: str
    names: list[str] = field(default_factory=list)
    sizes: array[int] = field(default_factory=lambda: array("q"))
    mtimes: array[int] = field(default_factory=lambda: array("q"))
    ctimes: list[float] = field(default_factory=list)

    def digest(self) -> bytes:
        """The same for the same names, sizes and times."""
        state = hashlib.blake2b(os.fsencode("\0".join(self.names)), digest_size=16)
        state.update(self.sizes.tobytes())
        state.update(self.mtimes.tobytes())
        return state.digest()


def walk(root: str, problems: list[str]) -> Iterator[Listing]:
    """Every folder below a root, itself included. Links to folders are not followed, so there are no loops.

    FIFOs, sockets and devices are no files. What vanishes meanwhile was not there. What cannot be read, a
    broken link or a loop of links, is one line in `problems`; everything else goes on.
    """
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        listing = Listing(folder)
        names, sizes, mtimes, ctimes = listing.names, listing.sizes, listing.mtimes, listing.ctimes
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        try:
                            seen = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                        continue
                    elif not (linked := _linked_file(entry, problems)):
                        continue
                    else:
                        seen = linked
                    names.append(entry.name)
                    sizes.append(seen.st_size)
                    mtimes.append(seen.st_mtime_ns)
                    ctimes.append(seen.st_ctime)
        except _OS_ERRORS_OF_A_RACE:
            if folder == root:
                problems.append(f"{folder}: no such folder; check telemetry.data_dirs and that its disk is mounted")
            continue
        except OSError as error:
            problems.append(f"{folder}: cannot be listed: {error.strerror}; check its owner and mode")
            continue
        yield listing


def _linked_file(entry: os.DirEntry[str], problems: list[str]) -> os.stat_result | None:
    if not entry.is_symlink():
        return None
    try:
        if not entry.is_file():
            # A link to a folder is not followed; one to nowhere raises below.
            entry.stat()
            return None
        return entry.stat()
    except FileNotFoundError:
        if os.path.lexists(entry.path):
            problems.append(f"{entry.path}: a link to nowhere; remove it or mount what it points to")
    except OSError as error:
        problems.append(f"{entry.path}: {error.strerror}; remove the link")
    return None
