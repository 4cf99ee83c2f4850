"""The embedded PostgreSQL of one data folder, reached on 127.0.0.1 with generated passwords."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errors
import psycopg2.extensions
from psycopg2 import sql

from workers.services import binaries
from workers.services.credentials import load_credentials
from workers.services.errors import StartFailedError
from workers.services.postgres_account import Account, choose_account, nobody_account, reachable_bin
from workers.services.postgres_cluster import (
    SUPERUSER,
    clear_stale_lock_file,
    cluster_major,
    configure,
    environment,
    initialise,
    works_in,
)
from workers.services.processes import LINUX, process_state, spawn
from workers.services.server import Server

ROLE = "headrace"


class PostgresServer(Server):
    """PostgreSQL in `<data_dir>/postgres/`; the role `headrace` owns the database `headrace`.

    Fast shutdown first (SIGINT), then immediate (SIGQUIT), which costs a crash recovery at the next start.
    `account` overrides the choice of `postgres_account.choose_account`.
    """

    name = "postgres"
    title = "PostgreSQL"
    stop_steps = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))

    def __init__(self, data_dir: Path, *, account: Account | None = None) -> None:
        super().__init__(data_dir)
        self._account = account
        self._socket_dir: Path | None = None

    def dsn(self, database: str = "headrace") -> str:
        """Return the URL of `database` for the role `headrace`, password included.

        Raises ServiceError when the server has never been started.
        """
        password = load_credentials(self.folder.root).postgres_headrace_password
        return f"postgresql://{ROLE}:{password}@127.0.0.1:{self.port}/{database}"

    def superuser_dsn(self, database: str = "postgres") -> str:
        """Return the URL of `database` for the superuser: for tests and repairs only."""
        password = load_credentials(self.folder.root).postgres_superuser_password
        return f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{self.port}/{database}"

    def ready(self) -> bool:
        """Tell whether it accepts connections. Raises StartFailedError when it refuses our password."""
        try:
            self._connect().close()
        except psycopg2.OperationalError as error:
            if "password authentication failed" in str(error):
                raise StartFailedError(self._credentials_hint()) from error
            return False
        return True

    def clean_up(self) -> None:
        """Remove the folder of the Unix socket."""
        socket_dir = self._socket_dir or self._remembered_socket_dir()
        if socket_dir is not None:
            shutil.rmtree(socket_dir, ignore_errors=True)
        self._socket_dir = None

    def _spawn(self, lock: int) -> subprocess.Popen[bytes]:
        pgdata = self.folder.postgres
        found = binaries.postgres_bin(cluster_major(pgdata))
        if self._account is None:
            self._account = choose_account(found)
        account = self._account
        bin_dir = reachable_bin(found, self.folder.run, account)
        if cluster_major(pgdata) is None:
            initialise(
                pgdata, bin_dir=bin_dir, major=binaries.postgres_major(found), account=account, lock=lock,
                password=load_credentials(self.folder.root).postgres_superuser_password,
                log_path=self.log_path,
            )  # fmt: skip
        clear_stale_lock_file(pgdata)
        self._socket_dir = self._make_socket_dir(account)
        configure(pgdata, port=self.port, socket_dir=self._socket_dir, account=account)
        # The server itself, not pg_ctl: only a direct child gets the death signal. SIGINT = fast shutdown.
        return spawn(
            [str(bin_dir / "postgres"), "-D", str(pgdata)],
            env=environment(), cwd=pgdata, log_path=self.log_path, death_signal=signal.SIGINT,
            user_namespace=account.user_namespace, uid=account.uid, gid=account.gid, pass_fds=(lock,),
        )  # fmt: skip

    def _prepare_content(self) -> None:
        """Make the role and its database, each by itself: a kill in between is made good next time."""
        with closing(self._connect()) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute("SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = %s", (ROLE,))
            if cursor.fetchone() is None:
                password = load_credentials(self.folder.root).postgres_headrace_password
                # Hashed here: the plain password can then never show up in the server's log.
                hashed = psycopg2.extensions.encrypt_password(password, ROLE, connection, "scram-sha-256")
                command = sql.SQL("CREATE ROLE {} LOGIN CREATEDB CREATEROLE NOSUPERUSER PASSWORD {}")
                with suppress(psycopg2.errors.DuplicateObject):  # another start was first
                    cursor.execute(command.format(sql.Identifier(ROLE), sql.Literal(hashed)))
                # Role and bookkeeping schema share a name; by default the schema would catch what a person
                # creates without naming one.
                command = sql.SQL("ALTER ROLE {} SET search_path = public")
                cursor.execute(command.format(sql.Identifier(ROLE)))
            cursor.execute("SELECT 1 FROM pg_catalog.pg_database WHERE datname = %s", (ROLE,))
            if cursor.fetchone() is None:
                command = sql.SQL("CREATE DATABASE {} OWNER {}")
                with suppress(psycopg2.errors.DuplicateDatabase):
                    cursor.execute(command.format(sql.Identifier(ROLE), sql.Identifier(ROLE)))

    def _connect(self) -> psycopg2.extensions.connection:
        return psycopg2.connect(
            host="127.0.0.1", port=self.port, user=SUPERUSER, dbname="postgres", connect_timeout=3,
            password=load_credentials(self.folder.root).postgres_superuser_password,
            sslmode="disable", gssencmode="disable", application_name="headrace supervisor",
        )  # fmt: skip

    def _extra_record(self) -> dict[str, Any]:
        return {"socket_dir": str(self._socket_dir)}

    def _make_socket_dir(self, account: Account) -> Path:
        # Short, whatever the data folder is called: a socket's path has at most 107 bytes.
        remembered = self._remembered_socket_dir()
        if remembered is not None:
            shutil.rmtree(remembered, ignore_errors=True)
        parent = "/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else None
        socket_dir = Path(tempfile.mkdtemp(prefix="headrace-", dir=parent))
        account.own(socket_dir)
        return socket_dir

    def _remembered_socket_dir(self) -> Path | None:
        """Return the last run's socket folder when it is still ours; /tmp is everybody's, so look closely."""
        name = self._record().get("socket_dir")
        if not isinstance(name, str) or not Path(name).name.startswith("headrace-"):
            return None
        try:
            found = os.lstat(name)
        except OSError:
            return None
        owners = (os.geteuid(), nobody_account().uid) if os.geteuid() == 0 else (os.geteuid(),)
        ours = found.st_uid in owners and stat.S_IMODE(found.st_mode) == 0o700
        return Path(name) if stat.S_ISDIR(found.st_mode) and ours else None

    def _end_orphans(self) -> None:
        """Kill backends whose postmaster was killed: a long query would go on and keep the next server out.

        Harmless: nothing that they did since can be committed to the files of a dead server.
        """
        if not LINUX:
            return
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and works_in(int(entry.name), self.folder.postgres):
                state = process_state(int(entry.name))
                if state is not None and state.command.startswith("postgres"):
                    with suppress(ProcessLookupError):
                        os.kill(state.pid, signal.SIGKILL)
