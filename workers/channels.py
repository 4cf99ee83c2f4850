"""The two channels that carry an alert out of the house, mail and webhook, and their problems in words."""

from __future__ import annotations

import base64
import smtplib
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from http.client import HTTPException, InvalidURL
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from workers.errors import HeadraceError, SettingsError
from workers.notify import Alert, mail_message, one_line, webhook_body
from workers.room_settings import Alerts, Mail, Webhook
from workers.targets import read_secret, redacted

PORTS = {"none": 25, "starttls": 587, "tls": 465}


class NotTold(HeadraceError):
    """A channel did not take an alert; `down` when it would not take any other either."""

    def __init__(self, problem: str, *, down: bool = False) -> None:
        super().__init__(problem)
        self.down = down


def send_mail(alert: Alert, mail: Mail, alerts: Alerts) -> list[str]:
    """Hand the mail to the server; the recipients that it refused while it took others. Raises NotTold."""
    where = f"mail by {mail.host}:{mail.port or PORTS[mail.security]}"
    refused: list[str] = []

    def send() -> None:
        message = mail_message(alert, mail, alerts)
        try:
            client = _mail_server(mail, alerts.timeout_seconds)
        except (OSError, ValueError, smtplib.SMTPException, SettingsError) as error:
            raise NotTold(_mail_problem(where, error, mail), down=True) from None
        try:
            refused.extend(client.send_message(message))
            try:
                client.quit()
            except (OSError, smtplib.SMTPException):
                pass  # the server has taken the mail; how it says goodbye changes nothing
        finally:
            client.close()

    try:
        _within(3 * alerts.timeout_seconds, where, send)
    except (OSError, ValueError, smtplib.SMTPException) as error:
        raise NotTold(_mail_problem(where, error, mail)) from None
    return refused


def send_webhook(alert: Alert, webhook: Webhook, alerts: Alerts) -> None:
    """Post the JSON; any 2xx takes it. A redirect is a failure: a POST that follows one loses its body.

    Only `webhook.proxy` is gone through, never a proxy of the environment. Raises NotTold.
    """
    parts = urlsplit(webhook.url)
    address = parts.netloc.rpartition("@")[2]
    where = f"webhook {parts.scheme}://{address}{'/…' if parts.path.strip('/') or parts.query else ''}"
    passwords = [parts.password or "", urlsplit(webhook.proxy or "").password or ""]
    secrets = [parts.path if len(parts.path) > 1 else "", parts.query, *passwords, *webhook.headers.values()]

    def send() -> None:
        headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "headrace"}
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        if webhook.token_file is not None:
            secrets.append(read_secret(webhook.token_file))
            headers["Authorization"] = f"Bearer {secrets[-1]}"
        url = urlunsplit(parts._replace(netloc=address, fragment=""))
        request = urllib.request.Request(url, webhook_body(alert, webhook, alerts), headers, method="POST")
        for name, value in ({"Idempotency-Key": alert.key} | webhook.headers).items():
            request.add_header(name, value)
        opener = urllib.request.OpenerDirector()  # with no handler of redirects, files or the environment's proxies
        proxies = {"http": webhook.proxy, "https": webhook.proxy} if webhook.proxy else {}
        for handler in (
            urllib.request.ProxyHandler(proxies),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=ssl.create_default_context()),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            opener.add_handler(handler)
        try:
            opener.open(request, timeout=alerts.timeout_seconds).close()
        except urllib.error.HTTPError as error:
            with error:
                raise NotTold(_hidden(f"{where}: {_answer(error)}", secrets)) from None

    try:
        _within(3 * alerts.timeout_seconds, where, send)
    except SettingsError as error:
        raise NotTold(f"{where}: {error}", down=True) from None
    except (ValueError, InvalidURL):
        # Its text would quote the header, and with it the token.
        advice = "check url, headers, token_file and proxy in alerts.webhook"
        raise NotTold(f"{where}: a header or address has characters that HTTP forbids; {advice}", down=True) from None
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        # Nothing of the alert was sent yet: the next one would fare no better.
        down = reason is not error and isinstance(reason, (ConnectionRefusedError, socket.gaierror, ssl.SSLError))
        advice = "check alerts.webhook.url and proxy, and that the service runs"
        raise NotTold(_hidden(f"{where}: {_reason(reason)}; {advice}", secrets), down=down) from None


