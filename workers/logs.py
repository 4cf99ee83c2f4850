"""Logging: events with fields, readable on a terminal, one JSON object a line everywhere else."""

from __future__ import annotations

import logging
import sys
from typing import Any

import orjson
import structlog
from concurrent_log_handler import ConcurrentRotatingFileHandler

from workers.settings import Logs
from workers.targets import redacted

_CHATTY = ("celery.redirected", "watchfiles", "celery.worker.strategy", "celery.app.trace", "celery.beat")


def configure(logs: Logs) -> None:
    """Send structlog and the standard library's records to stderr and, if set, to a rotated file.

    The file may be shared: every process of this host writes it and any of them may rotate it.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _hide_passwords,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    as_json = structlog.processors.JSONRenderer(serializer=_to_json)
    on_screen: Any = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else as_json
    handlers: list[logging.Handler] = [_formatted(logging.StreamHandler(sys.stderr), on_screen, shared)]
    if logs.file is not None:
        logs.file.parent.mkdir(parents=True, exist_ok=True)
        rotating = ConcurrentRotatingFileHandler(
            str(logs.file), maxBytes=logs.max_bytes, backupCount=logs.keep, encoding="utf-8"
        )
        handlers.append(_formatted(rotating, as_json, shared))
    root = logging.getLogger()
    root.handlers = handlers
    root.setLevel(logs.level)
    if logs.level != "DEBUG":
        for name in _CHATTY:
            # One line per message received and sent is noise: the runs say it better.
            logging.getLogger(name).setLevel(logging.WARNING)


def get(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of one module."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def _formatted(handler: logging.Handler, renderer: Any, shared: list[Any]) -> logging.Handler:
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    return handler


def _hide_passwords(_logger: Any, _method: str, event: Any) -> Any:
    for key, value in event.items():
        if isinstance(value, str) and ("://" in value or "password" in value):
            event[key] = redacted(value)
    return event


def _to_json(event: Any, **_options: Any) -> str:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
