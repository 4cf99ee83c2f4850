"""How a code is started: its command line, its environment, its limits, and why it cannot be."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from workers.errors import RetryLater
from workers.paths import to_text
from workers.products.processes_of import TOKEN

BLOCK_BYTES = 512  # the unit of ulimit -f
_PATH = "/usr/local/bin:/usr/bin:/bin"
_MEGABYTE = 1_000_000


class CannotStart(Exception):
    """The code itself is why it cannot be started; its text is for the person on call."""


def environment_of(folder: Path, token: str, extra: Mapping[str, str]) -> dict[str, str]:
    """What a code finds in its environment: nothing of this process but PATH and HOME, so no secret of ours.

    Names that a shell cannot hold (`A.B`) do not reach the code; PWD is added by the shell that starts it.
    """
    base = {
        "PATH": os.environ.get("PATH", _PATH),
        "HOME": os.environ.get("HOME", os.fspath(folder)),
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "TMPDIR": os.fspath(folder),
    }
    return {**base, **extra, TOKEN: token}


def executable_of(name: str | bytes, search: str) -> str:
    """The path of an executable, a bare name being looked for in the PATH `search`.

    Raises CannotStart if it is not there, may not be executed, or names an interpreter of which that is true.
    """
    given = os.fsdecode(name)
    path = given if "/" in given else shutil.which(given, path=search) or given
    shown = to_text(path)
    _check(path, shown)
    try:
        with open(path, "rb") as stream:
            head = stream.read(512)
    except OSError:  # a program may be executable without being readable
        return path
    if head.startswith(b"#!"):
        line = head[2:].split(b"\n", 1)[0].strip(b" \t")
        interpreter = line.split(None, 1)[0] if line.strip() else b""
        if line.endswith(b"\r") and interpreter == line.rstrip():
            raise CannotStart(f"{shown} cannot be started: its first line ends as Windows ends lines; convert it")
        if interpreter.startswith(b"/"):
            _check(os.fsdecode(interpreter), f"the interpreter {to_text(interpreter)} of {shown}")
    elif not head.startswith(b"\x7fELF"):
        # The system would refuse it, and a shell would then take it for a shell script, whatever it is.
        raise CannotStart(f"{shown} is neither a program nor a script that begins with #! and its interpreter")
    return path


def _check(path: str, shown: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise CannotStart(f"{shown} does not exist: put it there, or correct the definition of the code") from None
    except OSError as error:
        raise CannotStart(f"{shown} cannot be looked at: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise CannotStart(f"{shown} is not a file")
    if not os.access(path, os.X_OK):
        raise CannotStart(f"{shown} is not executable: chmod +x")


def spawn(
    executable: str,
    arguments: Sequence[str | bytes],
    *,
    folder: Path,
    environment: Mapping[str, str],
    output_bytes: int | None,
    memory_bytes: int | None,
    stdout: int,
    stderr: int,
) -> subprocess.Popen[bytes]:
    """Start it in `folder` as leader of its own session, its limits set, with nothing on its stdin.

    A shell sets the limits and then becomes the code: code between fork and exec of this process (preexec_fn) would
    be slow in a large one, and unsafe beside threads. What the shell itself says begins with `launcher_of(token)`.
    Raises CannotStart for a command line that is too long, RetryLater when this host can start nothing now.
    """
    shell = ["/bin/sh", "-c", _limits(output_bytes, memory_bytes) + 'exec "$@"', launcher_of(environment[TOKEN])]
    try:
        return subprocess.Popen(
            [*shell, executable, *arguments], cwd=folder, env=dict(environment),
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        if error.errno == errno.E2BIG:
            size = sum(len(os.fsencode(word)) + 1 for word in arguments)
            raise CannotStart(
                f"{to_text(executable)} cannot be started: {len(arguments)} arguments of {size} bytes are more than "
                "this system takes"
            ) from error
        raise RetryLater(
            f"no code can be started in {to_text(os.fspath(folder))}: {error}", after=timedelta(seconds=30)
        ) from error


def launcher_of(token: str) -> str:
    """The name under which the shell that starts a code complains, should it be unable to: nobody else's."""
    return f"headrace-{token}"


def file_blocks(output_bytes: int) -> int:
    """The blocks of 512 bytes that a code may write. A single file may have one more: then it is seen to be over."""
    return -(-output_bytes // BLOCK_BYTES)


def _limits(output_bytes: int | None, memory_bytes: int | None) -> str:
    """Shell commands that lower this host's limits, never raise them: that would be refused."""
    commands = ["ulimit -c 0"]
    if output_bytes is not None:
        blocks = file_blocks(output_bytes) + 1
        commands.append(f"ulimit -f {min(blocks, _allowed(resource.RLIMIT_FSIZE) // BLOCK_BYTES)}")
    if memory_bytes is not None:
        # A backstop between two looks at what is really used, per process and of reserved memory: hence the generous
        # factor, and room for the stacks (8 MB) of two threads per processor, which libraries start unasked.
        data = memory_bytes * 3 // 2 + 64 * _MEGABYTE + 16 * _MEGABYTE * (os.cpu_count() or 1)
        commands.append(f"ulimit -d {min(data, _allowed(resource.RLIMIT_DATA)) // 1024}")
    return "; ".join(commands) + "; "


def _allowed(limit: int) -> int:
    hard = resource.getrlimit(limit)[1]
    return 2**60 if hard == resource.RLIM_INFINITY else hard
