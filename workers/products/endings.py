"""What the end of a code means: its kind, and a sentence for the person on call."""

from __future__ import annotations

import re
import signal

# What languages say when they get no memory. With a limit set, that limit is why.
_NO_MEMORY = re.compile(r"MemoryError|cannot allocate memory|bad_alloc|out of memory|OutOfMemory", re.IGNORECASE)


def verdict(
    status: int,
    stderr: str,
    *,
    launcher: str,
    written: str | None,
    peak_bytes: int,
    memory_bytes: int | None,
    output_bytes: int | None,
) -> tuple[str, str] | None:
    """The kind and the problem (without its subject) of a code that ended by itself; None: all is well.

    `status` is negative for a signal; `launcher` is the name under which its shell complains if it could not become
    the code; `written` says what is wrong with the amount of its files; the two limits are those that were set.
    """
    if status > 0 and stderr.startswith(f"{launcher}: "):
        return "missing", f"could not be started: {stderr.removeprefix(f'{launcher}: ').partition(chr(10))[0]}"
    # Before a good end: a code that overlooks a failed write has left half an output.
    if written is not None:
        return "output_limit", written
    if status == 0:
        return None
    # A shell ends with 128 and the number of the signal that ended the program in it.
    number = -status if status < 0 else status - 128
    if output_bytes is not None and number == signal.SIGXFSZ:
        return "output_limit", f"wrote a file of more than the {size(output_bytes)} it may"
    if memory_bytes is not None and (peak_bytes > memory_bytes or _NO_MEMORY.search(stderr)):
        return "memory", f"had no memory left of the {size(memory_bytes)} it may use{_last_line(stderr)}"
    if status > 0:
        inner = f" ({_name(number)} of a program in it)" if number > 0 and _name(number).startswith("SIG") else ""
        return "exit", f"ended with exit status {status}{inner}{_last_line(stderr)}"
    by = ", sent by a person, or by the kernel for want of memory (see dmesg)" if number == signal.SIGKILL else ""
    return "signal", f"was ended by {_name(number)}{by}{_last_line(stderr)}"


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e6:,.1f} MB"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {lines[-1][:200]}" if lines else ""
