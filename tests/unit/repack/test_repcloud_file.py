"""repcloud's TOML files: looked up as repcloud did, told apart from what they mean here, and written as YAML."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workers.errors import SettingsError
from workers.repack.repcloud_file import RepcloudFile, as_yaml, find, read
from workers.repack_settings import DatabaseRules, Limits, Plan
from workers.settings import Settings, load

Write = Callable[..., Path]

SAMPLE = """\
pid_dir = "~/.repcloud/pid"
[logging]
log_dir = "~/.repcloud/logs"
log_level = "debug"
log_dest = "file"
log_days_keep = "4"
[notifier]
enable_email = true
[notifier.email]
mailfrom = "db@site.example"
mailto = ["one@site.example", "two@site.example"]
smtp_server = "mx.site.example"
smtp_port = "587"
smtp_ssl = "starttls"
smtp_username = "db"
smtp_password = "geheim"
[connections.hdb]
user = "keeper"
password = "geheim"
port = "5433"
host = "db1"
database = "archive"
sslmode = "require"
schemas = ['hist',]
tables = ['conf.value', '"Mixed Case"."a*"']
max_replay_rows = "5000"
lock_timeout = "3s"
check_time = "20"
analyze_tables = "yes"
deadlock_resolution = "cancel_query"
"""
NO_LIST = 'expected a list of texts such as ["one", "two"], found'
MINIMAL = "[connections.a]\nschemas = []\ntables = []\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes site.toml, and tables' rules beside it, in a folder of its own, which has no headrace.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def written(text: str = MINIMAL, /, *, name: str = "site.toml", **tables: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        (tmp_path / "table_conf").mkdir(exist_ok=True)
        for connection, rules in tables.items():
            (tmp_path / "table_conf" / f"{path.stem}_{connection}.toml").write_text(rules, encoding="utf-8")
        return path

    return written


def conf(file: RepcloudFile) -> Settings:
    """The settings as a worker has them with this file, by both ways of loading."""
    assert load(None, file.overrides) == Settings(**file.overrides)
    return load(None, file.overrides)


def problems(path: Path, **options: Any) -> list[str]:
    """What is wrong with a file, without its name."""
    with pytest.raises(SettingsError) as caught:
        read(path, **options)
    return [line.removeprefix(f"{path}: ") for line in caught.value.problems]


def notes(file: RepcloudFile) -> list[str]:
    """The notes on one connection, without its name."""
    return [note.removeprefix("connections.a.") for note in file.notes]


def test_a_file_becomes_databases_a_plan_limits_and_mail(write: Write) -> None:
    """Every key that has a meaning here is used; numbers in quotes are numbers."""
    file = read(write(SAMPLE))
    ours = conf(file)
    assert file.connections == ("hdb",)
    assert ours.target("hdb").dsn == (
        "user='keeper' host='db1' port='5433' dbname='archive' sslmode='require' password='geheim'"
    )
    plan = ours.repack.plans["site"]
    assert (plan.enabled, plan.databases, plan.schemas) == (False, ("hdb",), ("hist",))
    assert plan.tables == ("conf.value", "Mixed Case.a[*]")
    assert (plan.thresholds.min_bloat_percent, plan.thresholds.min_bloat_bytes, plan.thresholds.min_bytes) == (0, 0, 0)
    assert ours.repack.limits == Limits(
        lock_timeout_seconds=3,
        check_seconds=20,
        max_replay_rows=5000,
        analyze=True,
        deadlock_resolution="cancel_query",
    )
    mail = ours.alerts.mail
    assert mail is not None
    assert (mail.host, mail.port, mail.security, mail.user) == ("mx.site.example", 587, "starttls", "db")
    assert (mail.sender, mail.to) == ("db@site.example", ("one@site.example", "two@site.example"))


def test_each_key_without_a_counterpart_has_a_note(write: Write) -> None:
    """Whoever comes from repcloud reads what stands for it here, in one line."""
    file = read(write(SAMPLE))
    assert file.notes == [
        "notifier.email.smtp_password: better put it into a file, and name that by alerts.mail.password_file",
        "pid_dir: not needed: a lock in the database keeps two from rewriting the same table",
        "logging.log_dir: replaced by logs.file",
        "logging.log_dest: replaced by `logs:`, standard error always and a file if logs.file names one",
        "logging.log_days_keep: replaced by logs.max_bytes and logs.keep: files are rotated by size",
        "logging.log_level: replaced by logs.level, the same is DEBUG",
    ]
    assert file.line() == "'site.toml': " + "; ".join(file.notes)
    assert read(write()).line() == "'site.toml': every setting is used as it is"


def test_what_is_not_said_is_as_here(write: Write) -> None:
    """libpq's defaults, our limits, every table, no mail."""
    ours = conf(read(write()))
    assert ours.target("a").dsn == ""
    assert ours.repack.limits == Limits()
    assert (ours.repack.plans["site"].schemas, ours.repack.plans["site"].tables) == ((), ())
    assert (ours.repack.databases, ours.alerts.mail) == ({}, None)


