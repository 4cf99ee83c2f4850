"""Settings: a file, the environment over it, and every problem told at once."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from workers.errors import SettingsError
from workers.settings import Settings, load


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Where a test writes its settings."""
    return tmp_path / "headrace.yaml"


def problems(path: Path, text: str) -> list[str]:
    """What is wrong with a settings file, without its name."""
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(path)
    return [line.removeprefix(f"{path}: ") for line in caught.value.problems]


def test_the_environment_wins_over_the_file_key_by_key(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable replaces one key of a section and leaves its neighbours as the file has them."""
    written.write_text("host: file\ntelemetry:\n  in_flight: 7\n  sweep_seconds: 5\n")
    monkeypatch.setenv("HEADRACE_TELEMETRY__IN_FLIGHT", "9")
    monkeypatch.setenv("HEADRACE_TELEMETRY__DATA_DIRS", '["/data"]')
    conf = load(written)
    assert (conf.host, conf.telemetry.in_flight, conf.telemetry.sweep_seconds) == ("file", 9, 5)
    assert conf.telemetry.data_dirs == (Path("/data"),)


def test_overrides_of_a_command_line_win_over_the_file(written: Path) -> None:
    """What a command adds is merged into the sections of the file."""
    written.write_text("telemetry:\n  in_flight: 7\n  sweep_seconds: 5\n")
    conf = load(written, {"telemetry": {"in_flight": 8}, "host": "h"})
    assert (conf.telemetry.in_flight, conf.telemetry.sweep_seconds, conf.host) == (8, 5, "h")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hots: a\n", ["hots: unknown key; did you mean 'host'?"]),
        ("telemetry:\n  data_dir: []\n", ["telemetry.data_dir: unknown key; did you mean 'data_dirs'?"]),
        ("host: 12\n", ["host: Input should be a valid string"]),
        ("host: on\n", ["host: Input should be a valid string"]),
        ("host: ''\n", ["host: String should have at least 1 character"]),
        ("telemetry:\n  data_dirs: /data\n", ["telemetry.data_dirs: Input should be a valid tuple"]),
        ("telemetry:\n  data_dirs: [data]\n", ["telemetry.data_dirs: data is not an absolute path"]),
        ("telemetry:\n  slice_seconds: .nan\n", ["telemetry.slice_seconds: Input should be greater than 0"]),
        ("worker:\n  rooms: [telemtry]\n", ["worker.rooms: unknown room 'telemtry'; did you mean 'telemetry'?"]),
        ("logs: {level: loud}\n", ["logs.level: unknown level 'loud'; one of DEBUG, INFO, WARNING, ERROR"]),
        ("telemetry: {database: hdb}\n", ["telemetry.database: no database named 'hdb'; known: control"]),
        ("- a\n", ["expected `key: value` lines, found a list"]),
    ],
)
def test_a_wrong_setting_is_told_with_its_place(written: Path, text: str, expected: list[str]) -> None:
    """Each problem is one line: where, what, and what was probably meant."""
    assert problems(written, text) == expected


def test_every_problem_is_told_at_once(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong values, unknown keys and unknown variables come in one error."""
    monkeypatch.setenv("HEADRACE_TELEMETRI__IN_FLIGHT", "9")
    found = problems(written, "hots: a\nworker: {concurrency: 0}\n")
    assert len(found) == 3
    assert "HEADRACE_TELEMETRI__IN_FLIGHT: unknown variable; did you mean 'TELEMETRY'?" in found


@pytest.mark.parametrize("text", ["a: [", "\tb: 1", "!!python/object/apply:os.system ['true']", "? [1]\n: 2", "a: *b"])
def test_broken_yaml_is_one_line_with_its_place(written: Path, text: str) -> None:
    """What YAML cannot read is told on one line, with line and column; no tag runs anything."""
    (problem,) = problems(written, text)
    assert problem.startswith("not valid YAML") and "line 1" in problem and "\n" not in problem


@pytest.mark.parametrize(
    "text",
    [
        "databases: {x: {connection: {password: [s3cret]}}}",
        "databases: {x: {conection: {password: s3cret}}}",
        "databases: {x: {connection: {password: 12345}}}",
    ],
)
def test_a_problem_never_quotes_a_password(written: Path, text: str) -> None:
    """A password of the wrong form or in the wrong place is not repeated in the problem."""
    assert not any("s3cret" in problem or "12345" in problem for problem in problems(written, text))


def test_a_named_database_serves_as_control(written: Path) -> None:
    """`control.database` takes one out of `databases:`; its target is still called control."""
    written.write_text("control: {database: hdb}\ndatabases: {hdb: {connection: {host: db, port: 5433}}}\n")
    target = load(written).target()
    assert (target.name, target.dsn) == ("control", "host='db' port='5433'")


def test_without_a_control_database_the_error_says_what_to_set(tmp_path: Path) -> None:
    """No dsn anywhere is a settings error that names the variable, the key and `headrace up`."""
    with pytest.raises(SettingsError, match=r"HEADRACE_CONTROL__DSN.*headrace\.yaml.*headrace up"):
        Settings(data_dir=tmp_path).target()


def test_a_plain_broker_password_file_is_used(tmp_path: Path) -> None:
    """The password of a mounted file replaces the one in the URL."""
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    conf = Settings(broker={"url": "redis://:old@db:6379/1", "password_file": str(secret)})
    assert conf.broker_url() == "redis://:s3cret@db:6379/1"


@pytest.mark.parametrize("password", ["a/b", "a@b", "a:b", "a#b", "a%2Fb", "a?b"])
def test_any_broker_password_arrives_exactly(tmp_path: Path, password: str) -> None:
    """User, password and host of the broker survive characters that mean something in a URL."""
    secret = tmp_path / "secret"
    secret.write_text(password)
    url = urlsplit(Settings(broker={"url": "redis://me@db:6379/1", "password_file": str(secret)}).broker_url())
    assert (url.hostname, unquote(url.password or ""), url.username) == ("db", password, "me")


@pytest.mark.parametrize(("name", "value"), [("HEADRACE_TELEMETRY__DATA_DIRS", "/data"), ("HEADRACE_DATABASES", "{")])
def test_a_variable_that_is_no_json_is_told_like_any_problem(
    written: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A list or map that is not written as JSON is a settings problem that names the variable."""
    monkeypatch.setenv(name, value)
    assert any(name.split("_", 1)[1].split("__")[0].lower() in each for each in problems(written, ""))


def test_a_key_that_is_no_text_is_told(written: Path) -> None:
    """A number as a key is a problem with its place, not a traceback."""
    assert len(problems(written, "12: 3\n")) == 1


def test_a_key_that_is_there_twice_is_told(written: Path) -> None:
    """Two sections of one name are a problem: one of them would be ignored."""
    assert "host" in problems(written, "host: a\nhost: b\n")[0]
