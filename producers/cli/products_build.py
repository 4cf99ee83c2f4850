"""`headrace products ingest`, `build` and `watch`: files come in, and what follows from them is built."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from producers.cli import follow
from producers.cli.context import DONE, SOME_FAILED, State, here_options, json_option, pass_state
from producers.cli.products_options import HERE_LANE, here, mission_option
from workers import paths
from workers.errors import PermanentFailure
from workers.messages import BuildProducts, IngestIncoming, Message, PlanProducts
from workers.products import api

_POLL_SECONDS = 0.3


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@mission_option
@click.option("--build/--no-build", default=None, help="Build what follows (default: workers do, --here does not).")
@here_options
@json_option
@pass_state
def ingest(
    state: State, /, files: tuple[Path, ...], mission: str | None, build: bool | None, here_timeout: float, wait: bool,
    **options: bool,
) -> int:  # fmt: skip
    """Take in what has settled in the incoming folders; exit 1 if anything came into quarantine.

    FILES are adopted: they stay where they are if that is below the mission's root, else copies are taken.
    """
    conf = state.prepare()
    with api.connection(conf, purpose="cli") as conn:
        names = api.seen_here(conn, conf, mission)
        if files:
            if len(names) != 1:
                raise click.UsageError("files are adopted by one mission: say which with --mission")
            _adopt(paths.to_bytes(api.mission(conn, names[0]).incoming), files)
    if not names:
        raise PermanentFailure("no mission is loaded that this host sees; `headrace products load FILE` loads one")
    is_here = options["here"]
    then_build = build if build is not None else not is_here
    messages: list[Message] = [IngestIncoming(host=conf.host, mission=name, then_build=then_build) for name in names]
    if not is_here:
        return follow.enqueue(state, messages, wait=wait)
    if then_build:
        messages.append(BuildProducts(host=conf.host, lane=HERE_LANE))
    return here(state, messages, timeout=here_timeout)


@click.command()
@mission_option
@here_options
@json_option
@pass_state
def build(state: State, /, mission: str | None, here_timeout: float, wait: bool, **options: bool) -> int:
    """Build everything that is stale; exit 1 if an output failed and is not tried again by itself."""
    conf = state.prepare()
    with api.connection(conf, purpose="cli") as conn:
        names = api.seen_here(conn, conf, mission)
    if not names:
        raise PermanentFailure("no mission is loaded that this host sees; `headrace products load FILE` loads one")
    plans: list[Message] = [PlanProducts(host=conf.host, mission=name) for name in names]
    if options["here"]:
        lane = BuildProducts(host=conf.host, lane=HERE_LANE)
        return here(state, [*plans, lane], timeout=here_timeout, missions=names)
    code = follow.enqueue(state, plans, wait=wait)
    return max(code, _follow(state, names)) if wait else code


@click.command()
@pass_state
def watch(state: State) -> int:
    """Watch the incoming folders and enqueue what settles; runs until it is stopped."""
    from producers.products import watch_forever
    from workers import hosts, logs, reload
    from workers.app import send

    conf = state.prepare()
    logs.configure(conf.logs)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    reload.on_hangup()
    hosts.Presence(conf.target(), conf.host, f"products-watch@{conf.host}", []).start()
    watch_forever(conf, lambda messages: send(messages, slot=str(time.time_ns())), stop)
    return DONE


def _adopt(incoming: bytes, files: tuple[Path, ...]) -> None:
    """Put links to files into an incoming folder: ingest leaves those below the root where they are."""
    os.makedirs(incoming, exist_ok=True)
    for file in files:
        path = os.path.abspath(os.fsencode(file))
        if not os.path.isfile(path):
            raise PermanentFailure(f"{paths.to_text(path)}: no such file")
        link = os.path.join(incoming, os.path.basename(path))
        if os.path.lexists(link) and not (os.path.islink(link) and os.readlink(link) == path):
            raise PermanentFailure(f"{paths.to_text(link)} is there already; take it in or away first")
        if not os.path.lexists(link):
            os.symlink(path, link)


def _follow(state: State, names: list[str]) -> int:
    """Wait until nothing of the missions is due, with a bar on a terminal; 1 if outputs failed for good."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    most = 0
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("building", total=None)
        while True:
            with api.connection(state.settings, purpose="cli") as conn:
                due, running = api.open_work(conn, names)
                troubles = api.troubles(conn, names)
            most = max(most, due)
            progress.update(bar, total=most, completed=most - due, description=f"building ({running} now)")
            if due == 0 and running == 0:
                break
            time.sleep(_POLL_SECONDS)
    for trouble in troubles:
        state.say(trouble)
    return SOME_FAILED if troubles else DONE
