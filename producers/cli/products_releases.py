"""`headrace products releases`: sets of files that are named once and never change."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import click

from producers.cli import follow
from producers.cli import products_choice as choice
from producers.cli.context import DONE, SOME_FAILED, State, json_option, pass_state
from producers.cli.products_options import days_options
from workers.products import api

_RELEASES = ("release", "files", "size", "tagged by", "tagged at [UTC]", "comment")
_FILES = ("id", "product", "day", "key", "version", "file", "size", "state")


@click.group()
def releases() -> None:
    """Sets of files that have a name and never change: tagged, listed, exported, verified."""


@releases.command()
@click.argument("name")
@click.option("--comment", default="", help="What it is for.")
@choice.mission_choice
@choice.products_option
@days_options
@json_option
@pass_state
def tag(
    state: State, name: str, comment: str, mission: str | None, products: tuple[str, ...], since: date | None,
    until: date | None,
) -> int:  # fmt: skip
    """Tag the newest files, of some products and days, as the release NAME: nothing cleans or forgets them any more."""
    choice.check_days(since, until)
    with choice.changing(state) as conn:
        one = choice.only(conn, mission, products)
        made = api.tag_release(
            conn, one.id, name, by=follow.who(), comment=comment, products=products or None, since=since, until=until
        )
        conn.commit()
    if state.json:
        state.emit(asdict(made))
    else:
        state.out(f"release {name}: {made.files:,} files, {choice.size(made.bytes)}, manifest {made.manifest_sha256}")
    return DONE


@releases.command("list")
@click.argument("name", required=False)
@choice.mission_choice
@json_option
@pass_state
def list_(state: State, name: str | None, mission: str | None) -> int:
    """The releases, or the files of the release NAME."""
    with choice.asking(state) as conn:
        one = choice.only(conn, mission)
        if name is not None:
            members = api.files_of_release(conn, api.release(conn, one.id, name))
        else:
            found = api.released(conn, one.id)
    if name is not None:
        if state.json:
            state.emit({"release": name, "files": [asdict(each) for each in members]})
        else:
            state.table(f"Release {name}", _FILES, [
                (each.file_id, each.product, each.day, each.key, each.version, api.plain(each.filename),
                 choice.size(each.bytes or 0), each.state) for each in members
            ])  # fmt: skip
    elif state.json:
        state.emit({"releases": [asdict(each) for each in found]})
    elif found:
        state.table("Releases", _RELEASES, [
            (each.name, each.files, choice.size(each.bytes), each.tagged_by, each.tagged_at, api.plain(each.comment))
            for each in found
        ])  # fmt: skip
    else:
        state.out("nothing was released; `headrace products releases tag NAME` does")
    return DONE


@releases.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--how", type=click.Choice(["copy", "link", "symlink"]), default="copy", show_default=True,
    help="Copies, hard links, or symbolic links.",
)  # fmt: skip
@choice.mission_choice
@json_option
@pass_state
def export(state: State, name: str, folder: Path, how: Any, mission: str | None) -> int:
    """Write the files of a release into the new FOLDER, each compared with what was tagged; exit 1 if any differs."""
    with choice.changing(state) as conn:
        found = api.release(conn, choice.only(conn, mission).id, name)
        with choice.progress_bar(f"exporting {name}") as told:
            done = api.export_release(conn, found, folder, how=how, progress=told)
    if state.json:
        state.emit(asdict(done))
    else:
        state.out(f"{done.folder}: {done.files:,} of {found.files:,} files, {choice.size(done.bytes)}")
    for problem in done.problems:
        state.say(api.plain(problem))
    return SOME_FAILED if done.problems else DONE


@releases.command()
@click.argument("name")
@choice.mission_choice
@json_option
@pass_state
def verify(state: State, name: str, mission: str | None) -> int:
    """Read every file of a release, and compare it with what was tagged; exit 1 if anything differs."""
    with choice.changing(state) as conn:
        found = api.release(conn, choice.only(conn, mission).id, name)
        with choice.progress_bar(f"reading {name}") as told:
            verdict = api.verify_release(conn, found, progress=told)
    if state.json:
        state.emit(asdict(verdict) | {"files": found.files})
    else:
        state.out(f"release {name}: {verdict.good:,} of {found.files:,} files are what was tagged")
    for problem in verdict.problems:
        state.say(api.plain(problem))
    return SOME_FAILED if verdict.problems else DONE
