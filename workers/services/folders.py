"""The layout of one data folder: `postgres/ valkey/ logs/ run/` and the files beside them."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from workers.services.errors import ServiceError


@dataclass(frozen=True, slots=True)
class DataFolder:
    """Where everything of one deployment lies; `root` is absolute."""

    root: Path

    @classmethod
    def at(cls, data_dir: Path) -> DataFolder:
        """Return the layout under `data_dir`, made absolute (symbolic links stay as they are)."""
        return cls(data_dir.absolute())

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def valkey(self) -> Path:
        return self.root / "valkey"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        return self.root / "run"

    def prepare(self) -> None:
        """Make the folders that are missing, mode 0700, and prove that a file can be written.

        Raises ServiceError with one sentence for the person at the keyboard.
        """
        try:
            for folder in (self.root, self.valkey, self.logs, self.run):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.run / f".probe-{os.getpid()}"
            probe.write_bytes(b"x" * 4096)
            probe.unlink()
        except OSError as error:
            raise ServiceError(describe(self.root, error)) from error


def describe(data_dir: Path, error: OSError) -> str:
    """Say what an OSError in the data folder means and what to do about it."""
    where = error.filename or data_dir
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"No space left for {data_dir} (writing {where}): free some, or choose another --data-dir."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"The data folder {data_dir} cannot be written by uid {os.geteuid()} ({where}: "
            f"{error.strerror}): "
            "give it to this user, or choose another --data-dir."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"The data folder {data_dir} cannot be made: {where} is a file. Choose another --data-dir."
    return f"The data folder {data_dir} cannot be used ({where}: {error.strerror}): choose another --data-dir."
