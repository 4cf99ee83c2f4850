"""The words of an alert: its title, its text, and what a mail, a webhook and a hook say of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from string import Template
from typing import Any
from urllib.parse import quote

from workers.room_settings import Alerts, Mail, Webhook

# What an alert may say about its matter; where it lacks one of these, a template has nothing and a hook NULL.
FACTS = (
    "message", "detail", "hint", "sqlstate", "context", "database", "job_id", "job_name", "run_id", "host",
    "started_at", "finished_at", "next",
)  # fmt: skip
HEADLINES = {
    "failure": "Failed",
    "recovery": "Works again",
    "missed": "Did not start when it was due",
    "disabled": "Was disabled",
    "parked": "Is parked until somebody looks",
    "late": "Has not succeeded for too long",
    "slow": "Takes longer than it should",
    "unreachable": "Cannot be reached",
    "success": "Is done",
}
TITLE_CHARACTERS = 200
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class Alert:
    """One row of the outbox; `database` is the name of the one that holds it, `at` is aware."""

    id: int
    database: str
    at: datetime
    room: str
    event: str
    subject: str
    facts: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The same for every attempt, and for no other alert: a database that is made anew counts from 1 again."""
        name = quote(self.database, safe="").replace(".", "%2E")
        return f"headrace-{name}-{self.id}-{self.at.astimezone(UTC):%Y%m%dT%H%M%S%f}"


def words(alert: Alert) -> dict[str, Any]:
    """Every name that a template or hook may use, with its value; a fact that the alert lacks is None."""
    own = {"event": alert.event, "subject": alert.subject, "room": alert.room, "at": alert.at.astimezone(UTC)}
    facts = dict.fromkeys(FACTS) | dict(alert.facts)
    return facts | own | {"database": facts["database"] or alert.database}


def title(alert: Alert, template: str) -> str:
    """The one line that fits a subject: no line breaks or other control characters, at most 200 characters."""
    line = one_line(_filled(template, alert))
    return line if len(line) <= TITLE_CHARACTERS else line[: TITLE_CHARACTERS - 1] + "…"


def text(alert: Alert, template: str | None = None) -> str:
    """What a person at three in the morning needs: what, which, why, when, and what to do next."""
    if template is not None:
        return _filled(template, alert)
    known = {name: as_text(value) for name, value in words(alert).items()}
    job = " ".join(filter(None, (known["job_id"], f"({known['job_name']})" if known["job_name"] else "")))
    table = {
        "SQLSTATE": known["sqlstate"],
        "Database": known["database"],
        "Job": job,
        "Run": known["run_id"],
        "Host": known["host"],
        "Started": known["started_at"],
        "Finished": known["finished_at"],
        "Noticed": known["at"],
    } | {name: as_text(value) for name, value in alert.facts.items() if name not in FACTS}
    history = f"headrace {alert.room} history" if alert.room == "postprocessing" else "headrace status"
    parts = [
        f"{HEADLINES.get(alert.event, alert.event)}: {alert.subject}",
        "\n".join(
            label + known[name]
            for name, label in (("message", ""), ("detail", "Detail: "), ("hint", "Hint: "))
            if known[name]
        ),
        "\n".join(f"{label}: {value}" for label, value in table.items() if value),
        f"Where: {known['context']}" if known["context"] else "",
        f"What next: {known['next'] or history}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def mail_message(alert: Alert, mail: Mail, alerts: Alerts) -> EmailMessage:
    """The mail; its Message-ID is the alert's key, so that a copy can be recognized."""
    message = EmailMessage()
    message["From"] = mail.sender
    message["To"] = ", ".join(mail.to)
    message["Subject"] = title(alert, alerts.title)
    message["Date"] = format_datetime(alert.at.astimezone(UTC))
    domain = parseaddr(mail.sender)[1].rpartition("@")[2] or "localhost"
    message["Message-ID"] = f"<{alert.key}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"
    message["X-Headrace-Event"] = _CONTROL.sub(" ", alert.event)
    # Quoted-printable is 7-bit: it arrives whole through servers without 8BITMIME too.
    message.set_content(text(alert, alerts.text), charset="utf-8", cte="quoted-printable")
    return message


def webhook_body(alert: Alert, webhook: Webhook, alerts: Alerts) -> bytes:
    """The JSON to post: everything, or the site's template with each value escaped for a JSON string."""
    known = {"title": title(alert, alerts.title), "text": text(alert, alerts.text)}
    if webhook.body is not None:
        escaped = {name: _escaped(value) for name, value in (words(alert) | known).items()}
        return Template(webhook.body).safe_substitute(escaped).encode()
    own = {name: as_text(value) for name, value in words(alert).items() if name in ("room", "at", "database")}
    document = {"event": alert.event, "subject": alert.subject} | known | own | {"facts": dict(alert.facts)}
    return json.dumps(document, ensure_ascii=False).encode()


def hook_parameters(alert: Alert, alerts: Alerts) -> dict[str, Any]:
    """What `alerts.sql` may name in %(...)s: every word with its SQL type, NULL where the alert lacks it."""
    own = {"title": title(alert, alerts.title), "text": text(alert, alerts.text), "id": alert.id, "key": alert.key}
    plain = {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value
        for name, value in words(alert).items()
    }
    return plain | own | {"facts": json.dumps(dict(alert.facts), ensure_ascii=False)}


def as_text(value: Any) -> str:
    """A fact as people read it: nothing for None, times in UTC to the second, JSON for what is no text."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return json.dumps(value, ensure_ascii=False, default=str)


def one_line(said: str) -> str:
    """The text without line breaks and other control characters; blanks stand for them."""
    return " ".join(_CONTROL.sub(" ", said).split())


def _filled(template: str, alert: Alert) -> str:
    return Template(template).safe_substitute({name: as_text(value) for name, value in words(alert).items()})


def _escaped(value: Any) -> str:
    return json.dumps(as_text(value), ensure_ascii=False)[1:-1]
