"""What PgQ's real triggers write, in C and in PL/pgSQL, is what the decoders read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql as composed

from tests.conftest import Servers
from tests.integration.dispatch.conftest import Queue
from workers.dispatch import jsontriga, urlencoded
from workers.dispatch.iso import is_iso
from workers.dispatch.urlencoded import Row

FIELDS = ("ev_type", "ev_data", "ev_extra1", "ev_extra2", "ev_extra3", "ev_extra4")
# Its truth is of one of the two tables only.
TRUTH_OF_ANOTHER_TABLE = "35_inherited_and_fk_cascade"

# A column of each sort of type, with values whose text loses something on a careless way.
TYPES = {
    "n": ("numeric", "1.10", "NaN", "-0.00001"),
    "big": ("numeric", "12345678901234567890123456789.10", "1e40", "Infinity"),
    "f8": ("float8", "0.1", "-Infinity", "1.7976931348623157e308"),
    "f4": ("float4", "1e-45", "-0", "3.4028235e38"),
    "i8": ("bigint", "9223372036854775807", "-9223372036854775808", "0"),
    "i2": ("smallint", "-5", "0", "32767"),
    "o": ("oid", "4294967295", "0", "1"),
    "b": ("boolean", "t", "f", None),
    "by": ("bytea", r"\x00ff5c", r"\x", None),
    "ia": ("int[]", "{1,NULL,3}", "{}", "[0:1]={7,8}"),
    "ta": ("text[]", '{"a,b","c\\"d",NULL,"NULL","", x }', "{}", None),
    "ba": ("bool[]", "{t,f,NULL}", "{}", None),
    "p": ("pair", '(1,"a,""b""(c)",1.10)', "(,,)", None),
    "pa": ("pair[]", '{"(1,x,2.50)",NULL}', "{}", None),
    "j": ("json", '{"b": 1.10,  "a":[null,true], "b":2, "n":1e400}', "null", ' "s" '),
    "jb": ("jsonb", '{"b": 1.10, "n":12345678901234567890.10}', "null", "[[1.500]]"),
    "ts": ("timestamp", "2026-11-21 22:18:22.123456", "0044-03-15 12:00:00 BC", "infinity"),
    "tz": ("timestamptz", "1890-01-01 00:00:00+02", "12026-01-01 00:00:00+00", "-infinity"),
    "d": ("date", "2026-11-03", "4713-01-01 BC", "infinity"),
    "tm": ("timetz", "23:59:59.999999+02", "24:00:00+00", None),
    "iv": ("interval", "1 year 2 mons -3 days 04:05:06.7", "-1 day", "0"),
    "c": ("char(5)", "ab", "", None),
    "vc": ("varchar", "vc ", "", None),
    "t": ("text", 'q"\\\n\t\x01é😀 /<>&%+=\x7f\u2028 ', "NULL", "null"),
    'Q "x&=%.,é': ("text", "odd", "names", None),
    "di": ("whole", "7", "-1", None),
    "db": ("yes", "t", "f", None),
    "e": ("mood", "so so", "ha&ppy", None),
    "r": ("daterange", "[2026-11-03,2026-11-05)", "empty", "(,)"),
    "i": ("inet", "::1", "10.0.0.0/8", None),
    "u": ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", None, None),
    "bt": ("bit(4)", "1010", "0000", None),
    "m": ("money", "1234.50", "-1", None),
}


@dataclass(frozen=True)
class Source:
    """A database with PgQ, for a superuser; `flavour` is c or plpgsql."""

    dsn: str
    flavour: str


@pytest.fixture(params=["c", "plpgsql"])
def source(request: pytest.FixtureRequest) -> Source:
    """PgQ in C, and in PL/pgSQL."""
    dsn = request.getfixturevalue("c_pgq_dsn" if request.param == "c" else "pgq_dsn")
    servers = request.getfixturevalue("c_servers" if request.param == "c" else "servers")
    # Some vectors set what only a superuser may.
    return Source(servers.postgres.superuser_dsn(dsn.rpartition("/")[2]), request.param)


@contextmanager
def session(dsn: str) -> Iterator[Any]:
    """A cursor in a transaction that is rolled back, in a session with the vectors' own settings."""
    with closing(psycopg2.connect(dsn, options="-c timezone=UTC -c datestyle=ISO,MDY")) as conn:
        yield conn.cursor()
        conn.rollback()


