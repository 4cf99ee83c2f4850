"""How a task and a reason read: what they are about, not how Python writes a dictionary, and never a password."""

from __future__ import annotations

import ast
from typing import Any

from workers.targets import redacted

# The arguments come second, because "which file" is the first question; the id is for the link to the details.
TASK_COLUMNS = "name,kwargs,state,received,runtime,worker,uuid"
_FIRST = ("path", "host")
_LONGEST = 300  # characters of a message in a table's cell


def format_task(task: Any) -> Any:
    """The copy of a task that Flower shows, its arguments as `path=… host=…`. Searching sees the original."""
    task.kwargs = readable(task.kwargs)
    if task.args in ("()", "[]"):
        task.args = ""
    return task


def readable(kwargs: object) -> str:
    """`path=/a host=b` for `{'host': 'b', 'path': '/a'}`; what cannot be parsed (cut, too long) stays as it is."""
    text = kwargs if isinstance(kwargs, str) else "" if kwargs is None else repr(kwargs)
    try:
        fields = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    if not isinstance(fields, dict):
        return text
    names = [name for name in _FIRST if name in fields] + [name for name in fields if name not in _FIRST]
    # A switch that is off says nothing; a zero does.
    shown = [name for name in names if fields[name] is not None and fields[name] is not False]
    return " ".join(f"{name}={fields[name]}" for name in shown)


def one_line(text: str) -> str:
    """A message fit for a page: no password, no more than 300 characters."""
    text = redacted(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
