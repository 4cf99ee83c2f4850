"""Which tables a command of repack is about: those named, those of plans, those that are being rewritten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal

import click

from producers.cli.context import State
from producers.cli.repack_options import ALL, Scope, engine, given, limits, rules, who
from producers.cli.repack_work import Job, Report
from workers.errors import HeadraceError, NothingToDo, ServerUnavailable, SettingsError
from workers.repack import api
from workers.repack_settings import Plan
from workers.settings import Settings

Goal = Literal["swap", "ready"]


def gather(
    state: State, found: Scope, tables: Sequence[str], goal: Goal, report: Report, *, looks_only: bool = False
) -> list[Job]:
    """What is to be rewritten, each checked before the first one begins.

    Tables that are refused go into the report. `looks_only`: at any time, also outside a window.
    Raises SettingsError when rules are wrong or a name is none.
    """
    jobs = _named(state, found, tables, goal, report) if tables else _planned(state, found, goal, report, looks_only)
    wrong: list[str] = []
    fit = []
    for job in jobs:
        assert job.wish is not None
        try:
            reasons = api.check(state.settings, job.database, job.schema, job.table, job.wish)
        except SettingsError as error:
            wrong += error.problems
            continue
        except HeadraceError as error:
            reasons = [str(error)]
        if reasons:
            report.refused(job, reasons)
        else:
            fit.append(job)
    if wrong:
        raise SettingsError(list(dict.fromkeys(wrong)))
    return fit


def requests(
    state: State, found: Scope, tables: Sequence[str], report: Report, *, all_plans: bool = False,
    missing_is_well: bool = False,
) -> Iterator[tuple[str, api.Request]]:  # fmt: skip
    """(database, request) of what is being rewritten: of the tables (or numbers) named, of the plans, or everything."""
    missing: dict[str, str] = {}
    seen: set[str] = set()
    away: list[str] = []
    for name in found.databases:
        try:
            if not tables:
                plan = None if all_plans else found.plan_of(name)
                yield from ((name, one) for one in api.active(state.settings, name, (), plan))
            for text in tables:
                try:
                    here = api.active(state.settings, name, [text])
                except NothingToDo as reason:
                    missing[text] = str(reason)
                    continue
                seen.add(text)
                yield from ((name, one) for one in here)
        except ServerUnavailable as error:
            report.unreachable.append(name)
            away.append(str(error))
    for problem in away:
        if tables and seen == set(tables):
            state.say(problem)  # what was asked for is elsewhere
        else:
            report.problems.append(problem)
    for text, problem in missing.items():
        if text not in seen and missing_is_well:
            state.say(problem)
        elif text not in seen:
            report.problems.append(problem)


def in_turns(conf: Settings, jobs: Sequence[Job]) -> list[list[Job]]:
    """Batches of a plan's tables: in each as many of a database as the plan allows at once; of those named, all."""
    batches: list[list[Job]] = []
    place: dict[str, int] = {}
    for job in jobs:
        plan = conf.repack.plans.get((job.wish.plan if job.wish is not None else None) or "")
        number = place.get(job.database, 0)
        place[job.database] = number + 1
        turn = number // plan.at_once if plan is not None else 0
        batches += [[] for _ in range(turn + 1 - len(batches))]
        batches[turn].append(job)
    return batches


def planned_wish(conf: Settings, database_name: str, schema: str, table: str, goal: Goal, kind: str) -> api.Wish:
    """A wish by the settings and what was said on the command line; nothing is begun."""
    return api.Wish(
        goal=goal, engine=kind, rules=rules(conf, database_name, schema, table), limits=limits(conf), by=who()
    )