def test_empty_texts_are_as_good_as_none(write: Write) -> None:
    """An empty host is libpq's default, and so is an empty port."""
    file = read(write(MINIMAL + "host = ''\nport = ''\nsslmode = ''\n"))
    assert file.overrides["databases"] == {"a": {"connection": {}}}


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("plain=ö\"'", "plain=ö\"'"),
        ("'se cret'", "se cret"),
        (r"'se\'cr\\et'", r"se'cr\et"),
        (r"se\ cr\\et", r"se cr\et"),
        ("se cret", "se cret"),
        (" secret ", "secret"),
        ("'", "'"),
    ],
)
def test_passwords_are_read_as_libpq_read_them_from_repcloud(write: Write, said: str, meant: str) -> None:
    """Quotes and backslashes that were needed to get a value through a connection string are taken off."""
    file = read(write(MINIMAL + f"password = {quoted(said)}\n"))
    assert file.overrides["databases"]["a"]["connection"] == {"password": meant}


def test_a_password_of_digits_needs_no_quotes(write: Write) -> None:
    """It is a text all the same, and a port is a number either way."""
    file = read(write(MINIMAL + "password = 12345\nport = 5433\n"))
    assert file.overrides["databases"]["a"]["connection"] == {"password": "12345", "port": 5433}


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("'3s'", 3),
        ("'500ms'", 0.5),
        ("250", 0.25),
        ("'250'", 0.25),
        ("' 1 min '", 60),
        ("'1.5s'", 1.5),
        ("'.5 s'", 0.5),
        ("1500.4", 1.5),
        ("'1e3'", 1),
        ("'+2s'", 2),
        ("'900us'", 0.001),
    ],
)
def test_lock_timeouts_are_read_as_postgresql_reads_them(write: Write, said: str, seconds: float) -> None:
    """With a unit, or milliseconds without."""
    file = read(write(MINIMAL + f"lock_timeout = {said}\n"))
    assert conf(file).repack.limits.lock_timeout_seconds == seconds
    assert file.notes == []


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("0", "0 is no limit to PostgreSQL"),
        ("'100us'", "0 is no limit to PostgreSQL"),
        ("'2min'", "120 s are too long"),
        ("'1d'", "86400 s are too long"),
    ],
)
def test_a_lock_timeout_without_end_is_cut_with_a_note(write: Write, said: str, why: str) -> None:
    """Others wait behind the lock: no attempt lasts longer than a minute here."""
    file = read(write(MINIMAL + f"lock_timeout = {said}\n"))
    assert conf(file).repack.limits.lock_timeout_seconds == 60
    assert notes(file) == [f"lock_timeout: {why}, others would wait as well; 60 s per attempt are used"]


@pytest.mark.parametrize(
    "said", ["'3 seconds'", "'3S'", "''", "'-1'", "true", "'0x10'", "'010'", "[3]", "'1e99'", "-5", "nan", "inf"]
)
def test_no_time_is_a_problem(write: Write, said: str) -> None:
    """What PostgreSQL would refuse is refused before anything begins."""
    assert problems(write(MINIMAL + f"lock_timeout = {said}\n")) == [
        "connections.a.lock_timeout: not a time as PostgreSQL writes it; set '3s', '500ms', or milliseconds"
    ]


