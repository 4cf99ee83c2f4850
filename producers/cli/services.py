"""`headrace up`, `down`, `worker`, `beat`, `flower`: the processes of a deployment."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import click

from producers.cli.context import DONE, State, json_option, pass_state
from workers import database, hosts, migrations, status
from workers.errors import ServerUnavailable
from workers.postprocessing import api as jobs
from workers.services import background
from workers.services.children import ChildSpec
from workers.services.deployment import Deployment
from workers.services.endpoints import Endpoints
from workers.services.errors import AlreadyRunningError, ServiceError
from workers.settings import Settings
from workers.targets import CONTROL, Target
from workers.telemetry import api as telemetry

LONG_ROOMS = ("postprocessing", "repack")
_PYTHON = [sys.executable, "-m"]
_CELERY = [*_PYTHON, "celery", "-A", "workers"]
_HEADRACE = [*_PYTHON, "producers.cli"]


def child_specs(conf: Settings, data_dir: Path, control: Target, endpoints: Endpoints) -> Sequence[ChildSpec]:
    """Beat, workers, Flower, and watchers of incoming and data folders; each with its sign of health."""
    logs = data_dir / "logs"
    specs = [
        *_workers(conf, logs, control),
        ChildSpec(
            name="beat",
            argv=[*_CELERY, "beat"],
            log_path=logs / "beat.log",
            health=lambda: status.beat_leads(control),
        ),
        ChildSpec(
            name="flower",
            argv=[*_CELERY, "flower"],
            log_path=logs / "flower.log",
            env={"HEADRACE_FLOWER__PORT": str(urlsplit(str(endpoints["flower_url"])).port)},
            health=lambda: _answers(f"{endpoints['flower_url']}/healthcheck"),
        ),
    ]
    if "products" in conf.worker.rooms:
        specs.append(
            ChildSpec(
                name="incoming",
                argv=[*_HEADRACE, "products", "watch"],
                log_path=logs / "incoming.log",
                start_after=("worker",),
            )
        )
    if conf.telemetry.data_dirs:
        specs.append(
            ChildSpec(
                name="watcher",
                argv=[*_HEADRACE, "telemetry", "watch"],
                log_path=logs / "watcher.log",
                start_after=("worker",),
            )
        )
    return specs


def _workers(conf: Settings, logs: Path, control: Target) -> list[ChildSpec]:
    """A worker for short work, and one for jobs that may take hours, so that they never keep a file waiting."""
    began = datetime.now(UTC)
    long = [room for room in conf.worker.rooms if room in LONG_ROOMS]
    short = [room for room in conf.worker.rooms if room not in LONG_ROOMS]
    shares = {"worker": (short, conf.worker.ticks or not short), "jobs": (long, conf.worker.ticks and not short)}
    return [
        ChildSpec(
            name=name,
            argv=[*_CELERY, "worker", "-n", f"{name}@{conf.host}"],
            log_path=logs / f"{name}.log",
            env={"HEADRACE_WORKER__ROOMS": json.dumps(rooms), "HEADRACE_WORKER__TICKS": json.dumps(ticks)},
            hasten_signal=signal.SIGQUIT,
            # Killed with its supervisor, which takes the servers along: what it has in hand is done again anyway.
            death_signal=signal.SIGKILL,
            stop_timeout_seconds=60.0,
            health=partial(hosts.worker_is_up, control, conf.host, f"{name}@{conf.host}", began),
        )
        for name, (rooms, ticks) in shares.items()
        if rooms
    ]


def make_deployment(conf: Settings, data_dir: Path, environment: dict[str, str]) -> Deployment:
    """Everything on this machine: the servers that are not configured, the schema, and our processes."""
    configured = conf.control.dsn or conf.control.database

    def control(endpoints: Endpoints) -> Target:
        return conf.target() if configured else Target(CONTROL, str(endpoints["control_dsn"]))

    def prepare(endpoints: Endpoints) -> None:
        with database.connection(control(endpoints), purpose="up") as conn:
            migrations.migrate(conn, migrations.FOUNDATION)
        if conf.telemetry.database == CONTROL:
            telemetry.setup(conf, target=control(endpoints))
        if not configured:
            jobs.set_up(conf, CONTROL, hdbpp=False, target=control(endpoints))

    return Deployment(
        data_dir,
        control_dsn=conf.target().dsn if configured else None,
        broker_url=conf.broker_url() if conf.broker.url else None,
        environment=environment,
        children=lambda endpoints: child_specs(conf, data_dir, control(endpoints), endpoints),
        prepare=prepare,
        flower_port=conf.flower.port,
    )


def _answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Where servers and logs live.")
@click.option("--foreground", is_flag=True, help="Stay in this terminal; Ctrl-C ends everything.")
@json_option
@pass_state
def up(state: State, data_dir: Path | None, foreground: bool) -> int:
    """Start everything on this machine and return when all of it is healthy.

    PostgreSQL and Valkey are embedded unless the settings name others. Data is kept between runs.
    """
    folder = _data_dir(state, data_dir)
    conf = state.settings
    argv = [*_HEADRACE, "up", "--foreground", "--data-dir", str(folder)]
    try:
        with clear_errors():
            if foreground:
                make_deployment(conf, folder, dict(os.environ)).run_foreground(partial(_tell, state, folder))
                return DONE
            endpoints = background.start_background(folder, argv, environment=dict(os.environ))
    except AlreadyRunningError as error:
        state.say(f"already up: {error}")
        return DONE
    _tell(state, folder, endpoints)
    return DONE


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="The folder given to `up`.")
@pass_state
def down(state: State, data_dir: Path | None) -> int:
    """Stop everything that `up` started; running work is finished or left to be done again. Data is kept."""
    folder = _data_dir(state, data_dir)
    with clear_errors():
        stopped = background.stop(folder)
    state.out(f"stopped; the data stays in {folder}" if stopped else f"nothing was running in {folder}")
    return DONE


_PASS_THROUGH = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@click.command(context_settings=_PASS_THROUGH)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker(arguments: tuple[str, ...]) -> None:
    """One worker of this host, for a service manager; takes every option of `celery worker`."""
    _become_celery("worker", arguments)


@click.command(context_settings=_PASS_THROUGH)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def beat(arguments: tuple[str, ...]) -> None:
    """One beat; any number may run, one of them sends. Takes every option of `celery beat`."""
    _become_celery("beat", arguments)


@click.command(context_settings=_PASS_THROUGH)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def flower(arguments: tuple[str, ...]) -> None:
    """Flower with the Headrace pages; takes every option of `celery flower`."""
    _become_celery("flower", arguments)


def _become_celery(command: str, arguments: Sequence[str]) -> None:
    os.execv(sys.executable, [*_CELERY, command, *arguments])


def _data_dir(state: State, given: Path | None) -> Path:
    if given is not None:
        os.environ["HEADRACE_DATA_DIR"] = str(given.absolute())
    return state.settings.data_dir.absolute()


def _tell(state: State, folder: Path, endpoints: Endpoints) -> None:
    if state.json:
        state.emit({"data_dir": folder, "flower_url": endpoints["flower_url"], "flower_user": endpoints["flower_user"]})
        return
    state.out(f"up: data, logs and credentials in {folder}")
    state.out(
        f"Flower: {endpoints['flower_url']} (user {endpoints['flower_user']}, password in {folder}/credentials.json)"
    )
    state.out("next: `headrace status`, `headrace telemetry ingest PATH --wait`, `headrace down`")


@contextmanager
def clear_errors() -> Iterator[None]:
    """A service's own errors as ours, for the exit code."""
    try:
        yield
    except AlreadyRunningError:
        raise
    except ServiceError as error:
        raise ServerUnavailable(str(error)) from error
