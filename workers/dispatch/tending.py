"""Tending a consumer's partitions: those of the next days are made ahead, those beyond their retention leave."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from workers import database, logs, runs
from workers.database import Connection
from workers.dispatch import consumers, partitions, store
from workers.dispatch.consumers import Scope
from workers.dispatch.partitions import NoPlace, Step
from workers.errors import NothingToDo
from workers.messages import Message, TendPartitions
from workers.settings import Settings

log = logs.get(__name__)


def tend(message: TendPartitions, settings: Settings) -> list[Message]:
    """Do what `plan` says. Raises NothingToDo when nothing is due."""
    scope = consumers.of(settings, message.consumer)
    consumers.ensure(scope)
    with database.connection(scope.target, purpose=f"dispatch partitions {scope.name}") as target:
        consumers.remember_leaves(scope, target)
        steps, problems = plan(scope, target)
        target.rollback()
        if not any(step.table is not None for step in steps) and not problems:
            raise NothingToDo(f"the partitions of {scope.name} are in order")
        with runs.running(
            message, control=settings.target(), work=scope.target, conn=target, host=settings.host
        ) as run:  # fmt: skip
            run.problems += problems
            for result in partitions.run(scope.target, steps):
                run.count(partitions=result.problem is None)
                if result.problem is not None:
                    run.problems.append(result.problem)
                log.info("dispatch.partition", what=result.step.what, problem=result.problem)
    return []


def plan(scope: Scope, target: Connection) -> tuple[list[Step], list[str]]:
    """What is to be made and let go of now, and what stands in the way. Changes nothing.

    Nothing leaves that the position, an unfinished batch therefore, has not gone past by its retention.
    """
    now = datetime.now(UTC)
    found = store.position(target, scope.name)
    steps: list[Step] = []
    problems: list[str] = []
    for parent, layout in consumers.parents(scope).items():
        try:
            steps += partitions.premake(target, layout, parent, now=now)
            if layout.retention_days is not None and found is not None and found["tick_at"] is not None:
                cutoff = min(now, found["tick_at"]) - timedelta(days=layout.retention_days)
                steps += partitions.retention(target, layout, parent, now=now, cutoff=cutoff)
        except NoPlace as error:
            problems.append(str(error))
    return steps, problems
