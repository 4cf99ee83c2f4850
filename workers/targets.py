"""Targets: a named database and the libpq string that reaches it, with its password kept out of sight."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, SecretStr, model_validator

from workers.errors import SettingsError

CONTROL = "control"
_LOGIN = re.compile(r"(?<=://)([^\s:/@?]*):\S*@")


@dataclass(frozen=True, slots=True)
class Target:
    """`name` is what people and run rows see; `dsn` never reaches a log."""

    name: str
    dsn: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.name} ({redacted(self.dsn)})"


class Connection(BaseModel):
    """How to reach one PostgreSQL database; every key is optional, libpq's own defaults fill the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dsn: SecretStr | None = None  # a libpq string or URL; the other keys then stay away, but for password_file
    user: str | None = None
    password: SecretStr | None = None
    host: str | None = None
    port: int | None = None
    database: str | None = None
    sslmode: str | None = None
    service: str | None = None
    passfile: Path | None = None
    password_file: Path | None = None
    password_env: str | None = None
    target_session_attrs: str | None = None  # `read-write` with `host: db1,db2`: whichever is the primary

    @model_validator(mode="after")
    def _one_way(self) -> Connection:
        others = self.model_fields_set - {"dsn", "password_file"}
        if self.dsn is not None and others:
            raise ValueError(f"`dsn` says it all; take {', '.join(sorted(others))} away, or put it into the dsn")
        return self

    def target(self, name: str) -> Target:
        """A libpq keyword string. Raises SettingsError when a secret cannot be read."""
        if self.dsn is not None:
            return Target(name, with_password(self.dsn.get_secret_value(), self.password_file))
        words = {
            "user": self.user,
            "host": self.host,
            "port": self.port,
            "dbname": self.database,
            "sslmode": self.sslmode,
            "service": self.service,
            "passfile": self.passfile,
            "password": self._password(name),
            "target_session_attrs": self.target_session_attrs,
        }
        return Target(
            name,
            " ".join(f"{key}={_quoted(str(value))}" for key, value in words.items() if value is not None),
        )

    def _password(self, name: str) -> str | None:
        if self.password is not None:
            return self.password.get_secret_value()
        if self.password_file is not None:
            return read_secret(self.password_file)
        if self.password_env is not None:
            if self.password_env not in os.environ:
                raise SettingsError([f"databases.{name}: the variable {self.password_env} (password_env) is not set"])
            return os.environ[self.password_env]
        return None


def read_secret(path: Path) -> str:
    """The first line's worth of a secret file, stripped. Raises SettingsError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path}: the secret cannot be read ({error}); check its path and mode"]) from error


def with_password(dsn: str, password_file: Path | None) -> str:
    """The connection string with the password out of a file, for secrets that are mounted."""
    if password_file is None:
        return dsn
    password = read_secret(password_file)
    if "://" not in dsn:
        return f"{dsn} password={_quoted(password)}"
    parts = urlsplit(dsn)
    user, _, address = parts.netloc.rpartition("@")
    login = f"{user.split(':', 1)[0]}:{quote(password, safe='')}@"
    return urlunsplit(parts._replace(netloc=login + address))


def redacted(dsn: str) -> str:
    """The same string with every password replaced by dots: fit for logs, pages and messages."""
    hidden = re.sub(r"\S+", _without_login, dsn)
    hidden = re.sub(r"([?&]password=)[^&\s]*", r"\1•••", hidden)
    # Hidden once is hidden: a second look must not take what stands behind it for more of the password.
    return re.sub(r"((?<![?&])\bpassword\s*=\s*)(?!•••)('(?:[^'\\]|\\.)*'?|(?:\\.|[^\s\\])+)", r"\1•••", hidden)


def _without_login(found: re.Match[str]) -> str:
    # Up to the last @ of one run of characters, found first: a search from each :// takes minutes for a megabyte.
    head, at, tail = found.group().rpartition("@")
    return _LOGIN.sub(r"\1:•••@", head + at) + tail


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
