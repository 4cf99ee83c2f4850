"""`headrace products reprocess`, `backfill`, `retry` and `requests`: what people ask to be built."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from typing import Any

import click

from producers.cli import follow
from producers.cli import products_choice as choice
from producers.cli import products_following as following
from producers.cli.context import DONE, SOME_FAILED, State, here_options, json_option, pass_state
from producers.cli.products_options import DAY, days_options, mission_option
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products import api

_REQUESTS = (
    "id", "mission", "kind", "of", "since", "until", "force", "by", "at [UTC]", "outputs", "done", "failed", "running",
    "waiting", "cancelled",
)  # fmt: skip
_FORCES = ("interface", "quality", "revision")

products_option = click.option(
    "--product", "products", metavar="NAME", multiple=True, help="The output to build; of a process without, its name."
)
force_option = click.option(
    "--force", type=click.Choice([*_FORCES, "0", "1", "2"]),
    help="Build it in any case, as a new version with this part bumped; 0, 1, 2 as in dbprocessing.",
)  # fmt: skip


@click.command()
@choice.mission_choice
@products_option
@click.option("--code", help="Only what was made by it: its file's name, or 'PROCESS 1.0.0'.")
@days_options
@force_option
@here_options
@json_option
@pass_state
def reprocess(
    state: State, mission: str | None, products: tuple[str, ...], code: str | None, since: date | None,
    until: date | None, force: str | None, here_timeout: float, wait: bool, here: bool,
) -> int:  # fmt: skip
    """Build outputs anew: what is stale or was given up, with --force everything; what is made of it follows."""
    choice.check_days(since, until)
    if not products and code is None:
        raise click.UsageError("say what to build: --product, --code, or both")
    with choice.changing(state) as conn:
        one = choice.only(conn, mission, products)
        asked = api.reprocess(
            conn, one, products=products or None, code=code, since=since, until=until, force=_part(force),
            by=follow.who(),
        )  # fmt: skip
        conn.commit()
    return following.work(state, one, asked, here=here, wait=wait, timeout=here_timeout)


@click.command()
@choice.mission_choice
@products_option
@click.option("--process", help="The process whose output is built, instead of --product.")
@click.option("--since", type=DAY, required=True, help="The first day.")
@click.option("--until", type=DAY, required=True, help="The last day.")
@force_option
@here_options
@json_option
@pass_state
def backfill(
    state: State, mission: str | None, products: tuple[str, ...], process: str | None, since: date, until: date,
    force: str | None, here_timeout: float, wait: bool, here: bool,
) -> int:  # fmt: skip
    """Build all that is missing or stale in a range of days, after whatever is more urgent."""
    choice.check_days(since, until)
    if bool(products) == (process is not None):
        raise click.UsageError("say what to build: --product, or --process")
    with choice.changing(state) as conn:
        one = choice.only(conn, mission, [process] if process is not None else products)
        wanted = [_output_of(conn, one, process)] if process is not None else list(products)
        asked = api.backfill(
            conn, one, products=wanted, since=since, until=until, force=_part(force), by=follow.who()
        )  # fmt: skip
        conn.commit()
    return following.work(state, one, asked, here=here, wait=wait, timeout=here_timeout)


@click.command()
@click.argument("product", required=False)
@click.option("--day", type=DAY, help="Of this day alone.")
@click.option("--key", help="Of this key alone.")
@click.option("--all", "everything", is_flag=True, help="Whatever failed.")
@mission_option
@json_option
@pass_state
def retry(
    state: State, product: str | None, day: date | None, key: str | None, everything: bool, mission: str | None
) -> int:
    """Try again what failed: outputs of PRODUCT, or of the process of that name that has none; or --all."""
    if (product is not None) == everything:
        raise click.UsageError("name a PRODUCT, or say --all")
    with choice.changing(state) as conn:
        missions = (
            choice.seen(conn, state.settings, mission) if everything else [choice.only(conn, mission, [str(product)])]
        )
        count = 0
        for one in missions:
            outputs = {process.product for process in api.known_processes(conn, one.id)}
            named = {"product" if product in outputs else "process": product}
            count += api.retry(conn, one, **named, day=day, key=key)
        conn.commit()
    if count:
        following.wake(state, missions)
    if state.json:
        state.emit({"retried": count})
    else:
        state.out(f"{count:,} outputs are tried again" if count else "nothing of the kind has failed")
    return DONE


class _Numbered(click.Group):
    """A group whose `show` is meant where its first word is a number."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0].isdecimal():
            args = ["show", *args]
        return super().resolve_command(ctx, args)


@click.group(invoke_without_command=True, cls=_Numbered)
@choice.mission_choice
@json_option
@click.pass_context
def requests(ctx: click.Context, mission: str | None) -> int:
    """What people asked to be built, newest first, and how far it is; `requests ID` shows one, `cancel ID` ends it."""
    if ctx.invoked_subcommand is not None:
        return DONE
    state = ctx.find_object(State)
    assert state is not None
    with choice.asking(state) as conn:
        if mission is not None:
            api.mission(conn, mission)
        found = api.requests_of(conn, mission=mission)
    if state.json:
        state.emit({"requests": [asdict(one) for one in found]})
    elif found:
        rows = []
        for one in found:
            what, so_far = one.what, asdict(one.progress)
            of = ", ".join(what["products"] or [what["code"] or "everything"])
            rows.append((
                one.id, one.mission, one.kind, of, what["since"], what["until"], what["force"], one.requested_by,
                one.requested_at, *so_far.values(),
            ))  # fmt: skip
        state.table("Requests", _REQUESTS, rows)
    else:
        state.out("nobody has asked for anything")
    return DONE


@requests.command()
@click.argument("request", metavar="ID", type=int)
@json_option
@pass_state
def show(state: State, request: int) -> int:
    """How far a request is; exit 1 if outputs of it failed."""
    with choice.asking(state) as conn:
        so_far = api.progress_of(conn, request)
    if state.json:
        state.emit({"request": request, "progress": asdict(so_far), "is_over": so_far.is_over})
    else:
        state.out(f"request {request}: {following.told(so_far)}")
    return SOME_FAILED if so_far.failed else DONE


@requests.command()
@click.argument("request", metavar="ID", type=int)
@json_option
@pass_state
def cancel(state: State, request: int) -> int:
    """Take back what a request still waits for; builds that run finish."""
    with choice.changing(state) as conn:
        count = api.cancel_request(conn, request, follow.who())
        conn.commit()
    if state.json:
        state.emit({"request": request, "cancelled": count})
    else:
        state.out(f"request {request}: {count:,} outputs are not built for it any more")
    return DONE


def _part(force: str | None) -> Any:
    return _FORCES[int(force)] if force is not None and force.isdecimal() else force


def _output_of(conn: Connection, mission: api.Mission, name: str) -> str:
    """What a process makes; its own name, if it makes nothing."""
    for process in api.known_processes(conn, mission.id):
        if process.name == name:
            return process.product or name
    raise PermanentFailure(f"{mission.name} has no active process {name!r}; `headrace products show` lists them")