def newest_events(cursor: Any, queue: str, after: int) -> tuple[list[dict[str, str | None]], int]:
    """The queue's events after this number, as the vectors have them, and the last number."""
    cursor.execute("SELECT pgq.current_event_table(%s)", (queue,))
    cursor.execute(
        f"SELECT ev_id, {', '.join(FIELDS)} FROM {cursor.fetchone()[0]} WHERE ev_id > %s ORDER BY ev_id", (after,)
    )
    rows = cursor.fetchall()
    return [dict(zip(FIELDS, row[1:], strict=True)) for row in rows], max([after, *(row[0] for row in rows)])


def decoded(data: str) -> Row:
    """A row by the C decoder, and the same by its twin."""
    row = urlencoded.decode(data)
    assert urlencoded.decode_python(data) == row
    return row


def untrue(events: list[dict[str, str | None]], before: list[Row], after: list[Row]) -> list[Row]:
    """The rows of events that the table did not have: after the step, or before it where they were deleted."""
    wrong = []
    for event in events:
        row = decoded(event["ev_data"] or "")
        there = before if (event["ev_type"] or "")[:1] == "D" else after
        magic = {name for truth in there for name in truth if name.startswith("_pgq_ev_")}
        known = [{name: value for name, value in truth.items() if name not in magic} for truth in there]
        if event["ev_type"] != "R" and row not in known:
            wrong.append(row)
    return wrong


def test_vectors(source: Source, shared: Path) -> None:
    """The installed trigger writes each recorded event again, and its rows decode to what the table then has."""
    vectors = json.loads((shared / "fixtures/pgq/logutriga_vectors.json").read_text(encoding="utf-8"))["vectors"]
    compared = 0
    for vector in vectors:
        with session(source.dsn) as cursor:
            cursor.execute("SELECT pgq.create_queue('v')")
            cursor.execute("CREATE SCHEMA v")
            for statement in vector["ddl"]:
                # The embedded server is built without libxml; a text prints the same.
                cursor.execute(statement.replace("x xml", "x text") if source.flavour == "plpgsql" else statement)
            last = 0
            before: list[Row] = []
            for step in vector["steps"]:
                for statement in (*step["session"], step["sql"], "RESET ALL"):
                    cursor.execute(statement)
                events, last = newest_events(cursor, "v", last)
                differs = source.flavour == "plpgsql" and "pl_only" in step
                assert events == (step["pl_only"] if differs else step)["events"], (vector["name"], step["sql"])
                truthful = vector["name"] != TRUTH_OF_ANOTHER_TABLE and "guc" not in vector["tags"] and not differs
                if truthful:
                    assert untrue(events, before, step["truth"]) == [], (vector["name"], step["sql"])
                    compared += len(events)
                before = step["truth"]
    assert compared > 50


def make_types(cursor: Any) -> None:
    """A source table with all of TYPES, logged by both triggers, and a copy without triggers."""
    cursor.execute("SELECT pgq.create_queue('j'), pgq.create_queue('u')")
    cursor.execute("""
        CREATE SCHEMA v;
        SET search_path = v;
        CREATE TYPE pair AS (x int, y text, z numeric);
        CREATE DOMAIN whole AS int;
        CREATE DOMAIN yes AS boolean;
        CREATE TYPE mood AS ENUM ('so so', 'ha&ppy')
    """)
    columns = composed.SQL(", ").join(
        composed.SQL("{} " + type_).format(composed.Identifier(name)) for name, (type_, *_) in TYPES.items()
    )
    for table in ("original", "copy"):
        cursor.execute(
            composed.SQL("CREATE TABLE {} (id int PRIMARY KEY, {})").format(composed.Identifier(table), columns)
        )
    for queue, function in (("j", "jsontriga"), ("u", "logutriga")):
        cursor.execute(f"""
            CREATE TRIGGER {queue}_rows AFTER INSERT OR UPDATE OR DELETE ON original
            FOR EACH ROW EXECUTE FUNCTION pgq.{function}('{queue}');
            CREATE TRIGGER {queue}_all AFTER TRUNCATE ON original
            FOR EACH STATEMENT EXECUTE FUNCTION pgq.{function}('{queue}')
        """)


