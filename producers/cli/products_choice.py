"""Which missions, files and outputs a command of products means, and how their facts are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from producers.cli.context import State
from workers import logs, paths
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products import api
from workers.settings import Settings

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_MOST_NAMED = 5

mission_choice = click.option("--mission", metavar="NAME", help="Which mission, where several are loaded.")
products_option = click.option("--product", "products", metavar="NAME", multiple=True, help="Of this product alone.")


@contextmanager
def asking(state: State) -> Iterator[Connection]:
    """A connection on which nothing can be written: of commands that only look."""
    with api.connection(state.prepare(), purpose="cli") as conn:
        conn.readonly = True
        try:
            yield conn
        finally:
            if not conn.closed:
                conn.rollback()
                conn.readonly = None


@contextmanager
def changing(state: State, purpose: str = "cli") -> Iterator[Connection]:
    """A connection for a command that writes; it commits. What the room logs goes to stderr, and only if it matters."""
    conf = state.prepare()
    logs.configure(conf.logs.model_copy(update={"level": "WARNING"}))
    with api.connection(conf, purpose=purpose) as conn:
        yield conn


def seen(conn: Connection, conf: Settings, name: str | None, products: Sequence[str] = ()) -> list[api.Mission]:
    """The named mission, or every one that this host sees; of these, those that have all the products.

    Raises PermanentFailure when there is none.
    """
    missions = [api.mission(conn, one) for one in api.seen_here(conn, conf, name)]
    if not missions:
        raise PermanentFailure("no mission is loaded that this host sees; `headrace products load FILE` loads one")
    found, refused = [], None
    for mission in missions:
        try:
            api.require_products(conn, mission.id, products)
            found.append(mission)
        except PermanentFailure as error:
            refused = error
    if not found and refused is not None:
        raise refused
    return found


def only(conn: Connection, name: str | None, having: Sequence[str] = ()) -> api.Mission:
    """The named mission, the only one, or the only one that has outputs, or processes without, of these names.

    Raises PermanentFailure when none is loaded, UsageError when several may be meant.
    """
    if name is not None:
        return api.mission(conn, name)
    missions = api.missions(conn)
    if not missions:
        raise PermanentFailure("no mission is loaded; `headrace products load FILE` loads one")
    if len(missions) > 1 and having:
        missions = [one for one in missions if set(having) <= known_names(conn, one)] or missions
    if len(missions) > 1:
        names = ", ".join(one.name for one in missions)
        raise click.UsageError(f"several missions may be meant: {names}; say which with --mission")
    return missions[0]


def known_names(conn: Connection, mission: api.Mission) -> set[str]:
    """What a mission's products and processes are called."""
    products = {one.name for one in api.known_products(conn, mission.id)}
    return products | {one.name for one in api.known_processes(conn, mission.id)}


def file(conn: Connection, text: str, mission: str | None = None) -> int:
    """The id of the file that is meant by a name, a path or an id, as it was typed.

    Raises PermanentFailure when there is none, UsageError when several may be meant.
    """
    if mission is not None:
        api.mission(conn, mission)  # a misspelt one is told as such
    given = paths.to_text(text)
    found = api.find_files(conn, given, mission=mission)
    if not found and "/" in text:
        whole = os.path.abspath(text)
        real = os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))
        for path in dict.fromkeys((whole, real)):
            found = found or api.find_files(conn, paths.to_text(path), mission=mission)
    if not found:
        where = f" of mission {mission}" if mission else ""
        raise PermanentFailure(
            f"no file{where} has the name, path or id {api.plain(given)}; `headrace products coverage` shows what is"
            " there, `headrace products quarantine` what could not be taken in"
        )
    if len(found) > 1:
        ids = ", ".join(str(one) for one in found)
        raise click.UsageError(
            f"{api.plain(given)} may be each of the files {ids}; name one by its id, or say --mission"
        )
    return found[0]


@contextmanager
def progress_bar(word: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; what it yields is told how many of how many are done."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(word, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def check_days(since: date | None, until: date | None) -> None:
    """Raise UsageError for a range that ends before it begins."""
    if since is not None and until is not None and until < since:
        raise click.UsageError(f"{since} to {until} ends before it begins")


def size(count: float) -> str:
    """Bytes for people, in powers of 1000: `1.2 GB`."""
    unit = 0
    while count >= 999.5 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 or count >= 99.5 else f"{count:.1f} {_UNITS[unit]}"


def stretches(gaps: Sequence[tuple[date, date]]) -> str:
    """Stretches of days in a few words."""
    shown = [str(first) if first == last else f"{first}..{last}" for first, last in gaps[:_MOST_NAMED]]
    more = len(gaps) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def write(path: Path, content: str | bytes) -> None:
    """Write a file of a person's choice. Raises PermanentFailure when that cannot be."""
    try:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise PermanentFailure(f"{path} cannot be written: {error.strerror}; name another file") from error


def confirmed(state: State, question: str, *, yes: bool, or_else: str) -> None:
    """Go on only if a person says so, or has said --yes. Raises UsageError where nobody can be asked."""
    if yes:
        return
    if state.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(or_else)
    click.confirm(question, abort=True, err=True)
