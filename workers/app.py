"""The Celery application: `celery -A workers worker|beat|flower` just works, and `send` puts messages on Redis."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import kombu.exceptions
from celery import Celery, Task, signals
from celery.worker import state as worker_state
from kombu import Queue

import beat_schedule
from workers import execution, hosts, logs, queues, reload, settings
from workers.errors import (
    Cancelled,
    NothingToDo,
    PermanentFailure,
    RetryLater,
    ServerUnavailable,
    SettingsError,
)
from workers.messages import TICKS_QUEUE, Message, parse
from workers.services.processes import die_with_parent

log = logs.get(__name__)

_MAIN_PID = os.getpid()  # this module is imported before a worker forks its pool

KEY_PREFIX = "headrace:"
BACKSTOP = timedelta(hours=24)  # the longest hard limit of any task
# Redis gives a message to a second worker when the first has not acknowledged it for this long. It must
# exceed every hard limit plus the longest retry delay; recovery never waits for it (reaper and sweeps).
VISIBILITY_TIMEOUT = BACKSTOP + timedelta(hours=1)
SHORT_LIMIT = timedelta(minutes=10)
LONGEST_COUNTDOWN = timedelta(seconds=30)
MAX_RETRIES = 3
MAX_WAITS = 10  # of RetryLater: about three minutes with back-off, then the sweep finds the work again


class HeadraceTask(Task):
    """Defaults of every task: late acknowledgement, bounded retries, a hard limit, no stored result."""

    acks_late = True
    default_retry_delay = 2
    max_retries = MAX_RETRIES
    ignore_result = True
    time_limit = SHORT_LIMIT.total_seconds()
    soft_time_limit = SHORT_LIMIT.total_seconds() - 30
    throws = (PermanentFailure, Cancelled, RetryLater)


@contextmanager
def _or_exit() -> Iterator[None]:
    """Settings that are wrong end the process with every problem as a line, and exit code 2."""
    try:
        yield
    except SettingsError as error:
        for problem in error.problems:
            sys.stderr.write(f"headrace: {problem}\n")
        raise SystemExit(2) from None


def _make_app(conf: settings.Settings) -> Celery:
    application = Celery("headrace", task_cls=HeadraceTask, include=[*execution.TASK_MODULES, "producers.ticks"])
    transport = {
        "visibility_timeout": int(VISIBILITY_TIMEOUT.total_seconds()),
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "global_keyprefix": KEY_PREFIX,
    }
    application.conf.update(
        broker_url=conf.broker_url(),
        broker_transport_options=transport,
        broker_connection_retry_on_startup=True,
        broker_pool_acquire_timeout=10,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=False,
        task_retry_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_concurrency=conf.worker.concurrency,
        worker_max_tasks_per_child=2000,
        worker_send_task_events=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_soft_shutdown_timeout=20.0,
        timezone="UTC",
        task_queues=[queues.queue(name) for name in queues.names_for(conf)],
        task_create_missing_queues=False,
        task_default_queue=TICKS_QUEUE,
        task_default_exchange="",
        task_default_routing_key=TICKS_QUEUE,
        beat_schedule=beat_schedule.beat_schedule,
        beat_scheduler="workers.leader:LeaderScheduler",
        beat_max_loop_interval=1,
        beat_enable_remote_control=True,
    )
    return application


with _or_exit():
    app = _make_app(settings.current())


def handles(kind: type[Message], **options: Any) -> Callable[[execution.Verb[Any]], execution.Verb[Any]]:
    """Make a verb the body of a message's task: `(message, settings) -> follow-up messages`.

    The exception's type is the policy: RetryLater waits (bounded; then the sweep has it), PermanentFailure
    ends, NothingToDo is success, anything else is a bug and is retried three times.
    """

    def decorate(verb: execution.Verb[Any]) -> execution.Verb[Any]:
        execution.register(kind, verb)

        @app.task(name=kind.task, bind=True, **options)
        def task(self: Any, **fields: Any) -> None:
            try:
                follow_ups = execution.execute(parse(kind.task, fields), settings.current())
                send(follow_ups, slot=str(self.request.id))
            except NothingToDo as reason:
                log.info("message.nothing_to_do", task=kind.task, reason=str(reason))
            except RetryLater as reason:
                back_off = reason.after * 2 ** min(self.request.retries, 4)
                wait = min(back_off, LONGEST_COUNTDOWN).total_seconds()
                raise self.retry(exc=reason, countdown=wait, max_retries=MAX_WAITS) from reason
            except (PermanentFailure, Cancelled):
                raise
            except Exception as bug:
                raise self.retry(exc=bug, countdown=2 ** (self.request.retries + 1)) from bug

        return verb

    return decorate


def send(messages: Sequence[Message], *, slot: str) -> list[str]:
    """Put messages on their queues; their ids. `slot` tells apart two requests for the same thing.

    Raises ServerUnavailable when the broker cannot be reached (part of them may be out: ids are
    deterministic and doing one twice is harmless), PermanentFailure for a host that nobody knows.
    """
    if not messages:
        return []
    control = settings.current().target()
    for host in {getattr(message, "host", None) for message in messages} - {None}:
        hosts.require(control, str(host))
    try:
        with app.producer_pool.acquire(block=True, timeout=10) as producer:
            if len(messages) == 1:
                return [_publish(messages[0], slot, producer)]
            with producer.batch(max_size=500):
                return [_publish(message, slot, producer) for message in messages]
    except (kombu.exceptions.OperationalError, kombu.exceptions.LimitExceeded, OSError) as error:
        raise ServerUnavailable(broker_trouble(error)) from error


def queue_depths(names: list[str]) -> dict[str, int]:
    """Messages waiting per queue. Raises ServerUnavailable when the broker cannot be reached."""
    try:
        with app.connection_for_read() as connection:
            client = connection.default_channel.client
            return {name: int(client.llen(name)) for name in names}
    except Exception as error:
        raise ServerUnavailable(broker_trouble(error)) from error


def broker_trouble(error: BaseException) -> str:
    """One line about a broker that does not answer: which, why, and what to do."""
    where = app.connection_for_read().as_uri()
    return f"the broker {where} cannot be reached: {error}; check broker.url and that Redis or Valkey runs"


def _publish(message: Message, slot: str, producer: Any) -> str:
    identity = message.message_id(slot)
    app.send_task(
        message.task,
        kwargs=message.fields(),
        task_id=identity,
        queue=_queue(message.queue()),
        producer=producer,
        countdown=message.wait_seconds or None,
        retry=False,
        ignore_result=True,
    )
    return identity


_queues: dict[str, Queue] = {}


def _queue(name: str) -> Queue:
    return _queues.setdefault(name, queues.queue(name))


@signals.setup_logging.connect
def _setup_logging(**_facts: Any) -> None:
    logs.configure(settings.current().logs)


@signals.celeryd_init.connect
def _select_queues(options: dict[str, Any], **_facts: Any) -> None:
    """Without -Q a worker consumes what the settings give this host."""
    with _or_exit():
        settings.current().target()
    if not options.get("queues"):
        app.amqp.queues.select(queues.names_for(settings.current()))


@signals.worker_ready.connect
def _announce(sender: Any, **_facts: Any) -> None:
    conf = settings.current()
    names = sorted(app.amqp.queues.consume_from)
    hosts.Presence(conf.target(), conf.host, str(sender.hostname), names).start()
    reload.on_hangup(_finish_and_start_again)


@signals.worker_process_init.connect
def _follow_the_parent(**_facts: Any) -> None:
    # A pool process must not outlive its worker: it would go on with a task that nobody supervises.
    die_with_parent(signal.SIGKILL, _MAIN_PID)


@signals.beat_init.connect
def _name_the_beat(sender: Any, **_facts: Any) -> None:
    with _or_exit():
        settings.current().target()
    # Two beats on one host would otherwise answer `inspect ping` under one name.
    if not sender.hostname:
        sender.hostname = f"celerybeat-{os.getpid()}@{settings.current().host}"
    reload.on_hangup()


def _finish_and_start_again() -> None:
    atexit.register(reload.start_again)
    worker_state.should_stop = 0


if "flower" in sys.argv[1:]:
    os.environ.setdefault("FLOWER_CONF", str(Path(__file__).parent / "monitor" / "flowerconfig.py"))