def named_tables(conf: Settings, found: Scope, tables: Sequence[str], report: Report) -> list[tuple[str, api.Found]]:
    """(database, table) of names; one that is nowhere comes with the first database that answered.

    Raises SettingsError for a name that is none, UsageError for one that is in several databases of the settings.
    """
    seen: list[tuple[str, api.Found]] = []
    answered = []
    for name in found.databases:
        try:
            for text in tables:
                seen += [(name, one) for one in api.tables(conf, name, text)]
            answered.append(name)
        except ServerUnavailable as error:
            report.unreachable.append(name)
            report.problems.append(str(error))
    there = [one for one in seen if one[1].exists]
    known = {(one.schema, one.table) for _, one in there}
    nowhere = [one for one in seen if (one[1].schema, one[1].table) not in known and one[0] == answered[0]]
    chosen = list(dict.fromkeys([*there, *nowhere]))
    if found.file is None and not found.is_named and given("db") != ALL and given("plan") is None:
        for schema, table in known:
            where = [name for name, one in there if (one.schema, one.table) == (schema, table)]
            if len(where) > 1:
                raise click.UsageError(f"{schema}.{table} is in {', '.join(where)}: name one with --database, or all")
    return chosen


def _named(state: State, found: Scope, tables: Sequence[str], goal: Goal, report: Report) -> list[Job]:
    conf, jobs, kind = state.settings, [], engine()
    for name, one in named_tables(conf, found, tables, report):
        chosen = kind or "shadow"
        if kind == "auto":
            chosen = api.engine_for(conf, name, one.schema, one.table) if one.exists else "shadow"
        wish = planned_wish(conf, name, one.schema, one.table, goal, chosen)
        jobs.append(Job(name, one.schema, one.table, wish))
    return jobs


def _planned(state: State, found: Scope, goal: Goal, report: Report, looks_only: bool) -> list[Job]:
    conf, jobs = state.settings, []
    plans = found.plans or _only_plan(conf, found)
    missing: dict[tuple[str, str], int] = {}
    looked = 0
    for name in found.databases:
        for plan_name in plans.get(name, []):
            plan = conf.repack.plans[plan_name]
            if not looks_only and (opens := api.waits_until(plan, datetime.now(UTC))) is not None:
                state.say(f"plan {plan_name} waits for its window at {opens:%Y-%m-%d %H:%M} UTC")
                report.skipped += 1
                continue
            try:
                verdicts = api.verdicts(conf, name, plan_name, plan)
                for text in api.unknown(conf, name, plan):
                    missing[plan_name, text] = missing.get((plan_name, text), 0) + 1
            except ServerUnavailable as error:
                report.unreachable.append(name)
                report.problems.append(str(error))
                continue
            except HeadraceError as error:
                report.problems.append(str(error))
                continue
            looked += 1
            jobs += [_job(conf, name, plan_name, plan, one, goal) for one in verdicts if _is_meant(one)]
    for (plan_name, text), times in missing.items():
        if times == looked:
            report.problems.append(f"repack.plans.{plan_name}: nothing here is called {text}; check its spelling")
    return jobs


def _is_meant(verdict: api.Verdict) -> bool:
    return verdict.is_chosen or verdict.text == "already being rewritten"


def _job(conf: Settings, name: str, plan_name: str, plan: Plan, verdict: api.Verdict, goal: Goal) -> Job:
    one = verdict.estimate
    kind = engine() or plan.engine
    wish = api.Wish(
        goal=goal, engine=verdict.engine if kind == "auto" else kind,
        rules=rules(conf, name, one.schema, one.table), limits=limits(conf), plan=plan_name, by=who(),
        bloat_bytes=one.bloat_bytes if not one.unknown else None,
    )  # fmt: skip
    return Job(name, one.schema, one.table, wish, verdict)


def _only_plan(conf: Settings, found: Scope) -> dict[str, list[str]]:
    enabled = [name for name, plan in conf.repack.plans.items() if plan.enabled]
    if len(enabled) != 1:
        there = f"; there are the plans {', '.join(conf.repack.plans)}" if conf.repack.plans else ""
        raise click.UsageError(f"name tables, a plan with --plan, or repcloud's file with --legacy-config{there}")
    plan = conf.repack.plans[enabled[0]]
    return {name: enabled for name in found.databases if name in plan.databases}
