"""`headrace repack`: bloated tables rewritten while they are in use; what repcloud did, and what it could not."""

from __future__ import annotations

import click

from producers.cli.repack_plan import plan
from producers.cli.repack_run import abort, pause, prepare, replay, resume, run, swap
from producers.cli.repack_setup import drop_schema, import_, setup
from producers.cli.repack_status import candidates, connections, status


@click.group()
def repack() -> None:
    """Bloated tables rewritten online: no extension, no superuser, nothing lost."""


for _command in (
    connections, setup, candidates, plan, run, prepare, replay, swap, abort, pause, resume, status, drop_schema,
    import_,
):  # fmt: skip
    repack.add_command(_command)
