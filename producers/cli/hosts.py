"""`headrace hosts`, `pause`, `resume`, `drain`: which hosts work, and "we are observing tonight"."""

from __future__ import annotations

import time

import click

from producers.cli import follow
from producers.cli.context import DONE, SOME_FAILED, State, json_option, pass_state
from workers import database, pauses
from workers import hosts as hosts_module
from workers.errors import PermanentFailure
from workers.settings import ROOMS, did_you_mean
from workers.sql_files import queries

SQL = queries("foundation")

_room = click.argument("room", required=False, type=click.Choice([*ROOMS, pauses.ALL]), default=pauses.ALL)
_host = click.option("--host", default=pauses.ALL, help="Only on this host (default: everywhere).")


@click.command()
@click.option("--forget", metavar="HOST", help="Take a host that is gone for good off the list.")
@json_option
@pass_state
def hosts(state: State, forget: str | None) -> int:
    """Hosts, when each was last heard of, and what it is running."""
    conf = state.prepare()
    if forget:
        _require(state, forget)
        with database.connection(conf.target(), purpose="cli", autocommit=True) as conn:
            SQL["forget_host"].run(conn, {"name": forget})
    found = hosts_module.listing(conf.target())
    if state.json:
        state.emit({"hosts": [{field: getattr(host, field) for field in host.__slots__} for host in found]})
        return DONE
    rows = [
        (
            host.name,
            "draining" if host.draining else "alive" if host.alive else "silent",
            host.silent_seconds,
            host.running,
            host.queues,
        )
        for host in found
    ]
    state.table("Hosts", ("host", "state", "last heard [s]", "running", "queues"), rows)
    return DONE


@click.command()
@_room
@_host
@click.option("--reason", help="Why, for whoever looks next.")
@pass_state
def pause(state: State, room: str, host: str, reason: str | None) -> int:
    """Start no new work in ROOM (default: every room). What runs is finished; what waits is kept."""
    conf = state.prepare()
    if host != pauses.ALL:
        _require(state, host)
    with database.connection(conf.target(), purpose="cli", autocommit=True) as conn:
        SQL["pause"].run(conn, {"room": room, "host": host, "by": follow.who(), "reason": reason})
    state.out(f"paused {_words(room, host)}; `headrace resume{_again(room, host)}` ends it")
    return DONE


@click.command()
@_room
@_host
@pass_state
def resume(state: State, room: str, host: str) -> int:
    """Work again; what waited meanwhile is found by the next sweep. Also ends the draining of a host."""
    conf = state.prepare()
    with database.connection(conf.target(), purpose="cli", autocommit=True) as conn:
        ended = SQL["resume"].run(conn, {"room": room, "host": host})
        ended += SQL["set_draining"].run(conn, {"name": host, "draining": False}) if host != pauses.ALL else 0
        left = SQL["pauses"].rows(conn)
    state.out(f"resumed {_words(room, host)}" if ended else f"{_words(room, host)} was not paused")
    for other_room, other_host, *_rest in left:
        state.say(f"still paused: {_words(other_room, other_host)}")
    return DONE


@click.command()
@click.argument("host")
@click.option("--timeout", default=600.0, show_default=True, help="Seconds to wait for running work.")
@pass_state
def drain(state: State, host: str, timeout: float) -> int:
    """Let HOST finish what it runs and take nothing new; returns when it is empty. `resume --host HOST` ends it."""
    conf = state.prepare()
    _require(state, host)
    deadline = time.monotonic() + timeout
    while True:
        with database.connection(conf.target(), purpose="cli", autocommit=True) as conn:
            SQL["set_draining"].run(conn, {"name": host, "draining": True})
            running = SQL["running_on_host"].value(conn, {"host": host})
        if running == 0:
            state.out(f"{host} is empty and takes nothing new; `headrace resume --host {host}` ends it")
            return DONE
        if time.monotonic() > deadline:
            state.say(f"{host} still runs {running} after {timeout:.0f} s; it takes nothing new meanwhile")
            return SOME_FAILED
        time.sleep(0.5)


def _require(state: State, host: str) -> None:
    names = [found.name for found in hosts_module.listing(state.settings.target())]
    if host not in names:
        raise PermanentFailure(f"no host is called {host!r}{did_you_mean(host, names)}")


def _words(room: str, host: str) -> str:
    what = "every room" if room == pauses.ALL else room
    return what if host == pauses.ALL else f"{what} on {host}"


def _again(room: str, host: str) -> str:
    return (f" {room}" if room != pauses.ALL else "") + (f" --host {host}" if host != pauses.ALL else "")
