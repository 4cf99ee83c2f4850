"""PgQ is installed as the server and the login allow, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg2
import pytest

from tests.conftest import Servers, _admin
from tests.integration.dispatch.conftest import Queue
from workers import database
from workers.dispatch import pgq_install
from workers.dispatch.pgq_install import install
from workers.errors import PermanentFailure
from workers.settings import Settings

MakeQueue = Callable[..., Queue]
ROLES = ("pgq_reader", "pgq_writer", "pgq_admin")


def ask(dsn: str, statement: str) -> list[tuple[object, ...]]:
    """Ask a server on a connection of its own."""
    conn = psycopg2.connect(dsn)
    try:
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        conn.close()


def settings_for(dsn: str, data_dir: Path) -> Settings:
    """Settings whose control database is this one."""
    return Settings(control={"dsn": dsn}, data_dir=data_dir)


def name_of(dsn: str) -> str:
    """The database's name in a URL."""
    return urlsplit(dsn).path[1:]


def has_pgq(dsn: str) -> bool:
    """Whether there is a schema pgq."""
    return ask(dsn, "SELECT to_regnamespace('pgq') IS NOT NULL") == [(True,)]


@pytest.fixture
def without_roles(servers: Servers) -> Iterator[None]:
    """A cluster that has never had PgQ: the roles of the other tests' databases bear other names meanwhile."""
    superuser = servers.postgres.superuser_dsn()
    had = [role for role in ROLES if ask(superuser, f"SELECT 1 FROM pg_roles WHERE rolname = '{role}'")]
    for role in had:
        ask(superuser, f"ALTER ROLE {role} RENAME TO kept_{role}")
    yield
    for role in ROLES:
        ask(superuser, f"DROP ROLE IF EXISTS {role}")
    for role in had:
        ask(superuser, f"ALTER ROLE kept_{role} RENAME TO {role}")


@pytest.fixture
def meek_dsn(servers: Servers, without_roles: None, empty_dsn: str) -> Iterator[str]:
    """The login of a role without any rights, on an empty database of a cluster that has never had PgQ."""
    superuser = servers.postgres.superuser_dsn(name_of(empty_dsn))
    ask(superuser, "CREATE ROLE meek LOGIN PASSWORD 'meek'")
    parts = urlsplit(empty_dsn)
    yield urlunsplit(parts._replace(netloc=f"meek:meek@{parts.netloc.rpartition('@')[2]}"))
    database.close_all()
    ask(superuser, "DROP OWNED BY meek CASCADE")
    ask(superuser, "DROP ROLE meek")


@pytest.fixture
def c_empty_dsn(c_servers: Servers) -> Iterator[str]:
    """An empty database of headrace's on the server that has the extension."""
    with _admin(c_servers) as cursor:
        cursor.execute("CREATE DATABASE empty_for_pgq")
    yield c_servers.postgres.dsn("empty_for_pgq")
    with _admin(c_servers) as cursor:
        cursor.execute("DROP DATABASE empty_for_pgq WITH (FORCE)")


def test_an_ordinary_role_that_may_create_roles_installs_a_pgq_that_works(
    without_roles: None, empty_dsn: str, pl_only_sql: Path, make_queue: MakeQueue, tmp_path: Path
) -> None:
    """No superuser is needed on a server without the extension, and an event comes out as it went in."""
    (step,) = install(settings_for(empty_dsn, tmp_path), "control", source=pl_only_sql)
    assert (step.file, step.is_note) == (pl_only_sql, False)
    queue = make_queue(empty_dsn)
    queue.call("register_consumer", "c")
    number = queue.insert("type", "data", "extra")
    queue.tick()
    batch = queue.call("next_batch", "c")
    assert queue.ask("SELECT ev_id, ev_type, ev_data, ev_extra1 FROM pgq.get_batch_events(%s)", batch) == [
        (number, "type", "data", "extra")
    ]


