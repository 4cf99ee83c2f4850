"""Small JSON files that only their owner may read, and that a crash never leaves half-written."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any


def write_private(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace `path` with `text` atomically, mode 0600.

    With `durable` it survives a power cut as well (fsync of the file and its folder). Raises OSError.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_private_json(path: Path, document: Any, *, durable: bool = True) -> None:
    """Replace `path` with `document` as indented JSON; see `write_private`."""
    write_private(path, json.dumps(document, indent=2) + "\n", durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in `path`, or None when there is no such file.

    Raises ValueError, with the path in it, when the file is not a JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); restore it or move it away") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} must hold a JSON object; restore it or move it away")
    return document


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
