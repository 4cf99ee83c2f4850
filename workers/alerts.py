"""The outbox of alerts: written in the transaction of what they tell about, delivered at least once per channel.

An alert is leased before it is told, and each channel that took it is marked at once. Killed between the two, a
delivery sends the alert again by that one channel: mail and webhook carry a stable key to recognize the copy by.
The SQL hook commits together with its mark, so it happens exactly once.
"""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from workers import database, logs, notify
from workers.channels import NotTold, send_mail, send_webhook
from workers.errors import ServerUnavailable
from workers.notify import Alert
from workers.room_settings import Alerts, Mail
from workers.settings import Settings
from workers.sql_files import Query, queries
from workers.targets import Target, redacted

log = logs.get(__name__)

SQL = queries("alerts")
BATCH = 50  # alerts a call, so that a caller with a time limit comes back
FACT_CHARACTERS = 8000  # an error can quote a whole row; nobody reads more on a telephone
LEASE = timedelta(seconds=60)  # beyond the longest that one channel may take

Channel = Callable[[Alert], None]


@dataclass(frozen=True, slots=True)
class Delivery:
    """How many alerts every channel has now, and how many some channel did not take."""

    told: int
    failed: int


def raise_alert(conn: database.Connection, *, room: str, event: str, subject: str, facts: Mapping[str, Any]) -> None:
    """Put an alert into the outbox in the caller's open transaction; it is not committed here.

    Facts become JSON: times as ISO 8601 in UTC, durations in seconds, None left out, passwords hidden.
    """
    known = {name: _plain(value) for name, value in facts.items() if value is not None}
    row = {"room": room, "event": event, "subject": _plain(subject)}
    SQL["raise_alert"].run(conn, row | {"facts": json.dumps(known, ensure_ascii=False)})


def waiting(conn: database.Connection) -> bool:
    """Whether some alert is due: one look into a partial index."""
    return bool(SQL["waiting"].value(conn))


def forget_old(conn: database.Connection, older: timedelta) -> int:
    """Delete alerts that were done longer ago than this, in the caller's transaction; how many."""
    return SQL["forget_old"].run(conn, {"older": older})


def deliver(settings: Settings, database_name: str) -> Delivery:
    """Tell the due alerts of one database by every configured channel, oldest first, at most 50.

    What a channel did not take stays due for later, with the reason in its row, until `alerts.give_up_hours` are over.
    Any number of deliveries may run at once. Raises ServerUnavailable when the database cannot be reached.
    """
    target, config = settings.target(database_name), settings.alerts
    channels = _channels(config, target)
    lease = LEASE + timedelta(seconds=3 * config.timeout_seconds)
    down: dict[str, str] = {}
    told = failed = 0
    with database.connection(target, purpose="alerts", autocommit=True) as conn:
        began = SQL["clock"].value(conn)
        for _ in range(BATCH):
            claimed = SQL["claim"].records(conn, {"began": began, "lease": lease})
            if not claimed:
                break
            leased = _Leased(conn, database_name, claimed[0], lease)
            wanted = channels if leased.alert.event in config.on else {}
            problems = leased.tell(wanted, down)
            if leased.held is None:
                continue  # this process stood still for longer than the lease: somebody else goes on with it
            if problems:
                failed += 1
                leased.put_off("; ".join(problems), timedelta(hours=config.give_up_hours))
            else:
                told += bool(wanted)
                SQL["finish"].run(conn, {"id": leased.alert.id})
    return Delivery(told, failed)


