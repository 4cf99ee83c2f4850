"""hdbpp-postprocessing's YAML file: its root keys are databases, each with a `connection:`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workers.errors import SettingsError
from workers.targets import CONTROL
from workers.yaml_files import read_yaml

DEFAULTS: dict[str, Any] = {"host": "localhost", "port": 5432, "database": "hdb"}
_MORE = ("sslmode", "service", "passfile", "password_file", "password_env")


def databases_of(file: Path) -> dict[str, dict[str, Any]]:
    """The file as our `databases:`; host, port and database get the defaults that its README promises.

    Sections and keys beside them are left alone, as hdbpp-postprocessing does. A database called `control` there is
    called `control-hdbpp` here. Raises SettingsError with every problem of the file at once.
    """
    document = read_yaml(file)
    if not document:
        raise SettingsError([f"{file}: it names no database; each is a root key with a `connection:` below it"])
    problems: list[str] = []
    found = {}
    for key, section in document.items():
        name = f"{key}-hdbpp" if str(key) == CONTROL else str(key)
        connection = section.get("connection") if isinstance(section, dict) else None
        if not isinstance(connection, dict):
            problems.append(
                f"{file}: {key}: expected a section `connection:` with user, password, host, port, database"
            )
        elif not connection.get("user"):
            problems.append(f"{file}: {key}.connection: `user` is missing")
        else:
            found[name] = {"connection": _connection(connection)}
            problems += _port_problem(f"{file}: {key}.connection", found[name]["connection"])
    if problems:
        raise SettingsError(problems)
    return found


def _connection(given: dict[str, Any]) -> dict[str, Any]:
    words = {key: value for key, value in given.items() if key in ("user", "password", *DEFAULTS, *_MORE)}
    words = {**DEFAULTS, **{key: value for key, value in words.items() if value is not None}}
    # A password or a database's name that looks like a number is one all the same.
    return {key: value if key == "port" else str(value) for key, value in words.items()}


def _port_problem(where: str, connection: dict[str, Any]) -> list[str]:
    port = str(connection["port"])
    return [] if port.isdigit() and 0 < int(port) < 65536 else [f"{where}: port {port!r} is no port number"]
