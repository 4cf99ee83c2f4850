"""`headrace demo`: a whole deployment in a scratch folder, with an instrument that fills its archive."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

import click
import yaml

from producers.cli import demo_dispatch, demo_products, demo_repack
from producers.cli.context import DONE, SOME_FAILED, State, json_option, pass_state
from producers.cli.demo_play import Outcome, Play
from producers.cli.demo_show import Show
from producers.cli.services import clear_errors, make_deployment
from workers.logs import configure as configure_logs
from workers.services.deployment import DEFAULT_FLOWER_PORT
from workers.services.endpoints import read_endpoints
from workers.services.errors import AlreadyRunningError
from workers.services.ports import choose_port
from workers.services.postgres import PostgresServer
from workers.settings import Settings

HOST = "demo"
CONFIG = "headrace.yaml"
MARK = "# Written by `headrace demo`, anew at every start.\n"
SWEEP_SECONDS = 10.0  # what the watcher misses while folders are made is found within the demonstration
# Settings of a site, of Celery, Flower and libpq: the demonstration must never reach a real server.
_FOREIGN = ("HEADRACE_", "CELERY_", "FLOWER_", "PG")
_PROGRAMS = ("HEADRACE_POSTGRES_BIN", "HEADRACE_VALKEY_BIN")


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(min=1.0),
    default=20.0,
    show_default=True,
    help="How long the instrument writes.",
)
@click.option("--keep", is_flag=True, help="Stay up after the summary, until Ctrl-C.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where everything lives, and stays (default: a temporary folder that is removed at the end).",
)
@json_option
@pass_state
def demo(state: State, seconds: float, keep: bool, data_dir: Path | None) -> int:
    """Start everything in a scratch folder, let a simulated instrument write and procedures run, and check all of it.

    Every record that was written must be in the archive, every slot of the scheduled procedures on record, every
    change of the instrument's table in its day's partition, none lost of a bloated table that is rewritten meanwhile,
    and each product of a mission's files in its place with the bytes that it should have. Without PgQ, on this system
    or by apt-get, the partitions are left out.

    Servers are always embedded: no settings file and no HEADRACE_ variable of this site is read.
    """
    folder = _own_folder(data_dir)
    disposable = data_dir is None and not keep
    try:
        done = _perform(state, folder, seconds, keep)
        disposable &= done
    except Exception:
        disposable = False  # the logs tell more than the message
        raise
    finally:
        if disposable:
            _remove(folder)
        else:
            state.say(f"data and logs stay in {folder}")
    return DONE if done else SOME_FAILED


def _perform(state: State, folder: Path, seconds: float, keep: bool) -> bool:
    """The whole demonstration; whether everything went well. Raises KeyboardInterrupt when it was cut short."""
    conf = _own_settings(state, folder)
    configure_logs(conf.logs.model_copy(update={"level": "WARNING"}))  # stdout is the summary's
    deployment = make_deployment(conf, folder, {})
    show = Show(state, folder)

    def tell(outcome: Outcome) -> None:
        endpoints = read_endpoints(folder)
        if outcome.events.missing:
            _write_settings(conf.flower.port, folder, dispatch={})  # no command is to look for what is not there
        if endpoints is not None:
            show.outcome(outcome, endpoints, kept=keep)

    play = Play(
        conf, folder, seconds=seconds, keep=keep,
        on_step=show.step, on_note=show.note, on_progress=show.progress, on_outcome=tell,
    )  # fmt: skip

    def perform() -> None:
        # A stop that is on its way must not be asked for again: that would hasten it, and end tasks half-way.
        if play.run():
            deployment.request_stop()

    # The deployment gets the main thread: its processes die with the thread that started them.
    thread = threading.Thread(target=perform, name="demo", daemon=True)
    try:
        with show, clear_errors():
            thread.start()
            deployment.run_foreground()
    except AlreadyRunningError as error:
        raise click.UsageError(str(error)) from error
    finally:
        play.stop.set()
        thread.join(timeout=10.0)
    if play.error is not None:
        raise play.error
    if play.outcome is None:
        raise KeyboardInterrupt
    logs = folder / "logs"
    if not play.outcome.arrived:
        written = play.outcome.progress.all_written.records
        state.say(
            f"headrace: {written} records were written but {play.outcome.rows} rows arrived; "
            f"{logs / 'watcher.log'} and {logs / 'worker.log'} tell why"
        )
    for one in play.outcome.jobs:
        if one.problem:
            state.say(
                f"headrace: job {one.job.name} {one.problem}; "
                f"{logs / 'jobs.log'}, {logs / 'worker.log'} and {logs / 'beat.log'} tell why"
            )
    if play.outcome.events.problem:
        state.say(f"headrace: {play.outcome.events.problem}; {logs / 'worker.log'} and {logs / 'beat.log'} tell why")
    if play.outcome.rewrite.problem:
        state.say(f"headrace: {play.outcome.rewrite.problem}; {logs / 'jobs.log'} and {logs / 'beat.log'} tell why")
    if play.outcome.products.problem:
        state.say(
            f"headrace: mission {demo_products.NAME}: {play.outcome.products.problem}; "
            f"{logs / 'incoming.log'} and {logs / 'worker.log'} tell why"
        )
    return play.outcome.good


def _own_folder(given: Path | None) -> Path:
    """The folder of this demonstration. Raises UsageError for one that somebody else filled."""
    if given is None:
        return Path(tempfile.mkdtemp(prefix="headrace-demo-"))
    folder = given.absolute()
    if folder.is_dir() and any(folder.iterdir()):
        try:
            ours = (folder / CONFIG).read_text(encoding="utf-8").startswith(MARK)
        except OSError:
            ours = False
        if not ours:
            raise click.UsageError(
                f"{folder} is not empty and no earlier `headrace demo` made it, so its data might be real; "
                "name an empty or new folder"
            )
    return folder


def _own_settings(state: State, folder: Path) -> Settings:
    """Settings of the demonstration, in a file that its processes, and people, use with --config."""
    for name in [name for name in os.environ if name.startswith(_FOREIGN) and name not in _PROGRAMS]:
        del os.environ[name]
    (folder / "instrument").mkdir(mode=0o700, parents=True, exist_ok=True)
    config = _write_settings(choose_port(DEFAULT_FLOWER_PORT), folder, dispatch=demo_dispatch.SETTINGS)
    os.environ["HEADRACE_CONFIG"] = str(config)
    state.config = config
    return state.settings


def _write_settings(flower_port: int, folder: Path, *, dispatch: dict[str, Any]) -> Path:
    document = {
        "host": HOST,
        "data_dir": str(folder),
        "flower": {"port": flower_port},
        "telemetry": {"data_dirs": [str(folder / "instrument")], "sweep_seconds": SWEEP_SECONDS},
        "products": demo_products.SETTINGS,
        "dispatch": dispatch,
        "repack": demo_repack.SETTINGS,
    }
    config = folder / CONFIG
    config.write_text(MARK + yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return config


def _remove(folder: Path) -> None:
    # Everything has ended; a second Ctrl-C must not leave half of a folder behind.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        PostgresServer(folder).clean_up()  # the folder of its Unix socket lies elsewhere
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        signal.signal(signal.SIGINT, before)
