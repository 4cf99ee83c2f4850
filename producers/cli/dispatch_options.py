"""What the commands of dispatch have in common: the consumer that is meant, cube_dispatcher's file and switches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from producers.cli.context import State
from workers.dispatch import api
from workers.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

_CUBE = "headrace.cube_file"
_NONE = "the settings have no consumer below dispatch.consumers, and no --legacy-config names a file with one"
_HONOURED = ("-d", "-v", "-q")  # the others end the command with what replaces them

consumer_argument = click.argument("consumer", required=False)


def legacy_option(command: F) -> F:
    """`--legacy-config cube.ini`: that file's consumer is the one that is meant."""

    def read(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
        if value is not None:
            cube = api.read_cube(value)
            state = ctx.ensure_object(State)
            state.overrides = cube.overrides
            ctx.meta[_CUBE] = cube

    option = click.option(
        "--legacy-config",
        "-c",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=read,
        help="cube_dispatcher's INI file: its consumer is the one that is meant.",
    )
    return option(command)


def cube_file() -> api.CubeFile | None:
    """cube_dispatcher's file, if this invocation was given one."""
    found: api.CubeFile | None = click.get_current_context().meta.get(_CUBE)
    return found


def refused_switches(command: F) -> F:
    """cube_dispatcher's own switches that have no place in one run: each ends the command and says what replaces it."""

    def refuse(_ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            switch = parameter.opts[0]
            raise click.UsageError(f"{switch} of cube_dispatcher has become: {api.SWITCHES[switch]}")

    for switch in api.SWITCHES:
        if switch not in _HONOURED:
            name = f"skytools_{switch.strip('-')}"
            command = click.option(
                switch, name, is_flag=True, hidden=True, expose_value=False, is_eager=True, callback=refuse
            )(command)
    return command


def the_consumer(conf: Settings, name: str | None) -> str:
    """The consumer that is meant: the one named, that of cube_dispatcher's file, or the only one there is."""
    return split(conf, [])[0] if name is None else api.check_name(conf, name)


def split(conf: Settings, words: Sequence[str]) -> tuple[str, list[str]]:
    """The consumer that is meant and the other words: the first word is a consumer if the settings know it as one."""
    if words and words[0] in conf.dispatch.consumers:
        return words[0], list(words[1:])
    cube = cube_file()
    names = [cube.name] if cube is not None else api.names(conf)
    if len(names) == 1:
        return names[0], list(words)
    if not names:
        raise click.UsageError(
            "the settings have no consumer below dispatch.consumers; or name a file: --legacy-config"
        )
    raise click.UsageError(f"name one of the consumers first: {', '.join(names)}")


def consumers_of(conf: Settings, chosen: Sequence[str]) -> list[str]:
    """Those named; without names that of cube_dispatcher's file, or all there are."""
    if chosen:
        return list(dict.fromkeys(api.check_name(conf, name) for name in chosen))
    cube = cube_file()
    names = [cube.name] if cube is not None else api.names(conf)
    if not names:
        raise click.UsageError(
            "the settings have no consumer below dispatch.consumers; or name a file: --legacy-config"
        )
    return names


def event_numbers(words: Sequence[str]) -> list[int]:
    """Numbers of failed events, as `failed` lists them."""
    for word in words:
        if not word.isdecimal():
            raise click.UsageError(f"{word!r} is neither a consumer nor the number of a failed event")
    return [int(word) for word in words]
