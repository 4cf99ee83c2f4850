"""SIGHUP: a long-lived process starts again with new settings, unless these have an error."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from workers import logs, settings
from workers.errors import HeadraceError

log = logs.get(__name__)


def start_again() -> None:
    """Become the same command anew, with the same process id. Sockets and files of ours close on the way."""
    os.execv(sys.executable, sys.orig_argv)


def on_hangup(restart: Callable[[], Any] = start_again) -> None:
    """From now on SIGHUP checks the settings and calls `restart`; wrong ones are logged and the work goes on.

    On a terminal SIGHUP keeps its meaning: the terminal is gone, and so is what ran in it.
    """
    if sys.__stdout__ is not None and sys.__stdout__.isatty():
        return

    def reload(_number: int, _frame: Any) -> None:
        try:
            settings.load()
        except HeadraceError as error:
            log.error("settings.not_reloaded", reason=str(error))
            return
        log.info("settings.reload")
        restart()

    signal.signal(signal.SIGHUP, reload)
