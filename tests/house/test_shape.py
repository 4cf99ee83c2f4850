"""The house rules that no single module can see: names, limits, messages and queues fit together."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

import beat_schedule
import producers
import workers
from workers import app as app_module
from workers import execution, queues
from workers.messages import MESSAGES
from workers.settings import ROOMS, Settings

ROOT = Path(__file__).parents[2]


def test_the_imported_packages_are_this_trees() -> None:
    """`workers` and `producers` are generic words: what is imported must be what is tested."""
    assert Path(str(workers.__file__)).parent == ROOT / "workers"
    assert Path(str(producers.__file__)).parent == ROOT / "producers"


def test_each_message_has_one_task_and_one_queue() -> None:
    """Every message kind has exactly one registered task of its name and one body, and a queue of its room."""
    app_module.app.loader.import_default_modules()
    tasks = {name for name in app_module.app.tasks if name.split(".")[0] in ROOMS}
    assert tasks == set(MESSAGES) == set(execution._bodies)
    for kind in MESSAGES.values():
        assert kind.room in ROOMS and kind.task.startswith(f"{kind.room}.")


def test_hard_limits_stay_below_the_visibility_timeout() -> None:
    """No task may still run when Redis gives its message to somebody else."""
    app_module.app.loader.import_default_modules()
    longest = max(
        float(task.time_limit or 0)
        for name, task in app_module.app.tasks.items()
        if "." in name and not name.startswith("celery.")
    )
    waits = app_module.LONGEST_COUNTDOWN.total_seconds()
    assert longest + waits < app_module.VISIBILITY_TIMEOUT.total_seconds()
    assert timedelta(seconds=longest) <= app_module.BACKSTOP


def test_ticks_expire_before_the_next_one() -> None:
    """A tick that nobody took is gone when its successor comes, and each names a task that exists."""
    app_module.app.loader.import_default_modules()
    for entry in beat_schedule.beat_schedule.values():
        assert entry["options"]["expires"] < entry["schedule"]
        assert entry["task"] in app_module.app.tasks
        assert entry["options"]["queue"] == "ticks"


def test_a_worker_without_options_has_every_queue_of_its_host() -> None:
    """The queues of the settings are those of every room, with the host's name where files lie on its disks."""
    conf = Settings(host="aoc", control={"dsn": "x"})
    assert set(queues.names_for(conf)) == set(queues.all_names(["aoc"]))


def test_pickle_is_never_accepted() -> None:
    """JSON is the only content that a worker takes."""
    assert app_module.app.conf.accept_content == ["json"]
    assert app_module.app.conf.task_serializer == "json"


def test_import_contracts_hold() -> None:
    """Nobody imports whom he must not: the contracts in pyproject.toml."""
    found = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]


@pytest.mark.parametrize("tool", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join)
def test_the_tree_is_clean(tool: list[str]) -> None:
    """Lint, format and strict types hold for code, tests and benchmarks alike."""
    program = Path(sys.executable).parent / tool[0]
    found = subprocess.run([str(program), *tool[1:]], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]


def test_every_module_opens_with_a_sentence() -> None:
    """A module is one noun that can be said in a sentence, and it says it."""
    silent = []
    for folder in ("workers", "producers"):
        for path in (ROOT / folder).rglob("*.py"):
            first = path.read_text().lstrip()
            if first and not first.startswith('"""'):
                silent.append(str(path))
    assert silent == []


def test_every_test_opens_with_a_sentence() -> None:
    """A test says what is true before it shows it."""
    silent = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        tree = compile(path.read_text(), str(path), "exec", flags=0x400)
        for node in tree.body:  # type: ignore[attr-defined]
            if node.__class__.__name__ == "FunctionDef" and node.name.startswith("test_"):
                document = node.body[0]
                value = getattr(document, "value", None)
                if not isinstance(getattr(value, "value", None), str):
                    silent.append(f"{path.name}::{node.name}")
    assert silent == []


def test_public_functions_of_the_foundation_are_documented() -> None:
    """Every public function of the modules that all rooms stand on says what it does."""
    from workers import database, hosts, migrations, pauses, reaper, runs, settings, sql_files, status, targets

    undocumented = []
    for module in (
        app_module,
        database,
        execution,
        hosts,
        migrations,
        pauses,
        queues,
        reaper,
        runs,
        settings,
        sql_files,
        status,
        targets,
    ):
        for name, item in vars(module).items():
            if (
                inspect.isfunction(item)
                and item.__module__ == module.__name__
                and not name.startswith("_")
                and not item.__doc__
            ):
                undocumented.append(f"{module.__name__}.{name}")
    assert undocumented == []
