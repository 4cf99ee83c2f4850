"""Who may look: the user and password of Flower, and the token that a metrics scraper may use instead."""

from __future__ import annotations

from pathlib import Path

from workers.errors import SettingsError
from workers.services.credentials import FILE_NAME, Credentials, load_credentials
from workers.services.folders import describe
from workers.settings import Settings
from workers.targets import read_secret


def user_and_password(conf: Settings) -> tuple[str, str]:
    """The configured login; what is not configured comes out of the data folder, made there if need be.

    Raises SettingsError when a secret cannot be read or cannot work, ServiceError for a damaged file.
    """
    if conf.flower.password_file is None:
        made = _credentials(conf)
        return conf.flower.user or made.flower_user, made.flower_password
    user = conf.flower.user or "headrace"
    password = _secret(conf.flower.password_file)
    if not f"{user}{password}".isascii() or ":" in user:
        raise SettingsError(
            [
                "flower.user and flower.password_file: a browser's login needs ASCII characters and a user "
                "without a colon; choose others"
            ]
        )
    return user, password


def metrics_token(conf: Settings) -> str:
    """What `Authorization: Bearer` must carry to read /metrics without a login. Raises as above."""
    if conf.flower.metrics_token_file is not None:
        return _secret(conf.flower.metrics_token_file)
    return _credentials(conf).metrics_token


def credentials_file(conf: Settings) -> Path:
    """Where generated secrets are kept, mode 0600."""
    return conf.data_dir.absolute() / FILE_NAME


def _credentials(conf: Settings) -> Credentials:
    folder = conf.data_dir.absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return load_credentials(folder)
    except OSError as error:
        raise SettingsError(
            [f"{describe(folder, error)} Or name files: flower.password_file and flower.metrics_token_file."]
        ) from error


def _secret(path: Path) -> str:
    secret = read_secret(path)
    if not secret:
        raise SettingsError([f"{path}: the secret is empty, so anybody could guess it; write one into the file"])
    return secret