def test_installing_again_does_nothing_and_says_what_is_there(pgq_dsn: str, tmp_path: Path) -> None:
    """PgQ without C has no version, and is said to be what it is."""
    (step,) = install(settings_for(pgq_dsn, tmp_path), "control")
    assert step.is_note
    assert step.what == f"PgQ is installed in {name_of(pgq_dsn)} already: in PL/pgSQL, which has no version"


def test_an_installed_extension_is_named_with_its_version(c_pgq_dsn: str, tmp_path: Path) -> None:
    """The version is the extension's own."""
    (step,) = install(settings_for(c_pgq_dsn, tmp_path), "control")
    [(version,)] = ask(c_pgq_dsn, "SELECT extversion FROM pg_extension WHERE extname = 'pgq'")
    assert (step.is_note, step.what.rpartition(": ")[2]) == (True, f"{version}, the extension")


def test_a_superuser_gets_the_extension_where_the_server_has_it(
    c_servers: Servers, c_empty_dsn: str, tmp_path: Path
) -> None:
    """CREATE EXTENSION is the whole plan, and its run makes PgQ in C."""
    dsn = c_servers.postgres.superuser_dsn(name_of(c_empty_dsn))
    (step,) = install(settings_for(dsn, tmp_path), "control")
    assert step.statement == "CREATE EXTENSION pgq"
    assert ask(
        dsn, "SELECT lanname FROM pg_proc p JOIN pg_language l ON l.oid = prolang WHERE proname = 'logutriga'"
    ) == [("c",)]


def test_others_get_pgq_without_c_there_and_learn_of_the_extension(
    c_empty_dsn: str, pl_only_sql: Path, tmp_path: Path
) -> None:
    """Who may not create the extension is not stopped by it."""
    (step,) = install(settings_for(c_empty_dsn, tmp_path), "control", source=pl_only_sql)
    assert "in C, which a superuser can create" in step.what
    assert has_pgq(c_empty_dsn)


def test_a_dry_run_changes_nothing_and_its_script_names_the_file(
    empty_dsn: str, pl_only_sql: Path, tmp_path: Path
) -> None:
    """The plan is the statements; as a script it includes the file."""
    quoted = tmp_path / "it's here.sql"
    shutil.copy(pl_only_sql, quoted)
    (step,) = install(settings_for(empty_dsn, tmp_path), "control", source=quoted, dry_run=True)
    assert step.statement == pl_only_sql.read_text(encoding="utf-8")
    assert step.script().splitlines()[-1] == f"\\i '{tmp_path}/it\\'s here.sql'"
    assert not has_pgq(empty_dsn)


def test_a_login_without_rights_learns_every_one_that_it_lacks(
    meek_dsn: str, pl_only_sql: Path, tmp_path: Path
) -> None:
    """CREATE on the database and CREATEROLE are both named, with the statements that give them."""
    with pytest.raises(PermanentFailure, match="meek may not install PgQ") as raised:
        install(settings_for(meek_dsn, tmp_path), "control", source=pl_only_sql)
    assert f'GRANT CREATE ON DATABASE "{name_of(meek_dsn)}" TO "meek"' in str(raised.value)
    assert 'ALTER ROLE "meek" CREATEROLE' in str(raised.value)
    assert "no pgq_reader, pgq_writer, pgq_admin yet" in str(raised.value)