@pytest.mark.parametrize(
    ("said", "analyze", "noted"),
    [
        ("'yes'", True, False),
        ("'whatever'", True, False),
        ("'no'", True, True),
        ("'False'", True, True),
        ("''", False, False),
        ("true", True, False),
        ("false", False, False),
    ],
)
def test_any_text_says_yes_to_analyze(write: Write, said: str, analyze: bool, noted: bool) -> None:
    """As in repcloud; a text that was meant as no has a note."""
    file = read(write(MINIMAL + f"analyze_tables = {said}\n"))
    assert conf(file).repack.limits.analyze is analyze
    text = "analyze_tables: any text counts as yes, as in repcloud, this one too; write false for no"
    assert notes(file) == ([text] if noted else [])


def test_connections_that_list_the_same_share_a_plan(write: Write) -> None:
    """One plan of the file's name has all of them, or the chosen one."""
    path = write(MINIMAL + "[connections.b]\n")
    both = conf(read(path))
    assert {name: plan.databases for name, plan in both.repack.plans.items()} == {"site": ("a", "b")}
    assert conf(read(path, connection="all")).repack == both.repack
    assert set(both.databases) == {"a", "b"}
    one = read(path, connection="b")
    assert (one.connections, set(conf(one).databases)) == (("b",), {"b"})
    assert one.overrides["repack"]["plans"]["site"]["databases"] == ["b"]
    assert one.notes == ["connections.b.schemas: missing, and tables too: every table is meant"]


def test_connections_that_list_other_tables_have_plans_of_their_own(write: Write) -> None:
    """No connection gets another one's tables, and a plan's name does not hang on which one was chosen."""
    path = write("[connections.a]\nschemas = ['x']\n[connections.b]\ntables = ['y.z']\n")
    plans = conf(read(path)).repack.plans
    assert {name: (plan.databases, plan.schemas, plan.tables) for name, plan in plans.items()} == {
        "site_a": (("a",), ("x",), ()),
        "site_b": (("b",), (), ("y.z",)),
    }
    assert conf(read(path, connection="b")).repack.plans == {"site_b": plans["site_b"]}


def test_limits_that_differ_become_the_mildest_with_a_note(write: Write) -> None:
    """Limits are the same for all databases here; a connection alone keeps its own."""
    one = MINIMAL + "lock_timeout = 100\ncheck_time = 5\nmax_replay_rows = 10\ndeadlock_resolution = 'kill_query'\n"
    two = "[connections.b]\ntables = []\nlock_timeout = '1s'\ncheck_time = 6\nmax_replay_rows = 10\n"
    two += "deadlock_resolution = 'cancel_query'\nanalyze_tables = false\n"
    path = write(one + two)
    file = read(path)
    assert conf(file).repack.limits == Limits(
        lock_timeout_seconds=0.1, check_seconds=6, max_replay_rows=10, deadlock_resolution="cancel_query"
    )
    tail = "is used for all; one connection alone has its own"
    assert file.notes == [
        f"lock_timeout: differs between the connections, 0.1 {tail}",
        f"check_time: differs between the connections, 6 {tail}",
        f"analyze_tables: differs between the connections, true {tail}",
        f"deadlock_resolution: differs between the connections, cancel_query {tail}",
    ]
    alone = read(path, connection="b")
    assert (conf(alone).repack.limits.lock_timeout_seconds, alone.notes) == (1, [])
    assert conf(alone).repack.limits.analyze is False


def test_a_connection_called_control_gets_another_name(write: Write) -> None:
    """The name is taken here by the database that holds runs and hosts."""
    path = write("[connections.control]\ntables = []\n", control="[storage]\nfillfactor = 70\n")
    file = read(path, connection="control")
    assert file.connections == ("control-repcloud",)
    assert conf(file).repack.plans["site"].databases == ("control-repcloud",)
    assert conf(file).repack.databases["control-repcloud"].fillfactor == 70
    assert file.notes == ["connections.control: called 'control-repcloud', 'control' is Headrace's own"]


