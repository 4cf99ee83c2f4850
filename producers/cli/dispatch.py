"""`headrace dispatch`: PgQ change events into partitions: setting consumers up, running them, mending what failed."""

from __future__ import annotations

import click

from producers.cli import follow
from producers.cli.context import State, here_options, json_option, pass_state
from producers.cli.dispatch_drain import drain
from producers.cli.dispatch_events import drop, failed, partitions, replay
from producers.cli.dispatch_options import consumers_of, cube_file, legacy_option, refused_switches
from producers.cli.dispatch_places import adopt, register, resume, rewind, unregister
from producers.cli.dispatch_setup import import_, install_pgq, setup, triggers
from producers.cli.dispatch_status import status
from producers.cli.dispatch_verify import verify
from workers import logs
from workers.dispatch import api
from workers.errors import HeadraceError
from workers.messages import Message


@click.group()
def dispatch() -> None:
    """PgQ change events into date partitions: who reads which queue, and how far."""


for _command in (
    setup, install_pgq, register, triggers, status, failed, replay, drop, verify, rewind, resume, adopt, partitions,
    unregister, import_,
):  # fmt: skip
    dispatch.add_command(_command)


@dispatch.command()
@click.argument("consumers", metavar="[CONSUMER]...", nargs=-1)
@legacy_option
@here_options
@click.option("--verbose", "-v", is_flag=True, help="Log everything.")
@click.option("--quiet", "-q", is_flag=True, help="Say only what went wrong.")
@click.option("-d", "daemon", is_flag=True, hidden=True)
@refused_switches
@json_option
@pass_state
def run(
    state: State,
    consumers: tuple[str, ...],
    here: bool,
    wait: bool,
    here_timeout: float,
    verbose: bool,
    quiet: bool,
    daemon: bool,
) -> int:
    """Apply what is there: with --here every tick that exists, in this process; else the open batches by workers.

    With --legacy-config it does what cube_dispatcher did with that file, and ends when the queue is drained.
    """
    cube = cube_file()
    if cube is not None and not quiet:
        state.say(cube.line())
    if daemon:
        state.say(f"-d: this run ends when nothing is left; what runs on is {api.SWITCHES['-d']}")
    conf = state.prepare()
    names = consumers_of(conf, consumers)
    level = "DEBUG" if verbose else "ERROR" if quiet else "WARNING"
    logs.configure(conf.logs.model_copy(update={"level": level}))
    if here:
        return drain(state, names, timeout=here_timeout, drop_in=cube is not None, quiet=quiet)
    messages: list[Message] = []
    problems: list[str] = []
    for name in names:
        try:
            messages += api.pump_until_dry(conf, name)
        except HeadraceError as error:
            problems.append(str(error))
    if not messages and not problems and not state.json:
        state.out("nothing to do")
    return follow.enqueue(state, messages, wait=wait, problems=problems)