def test_once_the_roles_are_there_nobody_needs_createrole(
    meek_dsn: str, servers: Servers, pl_only_sql: Path, tmp_path: Path, make_queue: MakeQueue
) -> None:
    """What the message advises is enough: the roles made by somebody else, and CREATE on the database."""
    superuser = servers.postgres.superuser_dsn(name_of(meek_dsn))
    ask(
        superuser,
        "CREATE ROLE pgq_reader; CREATE ROLE pgq_writer; CREATE ROLE pgq_admin IN ROLE pgq_reader, pgq_writer",
    )
    ask(superuser, f"GRANT CREATE ON DATABASE {name_of(meek_dsn)} TO meek")
    install(settings_for(meek_dsn, tmp_path), "control", source=pl_only_sql)
    queue = make_queue(meek_dsn)
    assert queue.insert("type", "data") == 1
    queue.close()


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("CREATE SCHEMA pgq", "has nothing of PgQ in it"),
        ("CREATE SCHEMA pgq; CREATE TABLE pgq.queue (queue_name text)", "lacks function pgq.create_queue"),
    ],
)
def test_a_schema_that_is_not_whole_is_left_alone(
    empty_dsn: str, pl_only_sql: Path, tmp_path: Path, before: str, says: str
) -> None:
    """Nothing is put over what somebody began, and what is missing is said."""
    ask(empty_dsn, before)
    with pytest.raises(PermanentFailure, match=says):
        install(settings_for(empty_dsn, tmp_path), "control", source=pl_only_sql)
    assert ask(empty_dsn, "SELECT to_regprocedure('pgq.create_queue(text)')") == [(None,)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "CREATE SCHEMA pgq;\n  \\i structure/tables.sql\n",
            r"line 2: '\\\\i structure/tables.sql' is a command of psql",
        ),
        ("begin;\nCREATE SCHEMA pgq;\ncommit;\n", "line 1: 'begin;' is a transaction of its own"),
        ("CREATE SCHEMA pgq; CREATE TABLE pgq.queue (queue_name text);", "makes no PgQ that can be used"),
        ("CREATE SCHEMA pgq;\nCREATE TABBLE pgq.queue ();", "PgQ cannot be installed: syntax error"),
    ],
)
def test_a_file_that_makes_no_pgq_changes_nothing(empty_dsn: str, tmp_path: Path, text: str, says: str) -> None:
    """What a file did is rolled back if PgQ is not whole after it."""
    path = tmp_path / "other.sql"
    path.write_text(text)
    with pytest.raises(PermanentFailure, match=says):
        install(settings_for(empty_dsn, tmp_path), "control", source=path)
    assert not has_pgq(empty_dsn)


def test_a_file_that_cannot_be_read_is_named(empty_dsn: str, tmp_path: Path) -> None:
    """The path and the reason are in the message."""
    with pytest.raises(PermanentFailure, match=r"nowhere\.sql: cannot be read"):
        install(settings_for(empty_dsn, tmp_path), "control", source=tmp_path / "nowhere.sql")


def test_two_who_install_at_once_install_it_once(empty_dsn: str, pl_only_sql: Path, tmp_path: Path) -> None:
    """One of them does it; the others wait, and find it there."""
    conf = settings_for(empty_dsn, tmp_path)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: install(conf, "control", source=pl_only_sql)[0].is_note, range(4)))
    assert sorted(done) == [False, True, True, True]


def test_the_newest_version_on_the_system_is_found(tmp_path: Path) -> None:
    """Versions are compared as numbers, and what is on the system wins over what was fetched before."""
    for version in ("9", "15", "notes"):
        folder = tmp_path / version / "contrib"
        folder.mkdir(parents=True)
        (folder / pgq_install.FILE).write_text("")
    assert pgq_install.find_source(tmp_path, tmp_path) == tmp_path / "15" / "contrib" / pgq_install.FILE


def test_what_was_fetched_before_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file in the data folder does without apt."""
    monkeypatch.setenv("PATH", "")
    kept = tmp_path / "pgq" / pgq_install.FILE
    kept.parent.mkdir()
    kept.write_text("")
    assert pgq_install.find_source(tmp_path, tmp_path) == kept


def test_without_apt_the_message_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that is no Debian is told of the package and of --from."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PermanentFailure, match=r"apt-cache cannot fetch it .*postgresql-NN-pgq3.*--from"):
        pgq_install.find_source(tmp_path, tmp_path)


def test_the_package_gives_the_file_without_root(tmp_path: Path, empty_dsn: str) -> None:
    """Debian's package is fetched and unpacked into the data folder, and PgQ installs out of it."""
    try:
        path = pgq_install.find_source(tmp_path, tmp_path)
    except PermanentFailure as error:
        if "holds no" in str(error):
            raise
        pytest.skip(f"apt has no package for us here: {error}")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "pgq", tmp_path / "pgq" / pgq_install.FILE]
    install(settings_for(empty_dsn, tmp_path), "control", source=path)
    assert has_pgq(empty_dsn)
