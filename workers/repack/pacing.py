"""Pacing: when a rewrite waits, because standbys fall behind, too much WAL is written, or its window is closed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from workers import windows
from workers.database import Connection
from workers.repack import pacing_catalog
from workers.repack.pacing_catalog import Standby
from workers.repack_settings import Limits

LAG_WAIT_SECONDS = 5.0  # how soon a standby that was too far behind is looked at again
BLIND_WAIT_SECONDS = 60.0  # a right that is missing is not granted within seconds
SHORTEST_SECONDS = 0.05  # shorter pauses are not worth their wake-up; what they owe is not forgotten
KEPT_SAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Hold:
    """Why nothing is to be copied now, in words for people, and after how many seconds to ask again."""

    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Sample:
    """How many bytes of WAL the server had written at a moment."""

    at: datetime
    position: int


class Pace:
    """Asked between chunks whether to wait. It remembers what it saw: keep one for as long as a step goes on.

    `conn` is any session on the server of the table; a transaction that was not open before is not left open.
    """

    def __init__(self, conn: Connection, limits: Limits) -> None:
        self._conn = conn
        self._limits = limits
        self._since: Sample | None = None  # where the WAL rate is counted from
        self._seen: deque[Sample] = deque(maxlen=KEPT_SAMPLES)

    def hold(self, now: datetime, *, last_chunk_seconds: float = 0) -> Hold | None:
        """Whether to wait at `now`, why and how long; None: go on. The longest reason counts.

        `last_chunk_seconds` is what the chunk just done took; leave it out when asking again after a pause.
        """
        found = [sleep(last_chunk_seconds, self._limits.sleep_ratio)]
        if self._limits.max_wal_bytes_per_second is not None or _wants_lag(self._limits):
            sample = Sample(now, pacing_catalog.wal_position(self._conn))
            found += [self._wal(sample), self._lag(sample)]
        holds = [one for one in found if one is not None]
        return max(holds, key=lambda one: one.seconds) if holds else None

    def _wal(self, sample: Sample) -> Hold | None:
        if self._limits.max_wal_bytes_per_second is None:
            return None
        since = self._since or sample
        wait = wal_debt(since, sample, self._limits.max_wal_bytes_per_second)
        if 0 < wait < SHORTEST_SECONDS:
            self._since = since  # many short chunks must not get round the limit
            return None
        # Counted anew from here: what was idle before is no credit, and what is waited for now is paid.
        self._since = sample
        if wait <= 0:
            return None
        rate = (sample.position - since.position) / max((sample.at - since.at).total_seconds(), 0.001)
        limit = self._limits.max_wal_bytes_per_second
        return Hold(f"the server writes {rate:,.0f} bytes of WAL per second, over the limit of {limit:,}", wait)

    def _lag(self, sample: Sample) -> Hold | None:
        if not _wants_lag(self._limits):
            return None
        self._seen.append(sample)
        standbys = pacing_catalog.standbys(self._conn)
        if any(one.position is None for one in standbys):
            _, login = pacing_catalog.sight(self._conn)
            return Hold(_blind(login), BLIND_WAIT_SECONDS)
        return lag(standbys, self._seen, self._limits)


def preflight(conn: Connection, limits: Limits) -> str | None:
    """Why a lag limit could not be kept, and what to do; None: no limit is set, or the login may see the lag."""
    if not _wants_lag(limits):
        return None
    may_see, login = pacing_catalog.sight(conn)
    return None if may_see else _blind(login)


def sleep(last_chunk_seconds: float, ratio: float) -> Hold | None:
    """The pause after a chunk of that length."""
    seconds = last_chunk_seconds * ratio
    return Hold(f"a pause of {ratio:g} chunk durations", seconds) if seconds > 0 else None


def wal_debt(since: Sample, now: Sample, limit: int) -> float:
    """How many seconds without any WAL bring the rate since then down to `limit` bytes per second; may be negative."""
    return (now.position - since.position) / limit - (now.at - since.at).total_seconds()


def lag(standbys: Sequence[Standby], seen: Sequence[Sample], limits: Limits) -> Hold | None:
    """Whether the worst standby is further behind than allowed; `seen` is oldest first, and ends with now.

    PostgreSQL's own seconds stand still with a standby that stops replaying: what we saw written and it has not
    replayed yet is at least so old.
    """
    if not standbys:
        return None
    furthest = min(standbys, key=lambda one: one.position or 0)
    behind = seen[-1].position - (furthest.position or 0)
    if limits.max_replication_lag_bytes is not None and behind > limits.max_replication_lag_bytes:
        allowed = f"over the limit of {limits.max_replication_lag_bytes:,}"
        return Hold(f"standby {furthest.name} is {behind:,} bytes behind, {allowed}", LAG_WAIT_SECONDS)
    slowest = max(standbys, key=lambda one: _seconds_behind(one, seen))
    late = _seconds_behind(slowest, seen)
    if limits.max_replication_lag_seconds is not None and late > limits.max_replication_lag_seconds:
        allowed = f"over the limit of {limits.max_replication_lag_seconds:g}"
        return Hold(f"standby {slowest.name} is {late:.1f} seconds behind, {allowed}", LAG_WAIT_SECONDS)
    return None


def window_hold(text: str | None, timezone: str, now: datetime) -> datetime | None:
    """When the windows open again, in UTC; None: one is open at `now`, or there are none and it is always open.

    Raises ScheduleError for a text or a time zone that is not understood.
    """
    if text is None:
        return None
    opens = windows.opens_at(windows.parse(text), timezone, now)
    return opens if opens > now else None


def _seconds_behind(standby: Standby, seen: Sequence[Sample]) -> float:
    missing = next((one.at for one in seen if one.position > (standby.position or 0)), seen[-1].at)
    return max(standby.lag_seconds or 0.0, (seen[-1].at - missing).total_seconds())


def _wants_lag(limits: Limits) -> bool:
    return limits.max_replication_lag_bytes is not None or limits.max_replication_lag_seconds is not None


def _blind(login: str) -> str:
    return (
        f"a limit of replication lag is set, but {login} may not see how far the standbys are:"
        f" GRANT pg_monitor TO {login}, or take max_replication_lag_bytes and max_replication_lag_seconds away"
    )
