"""The words of alerts: titles of one line, texts that help, and JSON and mail that carry any message exactly."""

from __future__ import annotations

import email
import email.policy
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from workers import notify
from workers.notify import Alert
from workers.room_settings import Alerts, Mail, Webhook

AT = datetime(2026, 3, 1, 2, 0, 5, 123456, tzinfo=UTC)
MAIL = Mail(host="mail", sender="Headrace <headrace@obs.example>", to=("night@obs.example", "day@obs.example"))
HOOK = Webhook(url="https://chat.example/hook")
PRINTABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300)


def alert(**facts: Any) -> Alert:
    """An alert about job 7 with these facts."""
    return Alert(12, "hdb", AT, "postprocessing", "failure", "hdb: job 7 (public.daily)", facts)


def received(message: Any) -> Any:
    """The mail as a client reads it from the wire."""
    return email.message_from_bytes(message.as_bytes(policy=email.policy.SMTP), policy=email.policy.default)


def test_the_default_text_says_what_why_when_and_what_next() -> None:
    """The whole text of a failed job."""
    said = notify.text(
        alert(
            message="division by zero", detail="row 5", hint="do not", sqlstate="22012", context="PL/pgSQL line 3",
            database="hdb", job_id=7, job_name="public.daily", run_id=99, host="aoc",
            started_at="2026-03-01T02:00:00Z", rows=5, next="headrace postprocessing history hdb 7",
        )
    )  # fmt: skip
    assert said == (
        "Failed: hdb: job 7 (public.daily)\n\n"
        "division by zero\nDetail: row 5\nHint: do not\n\n"
        "SQLSTATE: 22012\nDatabase: hdb\nJob: 7 (public.daily)\nRun: 99\nHost: aoc\n"
        "Started: 2026-03-01T02:00:00Z\nNoticed: 2026-03-01T02:00:05Z\nrows: 5\n\n"
        "Where: PL/pgSQL line 3\n\n"
        "What next: headrace postprocessing history hdb 7\n"
    )


def test_a_text_without_facts_has_no_holes() -> None:
    """Lines of facts that an alert lacks are not there, and the database is the one that holds the alert."""
    said = notify.text(alert())
    assert "None" not in said and "Job" not in said and "\n\n\n" not in said
    assert "Database: hdb\n" in said and said.endswith("What next: headrace postprocessing history\n")


def test_a_template_has_every_fact_and_leaves_what_it_does_not_know() -> None:
    """Facts by name, nothing for a known fact that is missing, and an unknown name or a price as it stands."""
    template = "${event} ${job_id} ${rows} [${hint}] ${nonsense} $5 ${database} ${at} ${room}"
    said = notify.text(replace(alert(job_id=7, rows=[1, 2]), database="other"), template)
    assert said == "failure 7 [1, 2] [] ${nonsense} $5 other 2026-03-01T02:00:05Z postprocessing"


def test_the_database_is_the_one_that_the_alert_is_about() -> None:
    """An alert in the control database that hdb cannot be reached says hdb."""
    assert notify.text(replace(alert(database="hdb"), database="control"), "${database}") == "hdb"


@given(PRINTABLE)
def test_a_title_is_one_line(message: str) -> None:
    """Whatever the message: one line, at most 200 characters, and fit for a mail's header."""
    line = notify.title(alert(message=message), "t ${message}")
    assert len(line.splitlines()) == 1 and len(line) <= notify.TITLE_CHARACTERS
    assert received(notify.mail_message(alert(message=message), MAIL, Alerts(title="t ${message}")))["To"] is not None


def test_a_title_cannot_add_a_header() -> None:
    """Line breaks of any kind become blanks: no second header and no body."""
    evil = replace(alert(message="x\r\nBcc: thief@evil.example\n\nbody\u2028X: y"), event="failure\nX-Evil: 1")
    mail = received(notify.mail_message(evil, MAIL, Alerts(title="${message}")))
    assert mail["Subject"] == "x Bcc: thief@evil.example body X: y"
    assert (mail["Bcc"], mail["X-Evil"], mail["X-Headrace-Event"]) == (None, None, "failure X-Evil: 1")


def test_a_mail_has_the_headers_of_an_automatic_one() -> None:
    """From, To, Subject, Date, Message-ID, and the two that tell filters what it is."""
    mail = received(notify.mail_message(alert(), MAIL, Alerts()))
    assert {name: str(mail[name]) for name in ("From", "To", "Subject", "Auto-Submitted", "X-Headrace-Event")} == {
        "From": "Headrace <headrace@obs.example>",
        "To": "night@obs.example, day@obs.example",
        "Subject": "[headrace] failure: hdb: job 7 (public.daily)",
        "Auto-Submitted": "auto-generated",
        "X-Headrace-Event": "failure",
    }
    assert mail["Date"].datetime == AT.replace(microsecond=0)
    assert mail["Message-ID"] == "<headrace-hdb-12-20260301T020005123456@obs.example>"


def test_the_key_names_one_alert_only() -> None:
    """Another number, database or time is another key, and no name of a database breaks a Message-ID."""
    one = alert()
    others = [replace(one, id=13), replace(one, database="hdb2"), replace(one, at=AT + timedelta(microseconds=1))]
    assert len({one.key, *(other.key for other in others)}) == 4
    assert replace(one, database="a b.<ü>@x").key.startswith("headrace-a%20b%2E%3C%C3%BC%3E%40x-12-")


@given(PRINTABLE)
def test_a_mail_carries_any_message(message: str) -> None:
    """The text comes out of the mail as it went in, but for the kind of its line ends; every byte is ASCII."""
    sent = notify.mail_message(alert(message=message), MAIL, Alerts(text="<${message}>\n"))
    normal = message.replace("\r\n", "\n").replace("\r", "\n")
    assert received(sent).get_content().replace("\r\n", "\n") == f"<{normal}>\n"
    assert sent.as_bytes().isascii()


@given(PRINTABLE)
def test_a_webhook_carries_any_message(message: str) -> None:
    """Quotes, line breaks and any character: the JSON says the same, with the site's own template too."""
    told = alert(message=message, rows=5)
    document = json.loads(notify.webhook_body(told, HOOK, Alerts(text="${message}")))
    assert (document["facts"], document["text"]) == ({"message": message, "rows": 5}, message)
    own = HOOK.model_copy(update={"body": '{"content": "${message} / ${rows} / ${hint}", "n": ${rows}}'})
    expected = {"content": f"{message} / 5 / ", "n": 5}
    assert json.loads(notify.webhook_body(told, own, Alerts())) == expected


def test_the_default_json_has_everything() -> None:
    """Event, subject, title, text, room, time, database and the facts."""
    document = json.loads(notify.webhook_body(alert(job_id=7), HOOK, Alerts(text="words")))
    assert document == {
        "event": "failure",
        "subject": "hdb: job 7 (public.daily)",
        "title": "[headrace] failure: hdb: job 7 (public.daily)",
        "text": "words",
        "room": "postprocessing",
        "at": "2026-03-01T02:00:05Z",
        "database": "hdb",
        "facts": {"job_id": 7},
    }


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://x/y", "chat.example/s3cret", "https://:8443/x", "http://x:99999/", "http://[::1"],
)
def test_a_webhook_is_an_http_address(url: str) -> None:
    """Anything else is refused when the settings are read, with a message that does not repeat it."""
    with pytest.raises(ValidationError, match="a URL such as") as caught:
        Webhook(url=url)
    said = [error["msg"] for error in caught.value.errors()]
    assert url not in " ".join(said)
