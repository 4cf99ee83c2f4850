"""The account PostgreSQL runs as: it refuses root, and this gives it another one without making users."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from workers.services.errors import ServiceError
from workers.services.processes import LINUX, spawn


@dataclass(frozen=True, slots=True)
class Account:
    """How to start a program so that PostgreSQL accepts its user; the default is the present user.

    `user_namespace`: the same account, called `nobody` inside; nothing has to change hands. `uid`, `gid`: a
    real other account, which must be given the files (`own`).
    """

    user_namespace: bool = False
    uid: int | None = None
    gid: int | None = None

    def own(self, path: Path) -> None:
        """Give `path` to the account when it is another one than ours."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


def nobody_account() -> Account:
    """Return the real account `nobody`, for root where user namespaces are refused."""
    nobody = pwd.getpwnam("nobody")
    return Account(uid=nobody.pw_uid, gid=nobody.pw_gid)


def choose_account(bin_dir: Path) -> Account:
    """Return the first account that works: ours, ours under another name, `nobody`.

    Containers without CAP_SYS_ADMIN refuse user namespaces; then only root can go on, as `nobody`.
    """
    if os.geteuid() != 0 and _has_name(os.geteuid()):
        return Account()
    if LINUX and _user_namespace_works(bin_dir):
        return Account(user_namespace=True)
    return nobody_account() if os.geteuid() == 0 else Account()


def reachable_bin(bin_dir: Path, run_dir: Path, account: Account) -> Path:
    """Return a folder of programs that `account` may execute, copied into `run_dir` (42 MB) if it has to be.

    Raises ServiceError when the account cannot reach the data folder at all.
    """
    if account.uid is None:
        return bin_dir
    data_dir = run_dir.parent
    for folder in (run_dir, data_dir):
        # Ours, so that we may open it to passers-by: they can name a file in it, not list it.
        folder.chmod(folder.stat().st_mode | 0o011)
    if not _open_to_all(data_dir):
        raise ServiceError(
            f"PostgreSQL refuses to run as root, user namespaces are refused here, and the account "
            "nobody cannot "
            f"reach {data_dir}. Choose a --data-dir such as /var/lib/headrace, run as an ordinary user, or "
            f"configure a server of your own with HEADRACE_CONTROL__DSN."
        )
    if _open_to_all(bin_dir / "postgres"):
        return bin_dir
    copy = run_dir / "pginstall"
    if not (copy / "bin" / "postgres").exists():
        scratch = run_dir / f"pginstall.{os.getpid()}"
        shutil.copytree(bin_dir.parent, scratch, symlinks=True)
        scratch.chmod(0o755)
        scratch.rename(copy)
    return copy / "bin"


def _open_to_all(path: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (path, *path.parents))


def _has_name(uid: int) -> bool:
    # initdb insists on a name for its user; `docker run --user 1234` gives none.
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _user_namespace_works(bin_dir: Path) -> bool:
    try:
        probe = spawn([str(bin_dir / "postgres"), "--version"], death_signal=signal.SIGKILL, user_namespace=True)
    except (OSError, KeyError, subprocess.SubprocessError):
        return False
    return probe.wait() == 0
