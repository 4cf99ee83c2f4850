"""What the commands of repack have in common: databases and plans that are meant, repcloud's file, a table's rules."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from producers.cli.context import State
from workers import logs
from workers import settings as settings_module
from workers.errors import SettingsError
from workers.repack import api
from workers.repack_settings import Limits, Plan, TableRules
from workers.settings import Settings, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])

_PLACES = "headrace.repack_places"
_RULES = "headrace.repack_rules"
ALL = "all"

tables_argument = click.argument("tables", metavar="[SCHEMA.TABLE]...", nargs=-1)


def who() -> str:
    """The person at the keyboard."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


@dataclass(frozen=True, slots=True)
class Scope:
    """The databases that are meant, and the plans of each; `file` is repcloud's, if one was named."""

    conf: Settings
    databases: tuple[str, ...]
    plans: dict[str, list[str]] = field(default_factory=dict)
    file: api.RepcloudFile | None = None
    is_named: bool = False

    def plan_of(self, database_name: str) -> tuple[str, Plan] | None:
        """The plan of a database that was named, itself or by repcloud's file."""
        names = self.plans.get(database_name, [])
        return (names[0], self.conf.repack.plans[names[0]]) if names else None


def places_options(command: F) -> F:
    """`--database`, `--legacy-config`, `--table-conf`: which databases are meant."""

    def keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        ctx.meta.setdefault(_PLACES, {})[parameter.name] = value

    for option in (
        click.option(
            "--table-conf", multiple=True, type=click.Path(path_type=Path), expose_value=False, callback=keep,
            help="A file of repcloud with tables' rules (default: those beside its configuration).",
        ),
        click.option(
            "--legacy-config", "-c", "legacy", metavar="FILE|NAME", expose_value=False, callback=keep,
            help="repcloud's TOML file, or the name of one below ~/.repcloud/config.",
        ),
        click.option(
            "--database", "-D", "--connection", "db", metavar="NAME|all", expose_value=False, callback=keep,
            help="A database of the settings, or a connection of repcloud's file (default: every one).",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def plan_option(command: F) -> F:
    """`--plan P`."""

    def keep(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        ctx.meta.setdefault(_PLACES, {})["plan"] = value

    return click.option(
        "--plan", metavar="NAME", expose_value=False, callback=keep, help="A plan below repack.plans: its tables."
    )(command)


def given(name: str) -> Any:
    """What was said for `db`, `legacy`, `table_conf`, `plan`."""
    return click.get_current_context().meta.get(_PLACES, {}).get(name)


def scope(state: State, *, everywhere: bool = False, database_name: str | None = None) -> Scope:
    """The databases and plans that are meant; reads repcloud's file first. `everywhere`: else all that there are.

    Raises SettingsError for unknown names.
    """
    name = database_name or given("db")
    file = None
    if (legacy := given("legacy")) is not None:
        file = api.read_repcloud(api.find_repcloud(legacy), connection=name, table_conf=given("table_conf") or ())
        state.overrides = file.overrides
    elif given("table_conf"):
        raise click.UsageError("--table-conf belongs to --legacy-config")
    conf = state.settings
    logs.configure(conf.logs.model_copy(update={"level": "WARNING"}))
    chosen = given("plan")
    if chosen is not None and chosen not in conf.repack.plans:
        raise SettingsError([f"repack.plans: no plan named {chosen!r}{did_you_mean(chosen, conf.repack.plans)}"])
    known = api.databases(conf)
    if file is not None:
        databases: tuple[str, ...] = file.connections
        plans = [chosen] if chosen is not None else list(file.overrides["repack"]["plans"])
    else:
        if name not in (None, ALL, *known):
            raise SettingsError([f"databases: no database named {name!r}{did_you_mean(str(name), known)}"])
        named = () if name in (None, ALL) else (str(name),)
        plans = [chosen] if chosen is not None else []
        used = conf.repack.plans[chosen].databases if chosen is not None else api.names(conf)
        databases = named or tuple(known if everywhere or name == ALL or not used else used)
    of_each = {db: [one for one in plans if db in conf.repack.plans[one].databases] for db in databases}
    if chosen is not None and not any(of_each.values()):
        raise SettingsError([f"repack.plans.{chosen}: is not for {', '.join(databases)}; see its databases"])
    return Scope(conf, databases, {db: found for db, found in of_each.items() if found}, file, name not in (None, ALL))


def rules_options(command: F) -> F:
    """What this request has another way than the settings say."""

    def keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        ctx.meta.setdefault(_RULES, {})[parameter.name] = value

    def option(*words: str, **keys: Any) -> Callable[[F], F]:
        return click.option(*words, expose_value=False, callback=keep, **keys)

    for one in (
        option("--no-verify", is_flag=True, help="Do not compare old and new before the old table goes."),
        option("--keep-old", type=float, metavar="HOURS", help="Keep the old table so long after the swap."),
        option("--engine", type=click.Choice(["auto", "shadow", "reindex"]), help="How (default: as the plan says)."),
        option("--only-indexes", is_flag=True, help="Rebuild the indexes only: --engine reindex."),
        option("--index-tablespace", metavar="NAME", help="Move the indexes there."),
        option("--tablespace", metavar="NAME", help="Move the table there."),
        option("--cluster", metavar="INDEX", help="The copy's rows are in the order of this index."),
        option("--order-by", metavar="COLUMN,...", help="The copy's rows are in the order of these columns."),
        option("--fillfactor", type=int, metavar="10..100", help="Of the new table."),
    ):
        command = one(command)
    return command


def engine() -> str | None:
    """The engine that was asked for; None: none was."""
    found = click.get_current_context().meta.get(_RULES, {})
    if found.get("only_indexes") and found.get("engine") not in (None, "reindex"):
        raise click.UsageError("--only-indexes and --engine shadow exclude each other")
    return "reindex" if found.get("only_indexes") else found.get("engine")


def rules(conf: Settings, database_name: str, schema: str, table: str) -> TableRules:
    """A table's rules by the settings, with what was said on the command line in their place."""
    found = click.get_current_context().meta.get(_RULES, {})
    own = api.rules_of(conf, database_name, schema, table)
    names = ("fillfactor", "cluster", "tablespace", "index_tablespace")
    said = {name: found[name] for name in names if found.get(name) is not None}
    if order := found.get("order_by"):
        said["order_by"] = [part.strip() for part in order.split(",") if part.strip()]
    if "order_by" in said and own.cluster and "cluster" not in said:
        said["cluster"] = None
    if "cluster" in said and own.order_by and "order_by" not in said:
        said["order_by"] = ()
    return _checked(TableRules, own.model_dump() | said)


def limits(conf: Settings) -> Limits:
    """The limits of the settings, with what was said on the command line in their place."""
    found = click.get_current_context().meta.get(_RULES, {})
    said: dict[str, Any] = {}
    if found.get("keep_old") is not None:
        said["keep_old_hours"] = found["keep_old"]
    if found.get("no_verify"):
        said["verify"] = False
    return _checked(Limits, conf.repack.limits.model_dump() | said)


M = TypeVar("M", TableRules, Limits)


def _checked(model: type[M], values: dict[str, Any]) -> M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        said = [
            f"--{str(one['loc'][0]).removesuffix('_hours').replace('_', '-')}: " if one["loc"] else ""
            for one in error.errors()
        ]
        messages = [one["msg"].removeprefix("Value error, ") for one in error.errors()]
        raise SettingsError([f"{option}{text}" for option, text in zip(said, messages, strict=True)]) from error


def tell_notes(state: State, found: Scope) -> None:
    """One line about what repcloud's file says that has become something else."""
    if found.file is not None and found.file.notes:
        state.say(found.file.line())


def check_worker_knows(state: State, found: Scope) -> None:
    """Without --here a worker needs the databases in its own settings. Raises UsageError."""
    if found.file is None:
        return
    own = settings_module.load(state.config)
    if missing := [name for name in found.databases if name not in own.databases]:
        raise click.UsageError(
            f"the workers' settings have no database {', '.join(missing)}: add --here, or put what"
            f" `headrace repack import {given('legacy')}` prints into the settings"
        )
