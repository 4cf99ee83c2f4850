"""The Celery tasks that beat fires: each asks a database what is due, and enqueues messages; none does work."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from producers import dispatch, postprocessing, products, repack
from workers import hosts, logs, pauses, reaper, settings
from workers.app import app, queue_depths, send
from workers.dispatch import api as queues
from workers.errors import HeadraceError, NothingToDo, RetryLater
from workers.messages import IngestFile, TakeInventory
from workers.postprocessing import api as jobs
from workers.products import api as archive
from workers.repack import api as rewrites
from workers.telemetry import api as telemetry

log = logs.get(__name__)

_LIMIT = {"time_limit": 60, "soft_time_limit": 50}


def _slot(seconds: float) -> str:
    """The same text for the whole interval: a doubled tick makes doubled ids, which is seen and harmless."""
    return str(int(time.time() // seconds))


@app.task(name="ticks.reap", **_LIMIT)
def reap() -> None:
    """Close the runs of dead workers; send people's requests again whose message got lost."""
    conf = settings.current()
    try:
        reaper.reap(conf)
        lost = reaper.requests_to_resend(conf)
        if lost:
            # In a queue that is not empty they may merely be waiting for their turn.
            depths = queue_depths(sorted({message.queue() for message in lost}))
            send([m for m in lost if not depths[m.queue()]], slot=f"again-{_slot(reaper.RESEND.total_seconds())}")
    except RetryLater as error:
        log.warning("tick.waits", tick="reap", reason=str(error))


@app.task(name="ticks.telemetry_sweep", **_LIMIT)
def telemetry_sweep() -> None:
    """Have each live host look at its folders once per interval; send the files again whose message got lost."""
    conf = settings.current()
    try:
        awake = [host.name for host in hosts.listing(conf.target()) if host.alive and _reads_telemetry(conf, host)]
        if not awake:
            return
        due = [TakeInventory(host=name) for name in telemetry.due_hosts(conf, awake)]
        send(due, slot=_slot(conf.telemetry.sweep_seconds))
        for name in awake:
            files = [IngestFile(host=name, path=path) for path in telemetry.due_files(conf, name)]
            send(files, slot=f"sweep-{_slot(conf.telemetry.requeue_seconds)}")
    except RetryLater as error:
        log.warning("tick.waits", tick="telemetry_sweep", reason=str(error))


@app.task(name="ticks.products", **_LIMIT)
def look_for_products() -> None:
    """Have incoming folders looked at, stale products found and built, and what dead workers left ended."""
    try:
        products.look_everywhere(settings.current())
    except RetryLater as error:
        log.warning("tick.waits", tick="products", reason=str(error))


@app.task(name="ticks.postprocessing", **_LIMIT)
def look_for_jobs() -> None:
    """Queue the runs of jobs whose time has come, in every database."""
    try:
        postprocessing.look_everywhere(settings.current())
    except RetryLater as error:
        log.warning("tick.waits", tick="postprocessing", reason=str(error))


@app.task(name="ticks.dispatch", **_LIMIT)
def pump() -> None:
    """Send each PgQ consumer's open batch to a worker, and tick the queues that nobody else ticks."""
    try:
        dispatch.pump_everywhere(settings.current())
    except RetryLater as error:
        log.warning("tick.waits", tick="dispatch", reason=str(error))


@app.task(name="ticks.repack", **_LIMIT)
def look_for_rewrites() -> None:
    """Send on the rewrites whose next step is due, and have tables chosen where a plan's window is open."""
    try:
        repack.look_everywhere(settings.current())
    except RetryLater as error:
        log.warning("tick.waits", tick="repack", reason=str(error))


@app.task(name="ticks.partitions", **_LIMIT)
def tend_partitions() -> None:
    """Have partitions made ahead, and those beyond their retention let go of."""
    try:
        send(dispatch.partitions_to_tend(settings.current()), slot=_slot(dispatch.TEND_SECONDS))
    except RetryLater as error:
        log.warning("tick.waits", tick="partitions", reason=str(error))


@app.task(name="ticks.forget_old_runs", **_LIMIT)
def forget_old_runs() -> None:
    """Delete history beyond its retention."""
    conf = settings.current()
    for name, forget in (
        ("runs", reaper.forget_old_runs),
        ("jobs", _forget_old_job_runs),
        ("events", _forget_events),
        ("rewrites", rewrites.forget_old),
        ("builds", archive.forget_old),
    ):
        try:
            forget(conf)
        except HeadraceError as error:
            log.warning("tick.waits", tick="forget_old_runs", what=name, reason=str(error))


def _forget_events(conf: settings.Settings) -> int:
    return queues.forget_settled(conf, timedelta(days=conf.retention.runs_days))


def _forget_old_job_runs(conf: settings.Settings) -> int:
    gone = 0
    for name in jobs.names(conf):
        try:
            gone += jobs.forget_old_runs(conf, name)
        except HeadraceError as error:
            log.warning("tick.waits", tick="forget_old_runs", what=name, reason=str(error))
    return gone


def _reads_telemetry(conf: settings.Settings, host: Any) -> bool:
    if f"telemetry.{host.name}" not in host.queues:
        return False
    try:
        pauses.check(conf.target(), "telemetry", host.name)
    except NothingToDo:
        return False
    return True
