"""What a running code writes to stdout and stderr: read as it comes, and only its end kept.

Pipes, not files: a code that writes gigabytes fills no disk, and what it says of a full one still arrives. They are
never waited for, so a process that keeps one open holds up nobody.
"""

from __future__ import annotations

import os
import select
import time

_PIECE = 65536
_PIECES = 16  # read at once, before anything else gets a turn


class Streams:
    """Two pipes, and the wait for the process that inherits the descriptors `stdout` and `stderr`."""

    def __init__(self, keep_bytes: int) -> None:
        self.tails: dict[int, _Tail] = {}
        self.poller = select.poll()
        self.handle = -1
        outputs, errors = os.pipe(), os.pipe()
        self.open = {outputs[0], outputs[1], errors[0], errors[1]}
        self.readers, (self.stdout, self.stderr) = (outputs[0], errors[0]), (outputs[1], errors[1])
        for reader in self.readers:
            os.set_blocking(reader, False)
            self.tails[reader] = _Tail(keep_bytes)
            self.poller.register(reader, select.POLLIN)

    def listen(self, handle: int) -> None:
        """From now on the process has the writing ends; `handle` is its pidfd."""
        self._close(self.stdout)
        self._close(self.stderr)
        self.handle = handle
        self.poller.register(handle, select.POLLIN)

    def until(self, moment: float) -> bool:
        """Read until the process ends (True) or time.monotonic() is `moment`."""
        while True:
            left = moment - time.monotonic()
            for descriptor, _ in self.poller.poll(max(0.0, left) * 1000):
                if descriptor == self.handle:
                    return True
                if not self._read(descriptor):
                    self.poller.unregister(descriptor)
            if left <= 0:
                return False

    def ends(self) -> tuple[bytes, bytes]:
        """The ends of stdout and stderr, with what is still in the pipes."""
        for reader in self.readers:
            self._read(reader)
        return self.tails[self.readers[0]].end(), self.tails[self.readers[1]].end()

    def close(self) -> None:
        """Give all descriptors back."""
        for descriptor in list(self.open):
            self._close(descriptor)

    def _read(self, reader: int) -> bool:
        """Take what is there, within bounds; False when the last writer is gone."""
        for _ in range(_PIECES):
            try:
                piece = os.read(reader, _PIECE)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self.tails[reader].add(piece)
        return True

    def _close(self, descriptor: int) -> None:
        if descriptor in self.open:
            self.open.remove(descriptor)
            os.close(descriptor)


class _Tail:
    """The last bytes of a stream."""

    def __init__(self, keep_bytes: int) -> None:
        self.keep, self.kept = keep_bytes, bytearray()

    def add(self, piece: bytes) -> None:
        self.kept += piece
        if len(self.kept) > 2 * self.keep + _PIECE:
            self._cut()

    def end(self) -> bytes:
        self._cut()
        return bytes(self.kept)

    def _cut(self) -> None:
        if len(self.kept) > self.keep:
            del self.kept[: len(self.kept) - self.keep]


def last(whole: bytes, keep_bytes: int) -> str:
    """The last bytes as text that fits into a text column: what is not UTF-8 is replaced, NUL left out."""
    kept = whole[max(0, len(whole) - keep_bytes) :]
    if len(kept) == keep_bytes:  # cut, perhaps within a character of which up to three bytes are left
        kept = kept[:3].lstrip(bytes(range(0x80, 0xC0))) + kept[3:]
    return kept.decode("utf-8", "replace").replace("\0", "")
