"""The passwords of one deployment: generated once into a 0600 file, kept between runs."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from workers.services.errors import ServiceError
from workers.services.private_files import read_json, write_private_json

FILE_NAME = "credentials.json"


def _generate() -> str:
    # URL-safe, so that it needs no quoting inside a DSN or a broker URL; 192 bits.
    return secrets.token_urlsafe(24)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Every secret that this deployment made up for itself; `repr` shows none of them."""

    postgres_superuser_password: str = field(default_factory=_generate, repr=False)
    postgres_headrace_password: str = field(default_factory=_generate, repr=False)
    valkey_password: str = field(default_factory=_generate, repr=False)
    flower_user: str = "headrace"
    flower_password: str = field(default_factory=_generate, repr=False)
    metrics_token: str = field(default_factory=_generate, repr=False)


def load_credentials(data_dir: Path) -> Credentials:
    """Read `<data_dir>/credentials.json`; make it, mode 0600, when it is not there.

    Raises ServiceError when the file is damaged, because new passwords would lock the old servers out.
    """
    path = data_dir / FILE_NAME
    try:
        document = read_json(path)
    except ValueError as error:
        raise ServiceError(str(error)) from error
    names = [item.name for item in fields(Credentials)]
    if document is None:
        credentials = Credentials()
        write_private_json(path, asdict(credentials))
        return credentials
    known = {name: document[name] for name in names if isinstance(document.get(name), str)}
    credentials = Credentials(**known)
    if len(known) < len(names):
        # A newer version knows one more secret: keep the old ones, add it.
        write_private_json(path, {**document, **asdict(credentials)})
    return credentials
