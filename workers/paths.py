"""Paths as text: any file name of Linux fits into JSON, a text column and a terminal, and comes back exactly.

A name that is UTF-8 stays as it is. A byte that is not UTF-8 becomes `\\xNN`; only where a name already
holds something that reads so, its backslash becomes `\\x5c`. So two names never share one text.
"""

from __future__ import annotations

import os
import re

_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


def to_text(path: str | bytes) -> str:
    """The text form of a path in the file system's own form."""
    raw = os.fsencode(path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        pass
    else:
        return _ESCAPE.sub(r"\\x5cx\1", text) if "\\x" in text else text
    kept = raw.decode("utf-8", "surrogateescape")
    kept = _ESCAPE.sub(r"\\x5cx\1", kept)
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in kept)


def to_bytes(text: str) -> bytes:
    """The file system's own form of a path in text form."""
    if "\\x" not in text:
        return text.encode("utf-8")
    pieces = re.split(r"(\\x[0-9a-f]{2})", text)
    return b"".join(bytes.fromhex(piece[2:]) if _ESCAPE.fullmatch(piece) else piece.encode("utf-8") for piece in pieces)
