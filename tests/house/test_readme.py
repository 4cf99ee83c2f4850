"""The README is true: its commands exist and take the options that it shows, its lines are those that CI runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from producers.cli import cli
from workers.products import api
from workers.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def commands() -> list[list[str]]:
    """Every `headrace ...` in a code block or between backticks, as words."""
    found = re.findall(r"^(?:\$ )?(headrace (?!demo`)[^#\n]*?)\s*$", README, re.MULTILINE)
    found += re.findall(r"`(headrace [^`\n]+)`", README)
    cleaned = {re.sub(r"\[([^\]]*)\]", r"\1", text).replace("...", "") for text in found}
    return [shlex.split(text)[1:] for text in sorted(cleaned)]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_in_the_readme_exists(words: list[str]) -> None:
    """The group, the command and each option are there, under exactly these names."""
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"{command.name} has no command {words[0]!r}"
        command, words = found, words[1:]
        context = click.Context(command, parent=context)
    known = {option for parameter in command.params for option in parameter.opts}
    passes_on = command.context_settings.get("ignore_unknown_options", False)
    for word in words:
        if word.startswith("--") and not passes_on:
            assert word.split("=")[0] in known, f"{command.name} has no option {word}"


def test_there_is_one_line_to_try_it_and_one_to_test_it() -> None:
    """The two lines that a newcomer pastes, and that .ci/run finds in the README by itself."""
    assert len(re.findall(r"^python3 -m venv .*headrace demo$", README, re.MULTILINE)) == 1
    assert len(re.findall(r"^python3 -m venv .*pytest.*$", README, re.MULTILINE)) == 1
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_the_settings_in_the_readme_are_settings(tmp_path: Path) -> None:
    """The YAML example loads, its commented lines included."""
    from workers import settings

    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert block is not None
    text = re.sub(r"^# (control|broker): (\{.*?\}).*$", r"\1: \2", block.group(1), flags=re.MULTILINE)
    path = tmp_path / "headrace.yaml"
    path.write_text(text)
    loaded = settings.load(path)
    assert loaded.host == "aoc" and loaded.control.dsn is not None and loaded.broker.url is not None


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
def test_every_settings_example_loads(block: str, tmp_path: Path) -> None:
    """What the README shows as settings, or as a mission, is understood as it stands."""
    if "mission:" in block:
        path = tmp_path / "mission.yaml"
        path.write_text(block)
        mission, warnings = api.read_mission(path)
        assert mission.processes and warnings == []
        return
    assert Settings(**yaml.safe_load(block)).model_dump(exclude_unset=True)