@pytest.mark.parametrize("name", ["bar", "foo.*", "a.b.c", ".x", '"foo.bar"'])
def test_a_name_that_matches_nothing_stays_in_the_list(write: Write, name: str) -> None:
    """Were it left out, an empty list would mean every table."""
    file = read(write(f"[connections.a]\ntables = ['{name}']\n"))
    assert len(conf(file).repack.plans["site"].tables) == 1
    assert notes(file) == [f"tables: {name!r} is no name such as schema.table; nothing matches it, as in repcloud"]


def test_quoted_names_are_taken_out_of_their_quotes(write: Write) -> None:
    """repcloud compared with names as SQL writes them."""
    names = ['"S t"."a""b"""', 'x."q.r"', "X.y"]
    file = read(write(f"[connections.a]\ntables = {names}\n"))
    assert conf(file).repack.plans["site"].tables == ('S t.a"b"', "x.q.r", "X.y")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("colour = 1\n" + MINIMAL, ["colour: unknown, not used"]),
        ("pid_dri = 1\n" + MINIMAL, ["pid_dri: unknown, not used (did you mean 'pid_dir'?)"]),
        (MINIMAL + "'pass\\nword' = 1\n", [r"'pass\\nword': unknown, not used (did you mean 'password'?)"]),
        (MINIMAL + '"x\\ny" = 1\n', [r"'x\ny': unknown, not used"]),
        (MINIMAL + "hots = 'x'\n", ["hots: unknown, not used (did you mean 'host'?)"]),
        (MINIMAL + "[logging]\nloglevel = 'x'\n", ["logging.loglevel: unknown, not used (did you mean 'log_level'?)"]),
        (
            MINIMAL + "[logging]\nlog_level = 'loud'\n",
            ["logging.log_level: replaced by logs.level, this one was unknown to repcloud too"],
        ),
        (MINIMAL + "[notifier]\nenable_email = false\n", []),
        (
            MINIMAL + "[notifier]\n[notifier.email]\nsmtp_password = 'geheim'\n",
            ["notifier.email: not used, enable_email is not true"],
        ),
        ("[connections.a]\n", ["schemas: missing, and tables too: every table is meant"]),
    ],
)
def test_what_is_not_used_is_noted(write: Write, text: str, expected: list[str]) -> None:
    """A known word that is near is proposed; a key can break no line."""
    assert notes(read(write(text))) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["connections: there is none; each is a section such as [connections.hdb]"]),
        ("[connections]\n", ["connections: there is none; each is a section such as [connections.hdb]"]),
        ("connections = 1\n", ["connections: expected a section, found 1"]),
        ("[connections]\na = 'x'\n", ["connections.a: expected a section such as [connections.hdb], found a text"]),
        (
            MINIMAL + "deadlock_resolution = 'kill_querry'\nsslmode = 'verify_full'\n",
            [
                "connections.a.deadlock_resolution: 'kill_querry' is not known; did you mean 'kill_query'?",
                "connections.a.sslmode: 'verify_full' is not known; did you mean 'verify-full'?",
            ],
        ),
        (
            "[connections.a]\ntables = 'x.y'\nschemas = ['x', 1]\nport = '70000'\ncheck_time = 0\n"
            "max_replay_rows = true\nanalyze_tables = 1\nuser = 1.5\npassword = ['geheim']\n"
            "host = true\ndatabase = 2026-11-22\n",
            [
                f"connections.a.schemas: {NO_LIST} a list with something else in it",
                f"connections.a.tables: {NO_LIST} a text",
                "connections.a.analyze_tables: expected true or false without quotes, found 1",
                "connections.a.check_time: expected a whole number from 1 on, found 0",
                "connections.a.max_replay_rows: expected a whole number from 1 on, found true",
                "connections.a.user: expected a text in quotes, found a decimal number",
                "connections.a.password: expected a text in quotes, found a list with something else in it",
                "connections.a.host: expected a text in quotes, found true",
                "connections.a.database: expected a text in quotes, found a date or time",
                "connections.a.port: expected a whole number from 1 to 65535, found 70000",
            ],
        ),
        (
            "[connections.a]\ntable = ['x.y']\n",
            ["connections.a.table: unknown key; did you mean 'tables'? That decides what is rewritten"],
        ),
        (
            MINIMAL + "[notifier]\nenable_email = 'true'\n",
            ["notifier.enable_email: expected true or false without quotes, found a text"],
        ),
        (
            MINIMAL + "[notifier]\nenable_email = true\n",
            ["notifier.email: is missing; add the section, or set enable_email = false"],
        ),
        (
            MINIMAL + "[notifier]\nenable_email = true\nemail = 'x'\n",
            ["notifier.email: expected a section, found a text"],
        ),
        (
            MINIMAL + "[notifier]\nenable_email = true\n[notifier.email]\nsmtp_ssl = 'tls'\nmailto = []\n",
            [
                "notifier.email.smtp_ssl: 'tls' is not known; known: none, starttls",
                "notifier.email.smtp_server: is missing; set it, or set enable_email = false",
                "notifier.email.mailto: is missing; set it, or set enable_email = false",
            ],
        ),
        ("a = 1\nb = geheim\n", ["not valid TOML: Invalid value (at line 2, column 5)"]),
        ("[a]\n[a]\n", ["not valid TOML: Cannot declare ('a',) twice (at line 2, column 3)"]),
    ],
)
def test_what_is_wrong_is_told_with_its_place(write: Write, text: str, expected: list[str]) -> None:
    """Every problem comes at once, with its key or line, what was expected, and no value that may be secret."""
    assert sorted(problems(write(text))) == sorted(expected)


