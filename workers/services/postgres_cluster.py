"""The files of the embedded PostgreSQL: made by initdb once, configured anew at each start."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

from workers.services.child_logs import last_lines, log_size
from workers.services.errors import ServiceError, StartFailedError
from workers.services.postgres_account import Account
from workers.services.private_files import sync_folder, write_private
from workers.services.processes import LINUX, process_state, spawn

SUPERUSER = "postgres"
# initdb writes 40 MB and the first minutes of work some WAL segments of 16 MB.
NEEDED_FREE_BYTES = 150 * 1024 * 1024
_INIT_SECONDS = 300
_INCLUDE = """
# Headrace writes this file at each start; your own settings go into local.conf.
include_if_exists = 'headrace.conf'
"""


def environment() -> dict[str, str]:
    """Return the whole environment of PostgreSQL's programs: nothing of ours, above all no PG* variables."""
    return {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}


def cluster_major(pgdata: Path) -> int | None:
    """Return the major version that made the cluster in `pgdata`, or None when there is none yet."""
    try:
        return int((pgdata / "PG_VERSION").read_text(encoding="ascii").split(".")[0])
    except FileNotFoundError:
        return None


def initialise(
    pgdata: Path, *, bin_dir: Path, major: int, account: Account, password: str, log_path: Path, lock: int
) -> None:
    """Make a new cluster beside `pgdata` and rename it into place, so that a kill half-way spoils nothing.

    The superuser `postgres` gets `password`. Raises StartFailedError or OSError.
    """
    for left_over in pgdata.parent.glob(pgdata.name + ".init*"):
        shutil.rmtree(left_over, ignore_errors=True)
    if pgdata.exists() and any(pgdata.iterdir()):
        raise ServiceError(f"{pgdata} holds files but no PostgreSQL cluster: move it away, and start again.")
    free_bytes = shutil.disk_usage(pgdata.parent).free
    if free_bytes < NEEDED_FREE_BYTES:
        raise StartFailedError(
            f"No space left for a new PostgreSQL in {pgdata.parent}: {free_bytes >> 20} MB free, "
            f"{NEEDED_FREE_BYTES >> 20} MB needed. Free some, or choose another --data-dir."
        )
    scratch = pgdata.with_name(pgdata.name + ".init")
    scratch.mkdir(mode=0o700)
    account.own(scratch)
    password_file = pgdata.with_name(pgdata.name + ".init.pw")
    password_file.unlink(missing_ok=True)
    write_private(password_file, password + "\n", durable=False)
    account.own(password_file)
    mark = log_size(log_path)
    argv = [
        str(bin_dir / "initdb"), "--pgdata", str(scratch),
        "--username", SUPERUSER, "--pwfile", str(password_file),
        "--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "--encoding=UTF8", "--data-checksums",
        "--locale=C.UTF-8" if LINUX else "--locale=C",
    ]  # fmt: skip
    if major >= 17:
        argv += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    try:
        process = spawn(
            argv, env=environment(), cwd=scratch, log_path=log_path, death_signal=signal.SIGKILL,
            user_namespace=account.user_namespace, uid=account.uid, gid=account.gid, pass_fds=(lock,),
        )  # fmt: skip
        try:
            code = process.wait(_INIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    finally:
        password_file.unlink(missing_ok=True)
    if code != 0:
        tail = last_lines(log_path, since_bytes=mark)
        shutil.rmtree(scratch, ignore_errors=True)
        if "No space left on device" in tail:
            raise StartFailedError(
                f"No space left for a new PostgreSQL in {pgdata.parent}: free some, or choose another --data-dir."
            )
        raise StartFailedError(f"initdb could not make {pgdata} (exit {code}). Its log {log_path} ends:\n{tail}")
    with (scratch / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.write(_INCLUDE)
    scratch.rename(pgdata)
    sync_folder(pgdata.parent)


def configure(pgdata: Path, *, port: int, socket_dir: Path, account: Account) -> None:
    """Write `headrace.conf`: a small machine's settings; whatever `local.conf` says stands above them."""
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": str(socket_dir),
        "unix_socket_permissions": "0700",
        "max_connections": "200",
        "shared_buffers": "128MB",
        "wal_compression": "on",  # pglz: the wheel has no lz4, and PostgreSQL 14 knows no other word
        # A backend whose client was killed is gone within seconds, with its locks.
        "client_connection_check_interval": "5s",
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "2",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "30s",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_destination": "stderr",
        "logging_collector": "off",  # the supervisor bounds the file
        "log_line_prefix": "%m [%p] %q%u@%d %a ",
        "password_encryption": "scram-sha-256",
    }
    if (cluster_major(pgdata) or 0) >= 16:
        # Iterations slow down the guessing of passwords that people choose; ours are random, and every connection pays.
        settings["scram_iterations"] = "64"
    lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'" for name, value in settings.items()]
    path = pgdata / "headrace.conf"
    write_private(path, "\n".join([*lines, "include_if_exists = 'local.conf'", ""]), durable=False)
    account.own(path)


def clear_stale_lock_file(pgdata: Path) -> None:
    """Remove a `postmaster.pid` whose process is dead, a zombie, or another program with its number.

    PostgreSQL itself takes a zombie for alive and refuses to start. Safe because of `run/postgres.lock`: no
    backend of the old server is left. Raises ServiceError when a postmaster that we did not start runs here.
    """
    path = pgdata / "postmaster.pid"
    try:
        pid = int(path.read_text(encoding="utf-8").split("\n", 1)[0])
    except FileNotFoundError:
        return
    except ValueError:
        pid = 0  # killed while writing it
    state = process_state(abs(pid))
    if state is not None and state.alive and "postgres" in state.command and works_in(state.pid, pgdata):
        raise ServiceError(
            f"PostgreSQL pid {state.pid} runs on {pgdata}, but Headrace did not start it: stop it "
            f"(`pg_ctl stop -D '{pgdata}'`), then start again."
        )
    path.unlink(missing_ok=True)


def works_in(pid: int, pgdata: Path) -> bool:
    """Tell whether process `pid` has `pgdata` as its working folder, as every PostgreSQL process has."""
    if not LINUX:
        return True
    try:
        return Path(f"/proc/{pid}/cwd").samefile(pgdata)
    except OSError:
        return False