def values(number: int) -> Row:
    """One of the rows of TYPES."""
    return {"id": str(number), **{name: texts[number - 1] for name, (_, *texts) in TYPES.items()}}


def put(cursor: Any, table: str, row: Row) -> None:
    """Insert texts, each through its column's input function."""
    statement = composed.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        composed.Identifier(table),
        composed.SQL(", ").join(map(composed.Identifier, row)),
        composed.SQL(", ").join(map(composed.Literal, row.values())),
    )
    cursor.execute(statement)


@pytest.mark.parametrize("queue", ["j", "u"])
def test_every_type_survives(source: Source, queue: str) -> None:
    """Rows of every sort of type, decoded and put through the input functions, are the source's rows again."""
    decode: Callable[[str], Row] = jsontriga.decode if queue == "j" else decoded
    with session(source.dsn) as cursor:
        make_types(cursor)
        for number in range(1, 4):
            put(cursor, "original", values(number))
        put(cursor, "original", {"id": "4"})
        events, _ = newest_events(cursor, queue, 0)
        for event in events:
            put(cursor, "copy", decode(str(event["ev_data"])))
        cursor.execute("SELECT original::text, copy::text FROM original FULL JOIN copy USING (id)")
        rows = cursor.fetchall()
        assert len(rows) == 4
        assert [original for original, _ in rows] == [copy for _, copy in rows]


def test_jsontriga_and_logutriga_decode_alike(source: Source) -> None:
    """Both triggers' events of a row give the same texts, but for the T in timestamps."""
    with session(source.dsn) as cursor:
        make_types(cursor)
        put(cursor, "original", values(1))
        [by_json], _ = newest_events(cursor, "j", 0)
        [by_url], _ = newest_events(cursor, "u", 0)
        from_json, from_url = jsontriga.decode(str(by_json["ev_data"])), decoded(str(by_url["ev_data"]))
        differing = {name for name in from_url if from_json[name] != from_url[name]}
        assert list(from_json) == list(from_url)
        assert differing == {"ts", "tz"}


def test_types_of_jsontriga(source: Source) -> None:
    """Operation, table and key of real events: insert, update, delete, truncate, and names with any character."""
    with session(source.dsn) as cursor:
        make_types(cursor)
        cursor.execute("""
            INSERT INTO original (id) VALUES (1); UPDATE original SET n = 1; DELETE FROM original; TRUNCATE original;
            CREATE SCHEMA "S.x";
            CREATE TABLE "S.x"."T ""q" (a int, "b,c" int, PRIMARY KEY (a, "b,c"));
            CREATE TABLE "S.x".keyless (a int);
            CREATE TRIGGER j AFTER INSERT ON "S.x"."T ""q" FOR EACH ROW EXECUTE FUNCTION pgq.jsontriga('j');
            CREATE TRIGGER j AFTER INSERT ON "S.x".keyless FOR EACH ROW EXECUTE FUNCTION pgq.jsontriga('j');
            INSERT INTO "S.x"."T ""q" VALUES (1, 2); INSERT INTO "S.x".keyless VALUES (1)
        """)
        events, _ = newest_events(cursor, "j", 0)
        assert [jsontriga.decode_type(str(event["ev_type"])) for event in events] == [
            ("I", ("v", "original"), ("id",)),
            ("U", ("v", "original"), ("id",)),
            ("D", ("v", "original"), ("id",)),
            ("R", ("v", "original"), ("id",)),
            ("I", ("S.x", 'T "q'), ("a", "b,c")),
            ("I", ("S.x", "keyless"), ()),
        ]
        assert jsontriga.decode(str(events[3]["ev_data"])) == {}


