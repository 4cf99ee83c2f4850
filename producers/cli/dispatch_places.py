"""The commands of `headrace dispatch` about where a consumer stands: (un)register, adopt, rewind, resume."""

from __future__ import annotations

import click

from producers.cli.context import DONE, SOME_FAILED, State, json_option, pass_state
from producers.cli.dispatch_options import consumer_argument, legacy_option, the_consumer
from workers.dispatch import api


@click.command()
@consumer_argument
@legacy_option
@click.option("--create-queue", is_flag=True, help="Make the queue if it is not there.")
@json_option
@pass_state
def register(state: State, consumer: str | None, create_queue: bool) -> int:
    """Register a consumer with PgQ, at the newest tick, and give it its position. Twice is harmless."""
    conf = state.settings
    name = the_consumer(conf, consumer)
    return _placed(state, name, api.register(conf, name, create_queue=create_queue))


@click.command()
@consumer_argument
@legacy_option
@json_option
@pass_state
def adopt(state: State, consumer: str | None) -> int:
    """Go on where cube_dispatcher stopped, by its mark in pgq_ext.completed_tick. Stop it first, for good."""
    conf = state.settings
    name = the_consumer(conf, consumer)
    return _placed(state, name, api.adopt(conf, name))


@click.command()
@consumer_argument
@legacy_option
@click.option("--to-tick", type=int, metavar="N", help="Both sides go to this tick: its events may come a second time.")
@click.option("--reset", is_flag=True, help="The target goes on where the source stands; what lies between is left out")
@json_option
@pass_state
def rewind(state: State, consumer: str | None, to_tick: int | None, reset: bool) -> int:
    """Bring the source back to where the target stands, and let a parked consumer go on: nothing lost or doubled."""
    if reset and to_tick is not None:
        raise click.UsageError("--to-tick and --reset are two different ways; choose one")
    conf = state.settings
    name = the_consumer(conf, consumer)
    return _placed(state, name, api.rewind(conf, name, reset=reset, to_tick=to_tick))


@click.command()
@consumer_argument
@legacy_option
@json_option
@pass_state
def resume(state: State, consumer: str | None) -> int:
    """Let a parked consumer try again where it stands."""
    conf = state.settings
    name = the_consumer(conf, consumer)
    done = api.resume(conf, name)
    if state.json:
        state.emit({"consumer": name, "resumed": done})
    else:
        state.out(f"{name}: {'goes on' if done else 'was not parked, or has no position'}")
    return DONE if done else SOME_FAILED


@click.command()
@consumer_argument
@legacy_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_state
def unregister(state: State, consumer: str | None, yes: bool) -> int:
    """Give a consumer up: PgQ keeps no more events for it, and its position is forgotten. Its tables stay."""
    conf = state.settings
    name = the_consumer(conf, consumer)
    if not yes:
        click.confirm(f"{name}: events that are not applied yet will be gone for it; go on?", abort=True, err=True)
    done = api.unregister(conf, name)
    if state.json:
        state.emit({"consumer": name, "unregistered": done})
    else:
        state.out(
            f"{name}: {'unregistered; set `enabled: false`, or take it out of the settings' if done else 'was not'}"
        )
    return DONE


def _placed(state: State, name: str, placed: api.Placed) -> int:
    if state.json:
        state.emit({"consumer": name, "what": placed.what, "tick": placed.tick})
    else:
        state.out(f"{name}: {placed.what}, at tick {placed.tick}")
    return DONE
