"""`headrace products import`: a dbprocessing database becomes a mission here, in place; its .conf becomes YAML."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from producers.cli import follow
from producers.cli import products_choice as choice
from producers.cli.context import DONE, State, json_option, pass_state
from workers.products import api

_COUNTED = ("missions", "products", "processes", "codes", "files", "builds", "links", "releases")
_SQLITE = b"SQLite format 3\0"


@click.command("import")
@click.argument("source")
@click.option("--dry-run", is_flag=True, help="Say what would be imported, and change nothing.")
@click.option(
    "--root", type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    help="Where the mission's data lie now, should they have moved.",
)  # fmt: skip
@json_option
@pass_state
def import_(state: State, source: str, dry_run: bool, root: Path | None) -> int:
    """Import SOURCE, a dbprocessing database: a sqlite file, or PostgreSQL by DSN, URL or name. A .conf prints as YAML.

    Files stay where they are, with versions and lineage. Importing again adds what is new. Nothing becomes stale by it.
    """
    if _is_conf(source):
        if root is not None:
            raise click.UsageError("--root is for databases; in the YAML, root is the second line")
        return _print_yaml(state, Path(source))
    legacy = api.read_legacy(source)
    with choice.changing(state, "import") as conn:
        counts = api.import_legacy(conn, legacy, host=state.settings.host, root=root, by=follow.who())
        if dry_run:
            conn.rollback()
        else:
            conn.commit()
    if state.json:
        state.emit(asdict(counts) | {"dry_run": dry_run})
    else:
        for change in counts.changes:
            state.out(str(change))
        new = ", ".join(f"{getattr(counts, name):,} {name}" for name in _COUNTED if getattr(counts, name))
        state.out(f"{'would add' if dry_run else 'added'} {new or 'nothing: everything is here already'}")
        if dry_run:
            state.out("nothing was changed (--dry-run)")
    for warning in counts.warnings:
        state.say(warning)
    return DONE


def _print_yaml(state: State, path: Path) -> int:
    mission, warnings = api.read_mission(path)
    text = api.as_yaml(mission)
    if state.json:
        state.emit({"mission": mission.name, "yaml": text, "warnings": warnings})
    else:
        state.out(text.rstrip("\n"))
    for warning in warnings:
        state.say(warning)
    return DONE


def _is_conf(source: str) -> bool:
    """Whether it is a file that is no sqlite database."""
    try:
        with open(source, "rb") as file:
            return file.read(len(_SQLITE)) != _SQLITE
    except OSError:
        return False