def _within(seconds: float, where: str, send: Callable[[], None]) -> None:
    """Send, but wait no longer than this in all: a socket's timeout bounds neither name lookups nor slow dripping."""
    outcome: list[Exception | None] = []

    def run() -> None:
        try:
            send()
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="headrace-alert", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise NotTold(f"{where}: no end after {seconds:g} s; check the server and alerts.timeout_seconds")
    if outcome[0] is not None:
        raise outcome[0]


def _mail_server(mail: Mail, timeout: float) -> smtplib.SMTP:
    port = mail.port or PORTS[mail.security]
    client = (
        smtplib.SMTP_SSL(mail.host, port, timeout=timeout, context=ssl.create_default_context())
        if mail.security == "tls"
        else smtplib.SMTP(mail.host, port, timeout=timeout)
    )
    try:
        if mail.security == "starttls":
            client.starttls(context=ssl.create_default_context())
        if mail.user is not None:
            client.login(mail.user, _password(mail))
    except BaseException:
        client.close()
        raise
    return client


def _mail_problem(where: str, error: Exception, mail: Mail) -> str:
    if isinstance(error, SettingsError):
        return f"{where}: {error}"
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        # Its text may quote a part of the password. (A bad certificate is both a ValueError and an OSError.)
        return f"{where}: user, password or an address has characters that mail forbids; check alerts.mail"
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        answers = "; ".join(f"{name}: {code} {_line(reply)}" for name, (code, reply) in error.recipients.items())
        reason, advice = f"every recipient was refused ({answers})", "check alerts.mail.to"
    elif isinstance(error, smtplib.SMTPAuthenticationError):
        reason, advice = f"the login was refused ({_reply(error)})", "check alerts.mail.user and password_file"
    elif isinstance(error, smtplib.SMTPResponseException):
        reason, advice = f"the server refused it ({_reply(error)})", "check alerts.mail.sender and the server's rules"
    elif isinstance(error, smtplib.SMTPNotSupportedError):
        reason, advice = _reason(error), "check alerts.mail.security and user, and what the server offers"
    else:
        reason, advice = _reason(error), "check host, port and security in alerts.mail, and that the server runs"
    return _hidden(f"{where}: {reason}; {advice}", _mail_secrets(mail))


def _password(mail: Mail) -> str:
    if mail.password_file is not None:
        return read_secret(mail.password_file)
    return mail.password.get_secret_value() if mail.password is not None else ""


def _mail_secrets(mail: Mail) -> list[str]:
    try:
        password = _password(mail)
    except SettingsError:
        return []
    login = f"\0{mail.user}\0{password}"
    return [password, *(base64.b64encode(part.encode()).decode() for part in (password, login) if password)]


def _answer(error: urllib.error.HTTPError) -> str:
    if 300 <= error.code < 400:
        new = urlsplit(error.headers.get("Location", ""))
        target = f" to {new.scheme}://{new.netloc.rpartition('@')[2]}/…" if new.netloc else ""
        return f"answered {error.code}, a redirect{target}; write the final address into alerts.webhook.url"
    try:
        said = _line(error.read(500))
    except (OSError, HTTPException):
        said = ""
    advice = {401: "check token_file and headers", 403: "check token_file and headers", 404: "check url"}
    return f"answered {error.code} {said or error.reason}; {advice.get(error.code, 'check body and the service')}"


def _reply(error: smtplib.SMTPResponseException) -> str:
    return f"{error.smtp_code} {_line(error.smtp_error)}"


def _reason(error: Any) -> str:
    return "timed out" if isinstance(error, TimeoutError) else _line(str(error)) or type(error).__name__


def _line(said: bytes | str) -> str:
    decoded = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return one_line(decoded)[:300]


def _hidden(problem: str, secrets: Iterable[str]) -> str:
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        problem = problem.replace(secret, "•••")
    return redacted(problem)