def test_an_unknown_connection_is_told_with_those_there_are(write: Write) -> None:
    """A near one is proposed."""
    path = write("[connections.archive]\n[connections.live]\n")
    assert problems(path, connection="archiv") == ["connections: none is named 'archiv'; did you mean 'archive'?"]
    assert problems(path, connection="x") == ["connections: none is named 'x'; known: archive, live"]


def test_problems_of_a_connection_that_is_not_chosen_stop_nobody(write: Write) -> None:
    """repcloud did not look at it either."""
    path = write(MINIMAL + "[connections.b]\nport = 'x'\n")
    assert read(path, connection="a").connections == ("a",)
    assert problems(path) == ["connections.b.port: expected a whole number from 1 to 65535, found a text"]


@pytest.mark.parametrize("content", [b"\xff", b"a = " + b"[" * 100_000, b"a = " + b"9" * 5000, None])
def test_a_file_that_cannot_be_read_is_an_error_of_the_settings(tmp_path: Path, content: bytes | None) -> None:
    """Whatever is in it, or if it is not there."""
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)
    (problem,) = problems(path)
    assert problem.startswith(("cannot be read: ", "not valid TOML: "))


RULES = """\
[storage]
fillfactor = 90
[storage.hist]
fillfactor = "80"
[storage.hist.value]
fillfactor = 70
[hist.value]
doc.cleanup_nulls = true
raw.remove_keys = ["a", "b'c"]
["My Schema"."My.Table"]
"Col".cleanup_nulls = true
"""


def test_rules_of_tables_come_from_the_file_beside_it(write: Write) -> None:
    """Fillfactors of three levels and the columns' filters, of the connection that the file is named after."""
    ours = conf(read(write(MINIMAL + "[connections.b]\ntables = []\n", a=RULES, other="x"))).repack.databases
    assert list(ours) == ["a"]
    assert ours["a"] == DatabaseRules.model_validate(
        {
            "fillfactor": 90,
            "schemas": {"hist": {"fillfactor": 80}},
            "tables": {
                "hist.value": {
                    "fillfactor": 70,
                    "cleanup_nulls": ["doc"],
                    "remove_keys": {"raw": ["a", "b'c"]},
                },
                "My Schema.My.Table": {"cleanup_nulls": ["Col"]},
            },
        }
    )
    assert [ours["a"].fillfactor_of(*name) for name in (("hist", "value"), ("hist", "x"), ("x", "x"))] == [70, 80, 90]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("[storage]\nfillfactor = 50\n", 50),
        ("[storage.s]\nfillfactor = 50\n", 50),
        ("[storage.s.t]\nfillfactor = 50\n", 50),
        ("storage.s.t.fillfactor = 50\nstorage.fillfactor = 60\n", 50),
        ("storage.s.fillfactor = 50\nstorage.fillfactor = 60\n", 50),
        ("storage.s.fillfactor = 60\nstorage.s.t.fillfactor = 50\n", 50),
        ("storage.S.t.fillfactor = 50\n", None),
    ],
)
def test_each_level_of_fillfactor_counts_alone(write: Write, rules: str, expected: int | None) -> None:
    """The table's before its schema's before the one for all; none needs the others."""
    ours = conf(read(write(MINIMAL, a=rules))).repack.databases["a"]
    assert ours.fillfactor_of("s", "t") == expected


