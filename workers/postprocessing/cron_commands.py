"""Commands of pg_cron as procedures of ours: taken apart for what a procedure may not hold, and wrapped."""

from __future__ import annotations

import re

from workers.database import Connection
from workers.postprocessing import catalog
from workers.postprocessing.export import WRITTEN, dollar_quoted, one_line
from workers.sql_files import queries

SQL = queries("postprocessing_interchange")

_PIECE = re.compile(
    r"(?P<comment>--[^\r\n]*)|(?P<block>/\*)|(?P<end>;)"
    r"|(?P<text>(?<![\w$])[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|(?<![\w$])\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$)"
    r'|"(?:[^"]|"")*"|[^-/;$"\'eE]+|.',
    re.DOTALL,
)
_NOT_IN_A_PROCEDURE = re.compile(
    r"""VACUUM\b | ALTER\s+SYSTEM\b | (?:CREATE|DROP)\s+(?:DATABASE|TABLESPACE|SUBSCRIPTION)\b
    | ALTER\s+DATABASE\b.*\bSET\s+TABLESPACE\b | (?:CREATE(?:\s+UNIQUE)?|DROP)\s+INDEX\s+CONCURRENTLY\b
    | REINDEX\s*(?:\([^)]*\)\s*)?(?:SYSTEM|DATABASE|SCHEMA)\b | REINDEX\b.*\bCONCURRENTLY\b
    | CLUSTER\s*(?:\([^)]*\)|VERBOSE\b)?\s*$ | ALTER\s+TABLE\b.*\bDETACH\s+PARTITION\b.*\bCONCURRENTLY\b
    | COPY\b.*\b(?:FROM\s+STDIN|TO\s+STDOUT)\b
    | (?:BEGIN|START\s+TRANSACTION|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE\s+TRANSACTION)\b""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)


def wrapper(conn: Connection, routine: str, command: str) -> tuple[str, list[str], list[str]]:
    """The procedure that does what a command does, problems, notes."""
    statements = _statements(command)
    problems, notes = [], []
    if not statements:
        problems.append("its command is empty")
    for text, bare in statements:
        forbidden = _NOT_IN_A_PROCEDURE.match(bare)
        if forbidden:
            words = " ".join(forbidden[0].upper().split())
            problems.append(
                f"its command has {words}, which PostgreSQL does not do inside a procedure: leave it to pg_cron, or "
                f"write a routine of its own ({one_line(text, 60)})"
            )
    # Written out, CALL and DO may commit inside; by EXECUTE they could not.
    literal = len(statements) == 1 and re.match(r"(?:CALL|DO)\b", statements[0][1], re.IGNORECASE) is not None
    if literal and _has_output(conn, statements[0][1]):
        literal = False
        notes.append("its procedure has output parameters; called from the import's procedure it must not COMMIT")
    body = f"{statements[0][0]}\n    ;" if literal else f"EXECUTE {dollar_quoted(command, 'command')};"
    block = f"\nBEGIN\n    {body}\nEND\n"
    head = f"CREATE OR REPLACE PROCEDURE headrace.{routine}(job_id integer, config jsonb) LANGUAGE plpgsql AS "
    return head + dollar_quoted(block, "wrapper"), problems, notes


def _statements(command: str) -> list[tuple[str, str]]:
    """(as it stands, without comments and texts) of each statement of a command."""
    found: list[tuple[str, str]] = []
    text = bare = ""
    position = 0
    while position < len(command):
        piece = _PIECE.match(command, position)
        assert piece is not None  # its last branch takes anything
        end = _end_of_comment(command, position) if piece["block"] else piece.end()
        if piece["end"]:
            found.append((text.strip(), bare.strip()))
            text = bare = ""
        else:
            text += command[position:end]
            comment = piece["comment"] or piece["block"]
            bare += " " if comment else "''" if piece["text"] else piece[0]
        position = end
    found.append((text.strip(), bare.strip()))
    return [statement for statement in found if statement[1]]


def _end_of_comment(command: str, start: int) -> int:
    """Where the comment that begins at `start` ends; PostgreSQL's nest."""
    depth = 0
    for mark in re.compile(r"/\*|\*/").finditer(command, start):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(command)


def _has_output(conn: Connection, call: str) -> bool:
    name = re.match(rf"CALL\s+({WRITTEN})\(", call, re.IGNORECASE)
    if name is None:
        return False
    schema, procedure = catalog.parts_of(conn, name[1])
    return bool(SQL["has_output_parameters"].value(conn, {"schema": schema, "name": procedure}))
