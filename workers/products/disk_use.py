"""How much of a disk the files of a folder take."""

from __future__ import annotations

import os
from pathlib import Path


def blocks(folder: Path, enough: int) -> int:
    """Blocks of 512 bytes that the files below a folder have on disk; counting ends beyond `enough`."""
    total, folders = 0, [os.fspath(folder)]
    while folders and total <= enough:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += _blocks_of(entry, enough)
        except OSError:  # gone since
            continue
    return total


def _blocks_of(entry: os.DirEntry[str], enough: int) -> int:
    try:
        seen = entry.stat(follow_symlinks=False)
    except OSError:  # gone since
        return 0
    apparent = -(-seen.st_size // 512)
    # A growing file may have more reserved than it holds, one with holes less. Beyond the limit its size alone tells:
    # some file systems count the blocks only seconds later.
    return apparent if apparent > enough else min(seen.st_blocks, apparent)
