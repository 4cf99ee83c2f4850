"""Beat's scheduler: it sends ticks only while its session holds an advisory lock in the control database.

Any number of beats may run. The lock ends with its connection, so there is no lease to tune: after a kill
of the leader another one has it at its next look, at most a second later.
"""

from __future__ import annotations

import time
from typing import Any

from celery.beat import Scheduler
from psycopg2.extensions import connection as Connection  # noqa: N812

from workers import database, logs, settings
from workers.errors import HeadraceError
from workers.status import BEAT_LOCK

log = logs.get(__name__)

_RETRY_SECONDS = 1.0


class LeaderScheduler(Scheduler):
    """Celery's in-memory scheduler behind the lock; it keeps no file, so it starts anywhere."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._conn: Connection | None = None
        self._leading: bool | None = None
        self._not_before = 0.0
        super().__init__(*args, **kwargs)

    def setup_schedule(self) -> None:
        """Take the timetable from the application."""
        self.merge_inplace(self.app.conf.beat_schedule)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due while leading; seconds until the next look."""
        if not self._lead():
            return _RETRY_SECONDS
        wait: float = super().tick(*args, **kwargs)
        return wait

    def close(self) -> None:
        """Let go of the lock, so that a standby leads at its next look."""
        self._disconnect()
        super().close()

    def _disconnect(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def _lead(self) -> bool:
        if time.monotonic() < self._not_before:
            return bool(self._leading)
        # `tick` is called in a row while several entries are due; one look a second is enough.
        self._not_before = time.monotonic() + _RETRY_SECONDS * 0.5
        leading = self._hold_lock()
        if leading != self._leading:
            log.info("beat.leading" if leading else "beat.standby")
            self._leading = leading
        return leading

    def _hold_lock(self) -> bool:
        target = settings.current().target()
        try:
            if self._conn is None:
                self._conn = database.connect(target, purpose="beat leader", autocommit=True)
                self._leading = None if self._leading is None else False
            statement = "SELECT true" if self._leading else f"SELECT pg_try_advisory_lock({BEAT_LOCK})"
            with database.translated(target, self._conn), self._conn.cursor() as cursor:
                cursor.execute(statement)
                row = cursor.fetchone()
            return bool(row and row[0])
        except HeadraceError as error:
            log.warning("beat.no_database", reason=str(error))
            self._disconnect()
            return False