@pytest.mark.parametrize(
    ("rules", "column", "noted"),
    [
        ("cleanup_nulls = true\nc.remove_keys = ['k']", {"cleanup_nulls": ["c"]}, True),
        ("cleanup_nulls = false\nc.remove_keys = ['k']", None, True),
        ("cleanup_nulls = false", None, False),
        ("remove_keys = []", None, False),
        ("remove_keys = ['k']", {"remove_keys": {"c": ["k"]}}, False),
    ],
)
def test_cleanup_nulls_goes_before_remove_keys(
    write: Write, rules: str, column: dict[str, Any] | None, noted: bool
) -> None:
    """Where both are given for one column, the keys stay, as in repcloud, and that is noted."""
    file = read(write(MINIMAL, a=f"[s.t]\nc.{rules}\n"))
    expected = {"a": {"tables": {"s.t": column}}} if column else None
    assert file.overrides["repack"].get("databases") == expected
    assert conf(file).repack.plans["site"] == Plan.model_validate(file.overrides["repack"]["plans"]["site"])
    note = "s.t.c.remove_keys: not used, cleanup_nulls is there too and goes before it, as in repcloud"
    assert file.notes == ([f"'site_a.toml': {note}"] if noted else [])


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("[storage]\nfilfactor = 80\n", "storage.filfactor: unknown, not used (did you mean 'fillfactor'?)"),
        ("[storage.s.t]\nautovacuum = 1\n", "storage.s.t.autovacuum: unknown, not used"),
        ("[s.t]\nfillfactor = 20\n", "s.t.fillfactor: not used here, as in repcloud; it belongs below [storage]"),
        ("fillfactor = 20\n", "fillfactor: not used here, as in repcloud; it belongs below [storage]"),
        ("[s.t]\nc.cleanup_null = true\n", "s.t.c.cleanup_null: unknown, not used (did you mean 'cleanup_nulls'?)"),
    ],
)
def test_what_is_not_used_in_rules_is_noted(write: Write, rules: str, expected: str) -> None:
    """Nothing of it reaches the settings, and the note names the file."""
    file = read(write(MINIMAL, a=rules))
    assert file.notes == [f"'site_a.toml': {expected}"]
    assert conf(file).repack.databases == {}


def test_wrong_rules_are_told_together_with_the_rest(write: Write, tmp_path: Path) -> None:
    """Problems of both files come at once."""
    rules = (
        "storage.fillfactor = 9\nstorage.s.fillfactor = 101\nstorage.s.t.fillfactor = true\npublic = 3\nx.y = []\n"
        "[s.t]\na = true\nb.cleanup_nulls = 'true'\nc.remove_keys = 'k'\nd.remove_keys = [1]\n"
    )
    path = write(MINIMAL + "port = 0\n", a=rules)
    file = tmp_path / "table_conf" / "site_a.toml"
    assert sorted(line.removeprefix(f"{file}: ") for line in problems(path)) == [
        "connections.a.port: expected a whole number from 1 to 65535, found 0",
        "public: expected [<schema>.<table>], found 3",
        "s.t.a: expected cleanup_nulls = true or remove_keys = [...] of a column, found true",
        "s.t.b.cleanup_nulls: expected true or false without quotes, found a text",
        f"s.t.c.remove_keys: {NO_LIST} a text",
        f"s.t.d.remove_keys: {NO_LIST} a list with something else in it",
        "storage.fillfactor: expected a whole number from 10 to 100, found 9",
        "storage.s.fillfactor: expected a whole number from 10 to 100, found 101",
        "storage.s.t.fillfactor: expected a whole number from 10 to 100, found true",
        "x.y: expected [<schema>.<table>], found a list with something else in it",
    ]
    assert problems(write(MINIMAL, a="x = [\n"))[0].startswith(f"{file}: not valid TOML: ")


