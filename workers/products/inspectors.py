"""A site's inspectors, asked about a file in a process of their own: they may raise, hang or crash, and ingest goes on.

One child process serves many files (loading an inspector's module costs more than asking it). It is started when it
is first needed, and again after a time-out or a crash. Its environment has no passwords.
"""

from __future__ import annotations

import json
import os
import re
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from workers.errors import RetryLater
from workers.paths import to_text
from workers.products.identify import Identity
from workers.products.versions import Version

_ROOT = Path(__file__).parents[2]
_START_SECONDS = 60.0
_SAY_WHERE_SECONDS = 2.0
_END_SECONDS = 5.0
_OUTPUT_BYTES = 4096
_OUR_FRAMES = (f'  File "{_ROOT / "workers" / "products"}', '  File "<frozen runpy>')
_REPLY_BYTES = 2_000_000
# What inspectors have no business with: our settings, and whatever opens a database or a broker.
_SECRET = re.compile(
    r"HEADRACE_|CELERY|FLOWER_|PG|XTELEMDB_|.*(PASSW|SECRET|TOKEN|CREDENTIAL|API_?KEY|_PW$)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Spec:
    """One product's inspector: a .py file with a class Inspector, and the keyword arguments it gets."""

    product_id: int
    product: str
    level: float
    format: str
    path: Path
    arguments: Mapping[str, str] = field(default_factory=dict)
    mission: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """An inspector claims the file (`identity`), or could not tell (`problem`: a line, then the traceback's end)."""

    product_id: int
    product: str
    identity: Identity | None
    problem: str | None


class _Lost(Exception):
    """The child has not answered and is of no more use; the text says what happened."""


class Inspectors:
    """All inspectors of a mission. For one thread at a time; `close` it, or use it in a `with`.

    `timeout_seconds` is per file and inspector and includes loading its module. `memory_bytes` limits the address
    space of the child; without it, the kernel's out-of-memory killer takes the child first.
    """

    def __init__(self, specs: Sequence[Spec], *, timeout_seconds: float, memory_bytes: int | None = None) -> None:
        self._specs = tuple(specs)
        self._timeout_seconds = timeout_seconds
        self._memory_bytes = memory_bytes
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def ask(self, path: bytes | Path, only: Collection[int] | None = None) -> list[Finding]:
        """What the inspectors (of the products `only`) say of a file: a Finding for each claim and each problem.

        Every one is asked, so that two claims are seen; one that says "not mine" gives no Finding. Raises
        RetryLater when their process does not start.
        """
        asked = [n for n, spec in enumerate(self._specs) if only is None or spec.product_id in only]
        findings: list[Finding] = []
        while asked:
            child = self._ready_child()
            try:
                child.send({"path": to_text(os.path.abspath(os.fsencode(path))), "ask": asked})
                while asked:
                    reply = child.reply(self._timeout_seconds)
                    findings += _findings(self._specs[asked.pop(0)], reply)
            except _Lost as lost:
                self.close()
                findings += _findings(self._specs[asked.pop(0)], {"problem": str(lost)})
            except BaseException:
                self.close()  # Its answers to come belong to this question; nobody may take them for another's.
                raise
        return findings

    def close(self) -> None:
        """End the child and everything it started. Asking again starts another one."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _ready_child(self) -> _Child:
        if self._child is not None and not self._child.is_idle():
            self.close()
        if self._child is None:
            try:
                self._child = _Child(self._memory_bytes)
                self._child.send([_document(spec) for spec in self._specs])
                self._child.reply(_START_SECONDS)
            except (_Lost, OSError) as error:
                self.close()
                text = f"the inspectors' process does not start: {error}; is {sys.executable} there, and memory?"
                raise RetryLater(text, after=timedelta(seconds=30)) from None
        return self._child


class _Child:
    """The process: its channel for JSON lines, and the end of what it printed."""

    def __init__(self, memory_bytes: int | None) -> None:
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(_START_SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "workers.products.inspector_child",
                 str(theirs.fileno()), str(memory_bytes or 0)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=_ROOT,
                env={name: value for name, value in os.environ.items() if not _SECRET.match(name)},
                pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        assert self._process.stdout is not None
        self._printed = self._process.stdout
        self._output = b""
        self._received = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._channel, selectors.EVENT_READ)
        self._selector.register(self._printed, selectors.EVENT_READ)

    def is_idle(self) -> bool:
        """Whether it waits for a question: neither has it ended, nor does it say anything unasked."""
        return not self._received and self._read(0)

    def send(self, document: Any) -> None:
        """Send one line; what was printed before belongs to an earlier question. Raises _Lost."""
        self._output = b""
        try:
            self._channel.sendall(json.dumps(document).encode("ascii") + b"\n")
        except OSError:
            raise _Lost(self._ended()) from None

    def reply(self, seconds: float) -> dict[str, Any]:
        """The next line. Raises _Lost when it does not come in time, and when it cannot come any more."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0:
                raise _Lost(self._hung(seconds))
            if not self._read(left):
                raise _Lost(self._ended())
            if len(self._received) > _REPLY_BYTES:
                break
        line, _, self._received = self._received.partition(b"\n")
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict) or not reply.keys() & {"claim", "problem", "ready"}:
            raise _Lost("has written into the channel that answers come through")
        return reply

    def end(self) -> None:
        """Kill it with all that it started, and close everything."""
        self._kill()
        self._selector.close()
        self._channel.close()
        self._printed.close()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _read(self, seconds: float) -> bool:
        """Take in what there is, waiting at most so long. False: the channel has been closed."""
        is_open = True
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._channel:
                try:
                    chunk = self._channel.recv(65536)
                except ConnectionResetError:
                    chunk = b""
                self._received += chunk
                is_open = bool(chunk)
            elif text := os.read(self._printed.fileno(), 65536):
                self._output = (self._output + text)[-_OUTPUT_BYTES:]
            else:
                self._selector.unregister(self._printed)  # An inspector closed it.
        return is_open

    def _hung(self, seconds: float) -> str:
        os.kill(self._process.pid, signal.SIGUSR1)  # It prints where it is, and ends.
        deadline = time.monotonic() + _SAY_WHERE_SECONDS
        while (left := deadline - time.monotonic()) > 0 and self._read(left):
            pass
        self._kill()
        return f"has not answered for {seconds:g} seconds{self._last_words()}"

    def _ended(self) -> str:
        status = self._kill()
        if status is not None and status < 0:
            memory = "; was memory short?" if status == -signal.SIGKILL else ""
            return f"was killed by signal {-status} ({signal.strsignal(-status)}){memory}{self._last_words()}"
        return f"has ended its process with exit status {status}{self._last_words()}"

    def _last_words(self) -> str:
        for _ in range(100):  # Not for ever: what left the group may still print.
            if not select.select([self._printed], [], [], 0)[0]:
                break
            if not (text := os.read(self._printed.fileno(), 65536)):
                break
            self._output = (self._output + text)[-_OUTPUT_BYTES:]
        said = self._output.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
        # How we called the inspector says nothing about it.
        kept = [line for line in said.strip().split("\n") if not line.startswith(_OUR_FRAMES)]
        return "".join(f"\n{line}" for line in kept if line)

    def _kill(self) -> int | None:
        """Kill the group and return the exit status, None if the kernel does not let go of it."""
        if self._process.returncode is None:
            try:
                # Before it is waited for: so long nobody else can have its number.
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # It ended before it had a group of its own.
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                pass  # It hangs in the kernel, on a dead file server say: it ends when that answers.
        return self._process.returncode


def _document(spec: Spec) -> dict[str, Any]:
    return {
        "product_id": spec.product_id, "product": spec.product, "level": spec.level, "format": spec.format,
        "path": to_text(os.path.abspath(os.fsencode(spec.path))), "arguments": dict(spec.arguments),
        "mission": spec.mission,
    }  # fmt: skip


def _findings(spec: Spec, reply: Mapping[str, Any]) -> list[Finding]:
    """What an inspector's answer means: nothing for "not mine", else one Finding."""
    if problem := reply.get("problem"):
        return [Finding(spec.product_id, spec.product, None, f"inspector {to_text(spec.path.name)} {problem}")]
    claim = reply.get("claim")
    if claim is None:
        return []
    identity = Identity(
        spec.product_id, spec.product, date.fromisoformat(claim["day"]), claim["keywords"],
        datetime.fromisoformat(claim["start"]), datetime.fromisoformat(claim["stop"]),
        Version(*claim["version"]), claim["keywords"], claim["notes"],
    )  # fmt: skip
    return [Finding(spec.product_id, spec.product, identity, None)]
