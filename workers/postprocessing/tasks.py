"""The postprocessing room's tasks: a message, one verb."""

from __future__ import annotations

from workers import alerts
from workers.app import BACKSTOP, handles
from workers.messages import DeliverAlerts, Message, RunJob
from workers.postprocessing import runner
from workers.settings import Settings


@handles(RunJob, time_limit=BACKSTOP.total_seconds(), soft_time_limit=BACKSTOP.total_seconds() - 120)
def run_job(message: RunJob, settings: Settings) -> list[Message]:
    """Run one job once."""
    return runner.run_job(message, settings)


@handles(DeliverAlerts)
def deliver_alerts(message: DeliverAlerts, settings: Settings) -> list[Message]:
    """Tell people what they have to hear of."""
    alerts.deliver(settings, message.database)
    return []
