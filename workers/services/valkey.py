"""The embedded Valkey (or Redis) of one data folder, reached on 127.0.0.1 with a generated password."""

from __future__ import annotations

import signal
import socket
import subprocess

from workers.services import binaries
from workers.services.credentials import load_credentials
from workers.services.errors import StartFailedError
from workers.services.private_files import write_private
from workers.services.processes import spawn
from workers.services.server import Server


class ValkeyServer(Server):
    """Valkey in `<data_dir>/valkey/`: an append-only file synced every second, nothing evicted."""

    name = "valkey"
    title = "Valkey"
    stop_steps = ((signal.SIGTERM, 15.0), (signal.SIGKILL, 10.0))

    def url(self, db: int = 0) -> str:
        """Return the URL of database number `db`, password included.

        Raises ServiceError when the server has never been started.
        """
        return f"redis://:{load_credentials(self.folder.root).valkey_password}@127.0.0.1:{self.port}/{db}"

    def ready(self) -> bool:
        """Tell whether it answers PING and has loaded its data. Raises StartFailedError on a bad password."""
        password = load_credentials(self.folder.root).valkey_password
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(f"AUTH {password}\r\nPING\r\nQUIT\r\n".encode())
                answer = b""
                # The server closes after QUIT; the bound is for a stranger on that port.
                while len(answer) < 4096 and (piece := connection.recv(4096)):
                    answer += piece
        except OSError:
            return False
        if answer.startswith(b"-WRONGPASS"):
            raise StartFailedError(self._credentials_hint())
        return b"+PONG" in answer

    def _spawn(self, lock: int) -> subprocess.Popen[bytes]:
        path = self.folder.run / "valkey.conf"
        write_private(path, self._configuration(), durable=False)
        # SIGTERM: it writes what its append-only file still lacks, then ends. The inherited lock keeps a
        # successor away until then; two servers on one append-only file would ruin it.
        return spawn(
            [str(binaries.valkey_binary()), str(path)],
            env={"PATH": "/usr/bin:/bin", "TZ": "UTC"}, cwd=self.folder.valkey, log_path=self.log_path,
            death_signal=signal.SIGTERM, pass_fds=(lock,),
        )  # fmt: skip

    def _configuration(self) -> str:
        lines = [
            "bind 127.0.0.1",
            "protected-mode yes",
            f"port {self.port}",
            f"dir {_quoted(str(self.folder.valkey))}",
            # In a file and never in argv, which every user of the machine can read.
            f"requirepass {load_credentials(self.folder.root).valkey_password}",
            "daemonize no",
            'logfile ""',
            'save ""',
            "appendonly yes",
            "appendfsync everysec",
            "maxmemory-policy noeviction",
        ]
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
