"""A disk that gets full while a table is copied: a real one, of three megabytes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import psycopg2
import pytest

from workers import database, migrations
from workers import settings as settings_module
from workers.repack import places, requests
from workers.repack.requests import Wish
from workers.repack_settings import TableRules
from workers.services.postgres import PostgresServer
from workers.settings import Settings

SMALL_BYTES = 3 * 2**20


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of three megabytes."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-small-"))
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES},mode=700", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode != 0:
        folder.rmdir()
        pytest.skip("a full disk is tested where this user may mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def test_a_full_disk_ends_the_copy_and_gives_the_room_back(small_disk: Path, tmp_path: Path) -> None:
    """It is given up with that reason, nothing is left on the disk or at the table, and people go on writing."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-disk-"))
    # A server of its own, begun after the mount: those of the other tests have a view of the file systems of their own.
    postgres = PostgresServer(folder)
    postgres.start()
    try:
        with closing(psycopg2.connect(postgres.superuser_dsn("headrace"))) as admin:
            admin.autocommit = True
            with admin.cursor() as cursor:
                cursor.execute(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
                cursor.execute("GRANT CREATE ON TABLESPACE small TO PUBLIC")
        conf = Settings(host="here", data_dir=tmp_path, control={"dsn": postgres.dsn("headrace")})
        settings_module.use(conf)
        with database.connection(conf.target(), purpose="tests") as conn:
            migrations.migrate(conn, migrations.FOUNDATION)
        with closing(psycopg2.connect(postgres.dsn("headrace"))) as conn:
            conn.autocommit = True
            cursor = conn.cursor()
            cursor.execute("CREATE SCHEMA app; CREATE TABLE app.t (id integer PRIMARY KEY, v text)")
            cursor.execute("INSERT INTO app.t SELECT g, repeat('x', 200) FROM generate_series(1, 30000) g")
            repack = requests.request(conf, "control", "app", "t", Wish(rules=TableRules(tablespace="small")))
            message = requests.message("control", repack, "app", "t")
            problems = requests.finish(conf, [message], timeout=timedelta(seconds=60))
            assert len(problems) == 1 and "No space left" in problems[0], problems
            cursor.execute("SELECT state, reason, rows_copied > 0 FROM headrace.repack")
            assert cursor.fetchall() == [("failed", "disk", True)]
            cursor.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ '^headrace_'")
            assert cursor.fetchall() == []
            cursor.execute("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'app.t'::regclass")
            assert cursor.fetchall() == [(0,)]
            cursor.execute("UPDATE app.t SET v = 'y' WHERE id = 7")
            cursor.execute("SELECT count(*) FROM app.t")
            assert cursor.fetchall() == [(30000,)]
        assert shutil.disk_usage(small_disk).used < SMALL_BYTES / 10
    finally:
        settings_module._current = None
        database.close_all()
        places.forget()
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)