@pytest.mark.parametrize("style", ["German", "SQL, DMY", "SQL, MDY", "Postgres, DMY"])
def test_a_session_s_datestyle(source: Source, style: str) -> None:
    """With another DateStyle logutriga's dates are found to be not ISO; jsontriga's are ISO all the same."""
    with session(source.dsn) as cursor:
        make_types(cursor)
        cursor.execute("SELECT set_config('datestyle', %s, true)", (style,))
        cursor.execute("INSERT INTO original (id, d, ts, tz) VALUES (1, now(), now(), now())")
        for queue, decode, expected in (("j", jsontriga.decode, True), ("u", decoded, False)):
            [event], _ = newest_events(cursor, queue, 0)
            row = decode(str(event["ev_data"]))
            assert [is_iso(row[name] or "") for name in ("d", "ts", "tz")] == [expected] * 3


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("LATIN1", "õäöü ÿ×"), ("LATIN9", "€ Šš"), ("WIN1252", "€ “q”"), ("EUC_JP", "漢字～－￠"), ("SQL_ASCII", "ü漢")],
)
def test_a_source_in_another_encoding(
    c_servers: Servers, make_queue: Callable[..., Queue], encoding: str, text: str
) -> None:
    """Names and values of a database in another encoding come out as a session there reads them."""
    name = f"encoded_{encoding.lower()}"
    statement = f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
    admin = psycopg2.connect(c_servers.postgres.superuser_dsn())
    admin.autocommit = True
    with closing(admin), admin.cursor() as cursor:
        cursor.execute(statement)
        dsn = c_servers.postgres.superuser_dsn(name) + "?client_encoding=UTF8"
        queue = make_queue_there(dsn, make_queue)
        try:
            for kind in ("logutriga", "jsontriga"):
                queue.logged(f"public.by_{kind}", f'id int PRIMARY KEY, "{text}" text', kind=kind)
                queue.ask(f"INSERT INTO public.by_{kind} VALUES (1, %s)", text)
            by_url, by_json = queue.ask("SELECT ev_data FROM pgq.event_template ORDER BY ev_id")
            reported = queue.ask("SHOW server_encoding")[0][0]
            assert urlencoded.decoder(reported)(by_url[0]) == {"id": "1", text: text}
            assert jsontriga.decode(by_json[0]) == {"id": "1", text: text}
        finally:
            queue.close()
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


def make_queue_there(dsn: str, make_queue: Callable[..., Queue]) -> Queue:
    """A queue in a database that has no PgQ yet."""
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        cursor.execute("CREATE EXTENSION pgq")
        conn.commit()
    return make_queue(dsn)


def candidates(encoding: str) -> list[bytes]:
    """Every character's bytes beyond ASCII that an encoding may have, and many that it has not."""
    high = range(0xA1, 0xFF)
    if not encoding.startswith("EUC"):
        return [bytes([octet]) for octet in range(0x80, 0x100)]
    pairs = [bytes([a, b]) for a in (0x8E, *high) for b in high]
    return pairs + ([b"\x8f" + pair for pair in pairs[len(high) :]] if "J" in encoding else [])


def test_codecs_are_postgresql_s(sql: Callable[..., list[tuple[Any, ...]]]) -> None:
    """No character of any source encoding becomes another one than PostgreSQL's own conversion gives."""
    sql("""
        CREATE FUNCTION pg_temp.converted(bytes bytea, encoding name) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN RETURN convert_from(bytes, encoding); EXCEPTION WHEN others THEN RETURN NULL; END $$
    """)
    statement = "SELECT b, pg_temp.converted(b, %s) FROM unnest(%s) b"
    refused: dict[str, int] = {}
    wrong = []
    for encoding in urlencoded._CODECS:
        decode = urlencoded.decoder(encoding)
        for octets, text in sql(statement, encoding, candidates(encoding)):
            if text is None:
                continue
            try:
                if decode("a=" + "".join(f"%{octet:02x}" for octet in bytes(octets))) != {"a": text}:
                    wrong.append((encoding, bytes(octets), text))
            except UnicodeDecodeError:
                refused[encoding] = refused.get(encoding, 0) + 1
    assert wrong == []
    # Of EUC_JP the vendors' additions to the standard, which Python's codec does not have.
    assert refused == {"EUC_JP": 189, "EUC_KR": 2}
