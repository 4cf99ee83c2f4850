"""Statements: what is run, which lock it takes and why; what `plan` prints and what a step runs are the same list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workers.database import Connection


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, the strongest lock that it takes on something that others use, and why it is there."""

    text: str
    lock: str
    why: str


def run(conn: Connection, statements: Sequence[Statement]) -> None:
    """Execute one after the other. Texts are complete: a % in them is a %, not a parameter."""
    with conn.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement.text)


def script(statements: Sequence[Statement]) -> str:
    """The same as text for a person or psql, each with its lock and reason."""
    return "\n".join(f"-- {one.why}; lock: {one.lock}\n{one.text};" for one in statements)
