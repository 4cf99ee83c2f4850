"""xtelemdb's TOML file, and its `key.key=value` words, as settings of ours."""

from __future__ import annotations

import os
import socket
import tomllib
from pathlib import Path
from typing import Any

from workers.errors import ServerUnavailable, SettingsError
from workers.settings import did_you_mean

_DEFAULT_FOLDERS = ("logs", "rawimages", "telem", "cacao")
_ROOT = Path("/opt/MagAOX")
_PASSWORD_FILE = _ROOT / "secrets" / "xtelemdb_password"
_DATABASE_KEYS = ("host", "user", "port", "database", "password_file")
_KEYS = ("database", "hostname", "data_dirs", "logdump_exe", "parallel_jobs", "limit")
NAME = "xtelemdb"


def settings_from_xtelemdb(files: list[Path], words: list[str], *, secrets: bool = True) -> dict[str, Any]:
    """A settings document that says what the files say; the last file wins, then the words.

    The password is $XTELEMDB_PASSWORD, else the first line of `database.password_file`. Raises SettingsError
    for what is no such file, ServerUnavailable when a password file that is named cannot be read.
    """
    document: dict[str, Any] = {}
    for file in files:
        document |= _read(file)
    for word in words:
        _override(document, word)
    for key in document:
        if key not in _KEYS:
            raise SettingsError([f"{files[-1]}: {key}: unknown key{did_you_mean(key, _KEYS)}"])
    database = document.get("database", {})
    if not isinstance(database, dict):
        raise SettingsError([f"{files[-1]}: database: expected a table"])
    for key in database:
        if key not in _DATABASE_KEYS:
            raise SettingsError([f"{files[-1]}: database.{key}: unknown key{did_you_mean(key, _DATABASE_KEYS)}"])
    connection = {
        "host": database.get("host", "localhost"),
        "port": int(database.get("port", 5432)),
        "user": database.get("user", "xtelem"),
        "database": database.get("database", "xtelem"),
    }
    connection |= _password(database.get("password_file"), secrets)
    folders = document.get("data_dirs") or [str(_ROOT / name) for name in _DEFAULT_FOLDERS]
    return {
        "host": document.get("hostname") or socket.gethostname(),
        "control": {"database": NAME},
        "databases": {NAME: {"connection": connection}},
        "telemetry": {"database": NAME, "data_dirs": [str(folder) for folder in folders]},
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{file}: cannot be read: {error}"]) from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{file}: not valid TOML: {error}"]) from error


def _override(document: dict[str, Any], word: str) -> None:
    key, _, value = word.partition("=")
    *path, last = key.split(".")
    place = document
    for part in path:
        place = place.setdefault(part, {})
    try:
        place[last] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        place[last] = value


def _password(named: str | None, secrets: bool) -> dict[str, Any]:
    if not secrets:
        return {"password_env": "XTELEMDB_PASSWORD"} if named is None else {"password_file": named}
    if "XTELEMDB_PASSWORD" in os.environ:
        return {"password": os.environ["XTELEMDB_PASSWORD"]}
    file = Path(named) if named else _PASSWORD_FILE
    if named is None and not file.exists():
        return {}
    try:
        return {"password": file.read_text(encoding="utf-8").strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise ServerUnavailable(
            f"{file}: the password cannot be read ({error}); check its path, owner and mode"
        ) from error
