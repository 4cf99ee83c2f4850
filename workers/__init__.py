"""Workers take a message, do the work, and record what happened.

`celery -A workers worker|beat|flower` finds the application here. It is made on first use, so that
importing one module of a room costs neither Celery nor the settings file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery

    celery: Celery

__all__ = ["celery"]


def __getattr__(name: str) -> Any:
    # Celery's `-A workers` asks for `app`, and for `celery` when `app` is the submodule of that name.
    if name in {"app", "celery"}:
        from workers.app import app as application

        globals()["celery"] = application
        return application
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