def test_files_of_rules_can_be_given(write: Write, tmp_path: Path) -> None:
    """Each belongs to the connection that its name ends with; those of the folder are then left alone."""
    path = write("[connections.a]\ntables = []\n[connections.b_a]\ntables = []\n", a="x")
    for name, fillfactor in (("my_a", 50), ("my_b_a", 60), ("rules", 70)):
        (tmp_path / f"{name}.toml").write_text(f"storage.fillfactor = {fillfactor}\n")
    files = [tmp_path / "my_a.toml", tmp_path / "my_b_a.toml"]
    both = conf(read(path, table_conf=files)).repack.databases
    assert {name: rules.fillfactor for name, rules in both.items()} == {"a": 50, "b_a": 60}
    one = read(path, connection="a", table_conf=files)
    assert one.notes == ["'my_b_a.toml': not used, connection 'b_a' is not chosen"]
    alone = read(path, connection="a", table_conf=[tmp_path / "rules.toml"])
    assert conf(alone).repack.databases["a"].fillfactor == 70


def test_files_of_rules_that_belong_nowhere_are_told(write: Write, tmp_path: Path) -> None:
    """So are two for one connection, and one that is not there."""
    path = write(MINIMAL + "[connections.b]\ntables = []\n")
    one, two, three = (tmp_path / name for name in ("x_a.toml", "y_a.toml", "z.toml"))
    two.write_text("")
    assert problems(path, table_conf=[one, two, three]) == [
        f"{two}: connection 'a' has {one} already; join the two",
        f"{three}: its name ends with no connection's; call it site_<connection>.toml",
        f"{one}: cannot be read: [Errno 2] No such file or directory: '{one}'",
    ]


def test_names_are_looked_up_below_the_home_folder(write: Write, tmp_path: Path) -> None:
    """`default` unless one is named, with or without .toml; what has a slash is a path."""
    folder = tmp_path / ".repcloud" / "config"
    folder.mkdir(parents=True)
    for name in ("default", "prod"):
        (folder / f"{name}.toml").write_text(MINIMAL)
    here = write(MINIMAL, name="prod.toml")
    assert find() == folder / "default.toml"
    assert find("prod") == find("prod.toml") == folder / "prod.toml"
    assert find(str(here)) == find(here) == here
    assert (find("./prod.toml"), find("~/prod.toml")) == (Path("prod.toml"), here)
    assert find(Path("prod.toml")) == Path("prod.toml")
    assert find("site.toml" if write() else "") == Path("site.toml")


def test_a_configuration_that_is_not_there_is_told(write: Write, tmp_path: Path) -> None:
    """With where it was looked for, and a near name."""
    write()
    folder = tmp_path / ".repcloud" / "config"

    def told(name: str) -> str:
        with pytest.raises(SettingsError) as caught:
            find(name)
        return str(caught.value)

    missing = "there is no such configuration of repcloud"
    assert told("default") == f"{folder}/default.toml: {missing}; name the file with its path"
    folder.mkdir(parents=True)
    (folder / "production.toml").write_text(MINIMAL)
    assert told("producton") == f"{folder}/producton.toml: {missing}; did you mean 'production'?"
    assert told("~/x.toml") == f"{tmp_path}/x.toml: no such file; name a file, or a configuration of {folder}"


@pytest.mark.parametrize(
    "more",
    [
        "",
        "[connections.b]\nuser = 1.5\nsslmode = 1\n",
        "[notifier]\nenable_email = true\n[notifier.email]\nsmtp_password = 'geheim'\nsmtp_server = 1.5\n",
        "lock_timeout = 'x'\n",
        "[x\n",
    ],
)
def test_no_password_is_told(write: Write, more: str) -> None:
    """Neither notes, problems, the line nor the object's own text repeat one."""
    text = MINIMAL + "password = 'geheim'\nuser = 'u'\nhots = 'geheim'\n" + more
    path = write(text, a="x.y = 'geheim'\n" if more else "")
    try:
        file = read(path)
    except SettingsError as error:
        told = str(error)
    else:
        told = f"{file!r} {file.line()} {file.notes}"
    assert "geheim" not in told
    assert "site" in told


