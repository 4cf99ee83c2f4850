"""Connections: names, translated errors, and passwords that stay out of sight; no server is needed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg2 import errors
from psycopg2.extensions import parse_dsn

from workers.database import NAME_BYTES, application_name, describe_error, first_line, translated
from workers.errors import RetryLater, ServerUnavailable
from workers.targets import Connection, Target, redacted, with_password

TARGET = Target("hdb", "postgresql://me:s3cret@db/hdb")


@given(st.text(max_size=100).filter(lambda text: "\0" not in text), st.one_of(st.none(), st.integers(1, 2**63 - 1)))
def test_a_name_fits_and_keeps_its_run(purpose: str, run: int | None) -> None:
    """Whatever the purpose: at most 63 bytes of whole characters, and the run id in full at the end."""
    try:
        purpose.encode()
    except UnicodeEncodeError:
        return
    name = application_name(purpose, run)
    assert len(name.encode()) <= NAME_BYTES
    assert name.startswith("headrace ")
    assert run is None or name.endswith(f" run={run}")


def failure(kind: type[psycopg2.Error], code: str | None) -> psycopg2.Error:
    """An error as psycopg2 raises it, with its SQLSTATE."""
    error = kind("it went wrong\nDETAIL: more")
    error.__setstate__({"pgcode": code})  # type: ignore[no-untyped-call]
    return error


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.DeadlockDetected, "40P01"),
        (errors.SerializationFailure, "40001"),
        (errors.LockNotAvailable, "55P03"),
        (errors.TooManyConnections, "53300"),
        (errors.DiskFull, "53100"),
        (errors.OutOfMemory, "53200"),
        (errors.ReadOnlySqlTransaction, "25006"),
    ],
)
def test_what_passes_is_tried_again(kind: type[psycopg2.Error], code: str) -> None:
    """A deadlock, a lock, a full or read-only server: RetryLater, with the server's own first line."""
    with pytest.raises(RetryLater, match=r"hdb: .*it went wrong") as caught, translated(TARGET):
        raise failure(kind, code)
    assert "DETAIL" not in str(caught.value)
    assert timedelta(0) < caught.value.after <= timedelta(seconds=30)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.AdminShutdown, "57P01"),
        (errors.CrashShutdown, "57P02"),
        (errors.CannotConnectNow, "57P03"),
        (errors.ConnectionFailure, "08006"),
        (psycopg2.OperationalError, None),
    ],
)
def test_a_dying_server_is_unavailable(kind: type[psycopg2.Error], code: str | None) -> None:
    """A connection that goes is ServerUnavailable, and its message holds no password."""
    with pytest.raises(ServerUnavailable) as caught, translated(TARGET):
        raise failure(kind, code)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UniqueViolation, "23505"),
        (errors.NotNullViolation, "23502"),
        (errors.UndefinedTable, "42P01"),
        (errors.InvalidTextRepresentation, "22P02"),
        (errors.InFailedSqlTransaction, "25P02"),
        (errors.ProgramLimitExceeded, "54000"),
    ],
)
def test_a_bug_stays_a_bug(kind: type[psycopg2.Error], code: str) -> None:
    """What no waiting will mend comes through as it is."""
    with pytest.raises(kind), translated(TARGET):
        raise failure(kind, code)


def test_an_error_is_described_without_its_passwords() -> None:
    """A run row keeps message and SQLSTATE; a connection string in them loses its password."""
    error = psycopg2.OperationalError("cannot use postgresql://me:s3cret@db/hdb\nand more")
    assert first_line(error) == "cannot use postgresql://me:•••@db/hdb"
    assert describe_error(error) == {"message": "cannot use postgresql://me:•••@db/hdb"}
    assert first_line(psycopg2.OperationalError()) == "OperationalError"


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://me:s3cret@db/hdb", "postgresql://me:•••@db/hdb"),
        ("postgresql://me@db/hdb", "postgresql://me@db/hdb"),
        ("postgresql://me:s3cret%40%2F@a,b/hdb", "postgresql://me:•••@a,b/hdb"),
        ("redis://:s3cret@db:6379/0", "redis://:•••@db:6379/0"),
        ("postgresql://db/hdb?user=me&password=s3cret&sslmode=x", "postgresql://db/hdb?user=me&password=•••&sslmode=x"),
        ("host=db password=s3cret user=me", "host=db password=••• user=me"),
        ("host=db password = 's3 \\'cret' user=me", "host=db password = ••• user=me"),
        ("host=db port=5432", "host=db port=5432"),
        ("no postgresql://me:s3cret@db/x, password=s3cret now", "no postgresql://me:•••@db/x, password=••• now"),
        ("x (host=a password=•••): bad", "x (host=a password=•••): bad"),
    ],
)
def test_a_password_is_never_shown(dsn: str, shown: str) -> None:
    """Wherever a connection string may have its password, dots stand there, and the rest stays readable."""
    assert redacted(dsn) == shown
    assert shown in str(Target("hdb", dsn)) and "s3cret" not in repr(Target("hdb", dsn))


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:x/s3cret@db/hdb",
        "redis://:x@s3cret@db:6379/0",
        "host=db password=x&s3cret user=me",
        "host=db password=x\\ s3cret user=me",
        "host=db password='x s3cret",
    ],
)
def test_an_odd_password_is_not_shown_either(dsn: str) -> None:
    """Also a password with an unescaped @, / or &, and an unfinished quote, stays out of sight."""
    assert "s3cret" not in redacted(dsn)


@pytest.mark.parametrize(
    "dsn", ["postgresql://me:old@db:5433/hdb", "postgresql://me@db:5433/hdb", "user=me host=db port=5433 dbname=hdb"]
)
@given(
    password=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1).map(str.strip).filter(bool)
)
def test_a_password_from_a_file_arrives_exactly(
    tmp_path_factory: pytest.TempPathFactory, dsn: str, password: str
) -> None:
    """Quotes, blanks, @, :, / and % in a password file reach libpq as they are, and are hidden from logs."""
    path: Path = tmp_path_factory.getbasetemp() / "secret"
    path.write_text(password + "\n")
    joined = with_password(dsn, path)
    wanted = {"user": "me", "password": password, "host": "db", "port": "5433", "dbname": "hdb"}
    assert parse_dsn(joined) == wanted
    assert "•••" in redacted(joined)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20))
def test_a_named_connection_becomes_a_libpq_string(word: str) -> None:
    """Every word of `connection:` reaches libpq as it is, whatever characters it has."""
    target = Connection.model_validate({"user": word, "password": word, "port": 5433}).target("hdb")
    found = parse_dsn(target.dsn)
    assert (found["user"], found["password"], found["port"]) == (word, word, "5433")
