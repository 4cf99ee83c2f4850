"""What happens when Flower starts: settings, login, every queue registered, our handlers in front of its own."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import NoReturn

from tornado.options import options

from workers import hosts, logs, queues, reload, settings
from workers.app import app
from workers.errors import HeadraceError, SettingsError
from workers.monitor import handlers, login
from workers.monitor.board import Board, register_queues
from workers.services.errors import ServiceError
from workers.settings import Settings

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The values of Flower's own options; `basic_auth` has `user:password` words."""

    address: str
    port: int
    basic_auth: list[str]


def prepare() -> Chosen:
    """Make this process a Headrace Flower. Ends it with exit code 2 and a sentence when that cannot be done safely."""
    try:
        conf = settings.current()
        logs.configure(conf.logs)
        chosen = _choose(conf)
        token = login.metrics_token(conf)
    except SettingsError as error:
        _give_up(error.problems)
    except (HeadraceError, ServiceError) as error:
        _give_up([str(error)])
    # It would open the API, which can run any task, to everybody.
    if os.environ.pop("FLOWER_UNAUTHENTICATED_API", None):
        log.warning("flower.api_stays_closed", variable="FLOWER_UNAUTHENTICATED_API")
    _register_known_queues(conf)
    handlers.install(Board(conf), token)
    reload.on_hangup()
    return chosen


def _choose(conf: Settings) -> Chosen:
    return Chosen(
        address=os.environ.get("FLOWER_ADDRESS", conf.flower.address),
        port=int(os.environ.get("FLOWER_PORT", conf.flower.port)),
        basic_auth=_basic_auth(conf),
    )


def _basic_auth(conf: Settings) -> list[str]:
    # The command line and Flower's own variables were read before this file, and are a login already.
    if options.auth or options.basic_auth:
        return list(options.basic_auth or [])
    user, password = login.user_and_password(conf)
    if conf.flower.password_file is None:
        where = login.credentials_file(conf)
        sys.stderr.write(f"headrace: Flower's login is user {user!r}, password `flower_password` in {where}\n")
    return [f"{user}:{password}"]


def _register_known_queues(conf: Settings) -> None:
    """The queues of all hosts, so that those whose worker is down are shown too."""
    try:
        names = [host.name for host in hosts.listing(conf.target())]
    except Exception as error:  # a database that is down or still empty: the page tells, and asks again
        log.warning("flower.hosts_unknown", reason=str(error))
        names = []
    register_queues(app, queues.all_names(names))


def _give_up(problems: list[str]) -> NoReturn:
    for problem in problems:
        sys.stderr.write(f"headrace: {problem}\n")
    raise SystemExit(2)
