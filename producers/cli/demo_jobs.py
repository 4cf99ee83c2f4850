"""The scheduled procedures of a demonstration: made in its database, run by its workers, judged by their history."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from workers import database
from workers.settings import Settings
from workers.sql_files import queries

SQL = queries("demo")

PATIENCE_SECONDS = 30.0  # beyond the last record; two to four are usual
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Job:
    """A procedure of the schema `demo`, how often it runs, and how many of its first runs fail on purpose."""

    name: str
    every: timedelta
    failures: int = 0
    reads_archive: bool = False

    @property
    def schedule(self) -> str:
        """For people."""
        return f"every {self.every.total_seconds():.0f} s"


JOBS = (
    Job("summarise", timedelta(seconds=2), reads_archive=True),
    Job("flaky", timedelta(seconds=10), failures=2),
)
RETRY_PERIOD = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What is on record of a job: runs and slots that are over, slots without a record, the newest run's last word."""

    job: Job
    runs: int = 0
    succeeded: int = 0
    skipped: int = 0
    retries: int = 0
    missing: tuple[datetime, ...] = ()
    last: str = "-"
    is_complete: bool = False  # it succeeded, and if it reads the archive, with everything that arrived there

    @property
    def failed(self) -> int:
        """Runs that ended in any other way than well."""
        return self.runs - self.succeeded

    @property
    def problem(self) -> str | None:
        """What is wrong with it, for people; None: it did what it should. A slot cannot have run twice: it is a key."""
        if not self.runs:
            return "did not run"
        if self.missing:
            return f"has no record of {len(self.missing)} of its slots, the first at {self.missing[0]:%H:%M:%S.%f} UTC"
        if self.failed != self.job.failures:
            return f"failed {self.failed} times instead of {self.job.failures}; its newest run said: {self.last}"
        if not self.is_complete:
            return "did not succeed" + (" after the last record had arrived" if self.job.reads_archive else "")
        return None


class Jobs:
    """The jobs of one demonstration, in its control database; used by one thread."""

    def __init__(self, conf: Settings) -> None:
        self._conf = conf  # its control database has an address once it runs
        self._numbers: dict[int, Job] = {}

    def start(self) -> None:
        """Make table, procedures and jobs; those of an earlier demonstration in the same folder go."""
        with database.connection(self._conf.target(), purpose="demo") as conn:
            SQL["create_procedures"].run(conn)
            SQL["delete_jobs"].run(conn)
            for job in JOBS:
                asked = {
                    "procedure": f"demo.{job.name}",
                    "every": job.every,
                    "config": json.dumps({"failures": job.failures}) if job.failures else None,
                    "name": job.name,
                    "retry": RETRY_PERIOD,
                }
                self._numbers[SQL["add_job"].value(conn, asked)] = job
            conn.commit()  # both at once: no look plans a job whose retry period is not set

    def at_end(self, pause: Callable[[float], None]) -> tuple[JobOutcome, ...]:
        """The jobs once each has succeeded, the one that reads the archive with all of it; as they stand if too late.

        `pause` waits so many seconds, or raises to end it all.
        """
        arrived = datetime.now(UTC)  # the server's clock too: it runs on this machine
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            jobs = self.outcomes(arrived)
            if all(one.is_complete for one in jobs) or time.monotonic() > deadline:
                return jobs
            pause(POLL_SECONDS)

    def outcomes(self, since: datetime) -> tuple[JobOutcome, ...]:
        """What is on record of each job by now; one that reads the archive must have begun to at `since` or later."""
        with database.connection(self._conf.target(), purpose="demo", autocommit=True) as conn:
            rows = SQL["job_outcomes"].records(conn, {"jobs": list(self._numbers), "since": since})
        found = {row.pop("job_id"): row for row in rows}
        return tuple(
            _outcome(job, found[number]) if number in found else JobOutcome(job)
            for number, job in self._numbers.items()
        )


def _outcome(job: Job, row: dict[str, Any]) -> JobOutcome:
    since = row.pop("succeeded_since")
    complete = since if job.reads_archive else row["succeeded"]
    return JobOutcome(job, **row | {"missing": tuple(row["missing"]), "is_complete": complete > 0})