def test_the_yaml_says_the_same(write: Write, tmp_path: Path) -> None:
    """What is printed loads to the settings that the old files give; notes are its comments."""
    file = read(write(SAMPLE, hdb=RULES))
    text = as_yaml(file)
    ours = tmp_path / "ours.yaml"
    ours.write_text(text, encoding="utf-8")
    assert load(ours) == load(None, file.overrides)
    head = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    assert (head[0], head[1:-2]) == ("What 'site.toml' of repcloud says.", file.notes)
    assert "null" not in text.replace("cleanup_nulls", "")


def test_no_name_breaks_out_of_the_comments(write: Write, tmp_path: Path) -> None:
    """A key, a connection or a table file with a line end in its name stays in its comment."""
    path = write('["connections"."a\\nb"]\n"x\\ny" = 1\ntables = ["q\\nr"]\n', **{"a\nb": "[s.t]\nfillfactor = 20\n"})
    file = read(path)
    assert len(file.notes) == 3
    ours = tmp_path / "ours.yaml"
    ours.write_text(as_yaml(file), encoding="utf-8")
    assert load(ours) == load(None, file.overrides)
    assert "\n" not in file.line()


def test_the_yaml_recommends_a_password_file(write: Write) -> None:
    """Only where a password is in it, and the password stays until somebody moves it."""
    with_one, without = as_yaml(read(write(SAMPLE))), as_yaml(read(write()))
    assert "`password_file:` instead" in with_one and "password: geheim" in with_one
    assert "password" not in without


# What one libpq value can hold when it stands in no quotes; TOML texts are escaped below.
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@settings(max_examples=50, deadline=None)
@given(user=TEXTS, schema=TEXTS, table=TEXTS, column=TEXTS, key=TEXTS)
@example(user="null", schema="1.0", table="yes", column="\x85", key="\u2028")
@example(user="a: b #c", schema="'", table='"', column="\ufeff", key="\x00")
def test_values_survive_the_file_and_the_yaml(user: str, schema: str, table: str, column: str, key: str) -> None:
    """Any text arrives as it was, from the old files and once more from the YAML of them."""
    libpq = "'" + user.replace("\\", "\\\\").replace("'", "\\'") + "'"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "table_conf").mkdir()
        path, ours = folder / "x.toml", folder / "ours.yaml"
        path.write_text(f"[connections.a]\nuser = {quoted(libpq)}\nschemas = [{quoted(schema)}]\n", encoding="utf-8")
        rules = f"[s.{quoted('t' + table)}]\n{quoted(column)}.remove_keys = [{quoted(key)}]\n"
        (folder / "table_conf" / "x_a.toml").write_text(rules, encoding="utf-8")
        file = read(path)
        ours.write_text(as_yaml(file), encoding="utf-8", newline="\n")
        loaded = load(ours)
    assert loaded == load(None, file.overrides)
    assert (loaded.databases["a"].connection.user, loaded.repack.plans["x"].schemas) == (user, (schema,))
    rule = loaded.repack.databases["a"].tables[f"s.t{table}"]
    assert rule.remove_keys == {column: (key,)}


def quoted(text: str) -> str:
    """A TOML text of it, every character escaped."""
    return '"' + "".join(f"\\U{ord(character):08x}" for character in text) + '"'


def test_what_stands_above_all_connections_is_of_each(write: Write) -> None:
    """A list of schemas at the top of the file is never read as "every table"; a connection's own keys win."""
    file = read(
        write(
            "schemas = ['hist']\ntables = []\nlock_timeout = '2s'\n"
            "[connections.a]\n[connections.b]\nschemas = ['conf']\ntables = []\n"
        )
    )
    plans = file.overrides["repack"]["plans"]
    assert {name: plan["schemas"] for name, plan in plans.items()} == {"site_a": ["hist"], "site_b": ["conf"]}
    assert file.overrides["repack"]["limits"]["lock_timeout_seconds"] == 2
    assert any(note.startswith("schemas: above all connections") for note in file.notes)