class _Leased:
    """An alert that is this delivery's for a while; `held` is its due time and the token, None once it is lost."""

    def __init__(self, conn: database.Connection, database_name: str, row: dict[str, Any], lease: timedelta) -> None:
        self.conn, self.lease = conn, lease
        self.held: datetime | None = row.pop("held")
        self.had: dict[str, str] = row.pop("told")
        self.alert = Alert(database=database_name, **row)

    def tell(self, channels: Mapping[str, Channel], down: dict[str, str]) -> list[str]:
        """Try each channel that has not taken it; the problems. `down` is what this delivery need not try again."""
        problems = []
        for name in [name for name in channels if name not in self.had]:
            mine = {"id": self.alert.id, "held": self.held, "lease": self.lease}
            self.held = SQL["renew"].value(self.conn, mine)
            if self.held is None:
                break
            try:
                if name in down:
                    raise NotTold(down[name])
                _attempt(name, channels[name], self.alert)
            except NotTold as error:
                if error.down:
                    down[name] = str(error)
                problems.append(str(error))
                continue
            SQL["mark_told"].run(self.conn, {"id": self.alert.id, "channel": name})
            log.info("alert.told", channel=name, **self.names())
        return problems

    def put_off(self, problem: str, give_up: timedelta) -> None:
        """Try again later, or never again when the alert is older than this."""
        mine = {"id": self.alert.id, "held": self.held, "problem": problem, "give_up": give_up}
        over = SQL["put_off"].value(self.conn, mine)
        log.warning("alert.given_up" if over else "alert.failed", problem=problem, **self.names())

    def names(self) -> dict[str, Any]:
        """What a log line calls the alert (`event` is the log's own word)."""
        return {"kind": self.alert.event, "id": self.alert.id, "database": self.alert.database}


def _channels(config: Alerts, target: Target) -> dict[str, Channel]:
    channels: dict[str, Channel] = {}
    if (mail := config.mail) is not None:
        channels["mail"] = lambda alert: _mail(alert, mail, config)
    if (webhook := config.webhook) is not None:
        channels["webhook"] = lambda alert: send_webhook(alert, webhook, config)
    if (statement := config.sql) is not None:
        channels["sql"] = lambda alert: _hook(alert, statement, config, target)
    return channels


def _attempt(name: str, channel: Channel, alert: Alert) -> None:
    try:
        channel(alert)
    except NotTold:
        raise
    except Exception as error:
        # One alert that trips us must not keep those behind it from being told. The error's text may hold a secret.
        *_, frame = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        raise NotTold(f"{name}: {type(error).__name__} in {place}, a fault of Headrace; please report it") from None


def _mail(alert: Alert, mail: Mail, config: Alerts) -> None:
    refused = send_mail(alert, mail, config)
    if refused:
        # Sending it again would reach those a second time who have it.
        log.warning("alert.recipients_refused", id=alert.id, recipients=refused)


def _hook(alert: Alert, statement: str, config: Alerts, target: Target) -> None:
    """Run the site's statement and mark the alert in one transaction, on a connection that nobody uses after it."""
    hook = Query(room="alerts", name="hook", doc="The site's own statement.", text=statement)
    parameters = notify.hook_parameters(alert, config)
    try:
        conn = database.connect(target, purpose="alert hook")
    except ServerUnavailable as error:
        raise NotTold(f"SQL hook: {error}", down=True) from None
    try:
        SQL["limit_hook"].run(conn, {"milliseconds": math.ceil(config.timeout_seconds * 1000)})
        if SQL["mark_told"].run(conn, {"id": alert.id, "channel": "sql"}):
            hook.run(conn, parameters)
            conn.commit()
    except Exception as error:
        # Whatever the site's statement raises is its own; the alert stays, with the reason in its row.
        raise NotTold(f"SQL hook in {target.name}: {_hook_problem(error, parameters)}") from None
    finally:
        conn.close()


def _hook_problem(error: Exception, parameters: Mapping[str, Any]) -> str:
    if isinstance(error, KeyError):
        return f"%({error.args[0]})s is no parameter; there are {', '.join(sorted(parameters))}; check alerts.sql"
    described = database.describe_error(error)
    if "sqlstate" in described:
        advice = "check alerts.sql and what it calls"
        return "; ".join([f"{described['message']} (SQLSTATE {described['sqlstate']})", advice])
    return f"{described['message']}; check alerts.sql, where a literal % is written %%"


def _plain(value: Any) -> Any:
    """The value as JSON that a jsonb column takes: no NUL, no lone surrogate, no NaN, nothing endless, no password."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case datetime():
            return notify.as_text(value)
        case timedelta():
            return value.total_seconds()
        case Mapping():
            return {str(_plain(str(key))): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
    text = redacted(str(value).replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode())
    return text if len(text) <= FACT_CHARACTERS else text[: FACT_CHARACTERS - 1] + "…"
