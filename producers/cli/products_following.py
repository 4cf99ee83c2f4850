"""The work on a request: told to workers or done here, followed to its end, and reported as one document."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from producers.cli import follow
from producers.cli import products_choice as choice
from producers.cli.context import DONE, SOME_FAILED, State
from producers.cli.products_options import HERE_LANE
from producers.cli.products_options import here as work_here
from workers.errors import HeadraceError
from workers.messages import BuildProducts, Message, PlanProducts, TendProducts
from workers.products import api

_POLL_SECONDS = 0.3


@dataclass
class _Quiet(State):
    """A state whose document becomes part of another one."""

    document: dict[str, Any] = field(default_factory=dict)

    def emit(self, document: Any) -> None:
        """Keep it."""
        self.document = dict(document)


def _quiet(state: State) -> _Quiet:
    return _Quiet(config=state.config, json=True, overrides=state.overrides, _settings=state.settings)


def work(state: State, mission: api.Mission, asked: api.Requested, *, here: bool, wait: bool, timeout: float) -> int:
    """Have a request worked on, here or by workers, and report it; the exit code. Ctrl-C stops the waiting only."""
    try:
        return _worked(state, mission, asked, here=here, wait=wait, timeout=timeout)
    except KeyboardInterrupt:
        if asked.id is not None:
            state.say(f"request {asked.id} goes on; `headrace products requests {asked.id}` shows how far it is")
        raise


def wake(state: State, missions: Sequence[api.Mission]) -> None:
    """Tell workers at once. That nobody can be told is no failure: it is written down, and found."""
    own = state.settings.host
    hosts = [own if one.is_seen_by(own) else one.hosts[0] for one in missions]
    plans = [PlanProducts(host=host, mission=one.name) for host, one in zip(hosts, missions, strict=True)]
    try:
        follow.enqueue(_quiet(state), plans, wait=False)
    except HeadraceError as error:
        state.say(
            f"no worker was told ({error}); those that run find it within a minute, or `headrace products build --here`"
            " builds it now"
        )


def _worked(
    state: State, mission: api.Mission, asked: api.Requested, *, here: bool, wait: bool, timeout: float
) -> int:  # fmt: skip
    document: dict[str, Any] = {"mission": mission.name, "request": asked.id, **asdict(asked)}
    del document["id"]
    if not state.json:
        _show_request(state, asked)
    code, is_open = DONE, asked.id is not None and asked.due + asked.waiting > 0
    if is_open and here:
        quiet, host = _quiet(state), state.settings.host
        messages: list[Message] = [
            TendProducts(host=host),
            PlanProducts(host=host, mission=mission.name),
            BuildProducts(host=host, lane=HERE_LANE),
        ]
        code = work_here(quiet, messages, timeout=timeout)
        document |= quiet.document
    elif is_open:
        wake(state, [mission])
    if is_open and asked.id is not None and (here or wait):
        so_far = _progress(state, asked.id) if here else _followed(state, asked.id)
        document["progress"] = asdict(so_far)
        if not state.json:
            state.out(f"request {asked.id}: {told(so_far)}")
        code = max(code, SOME_FAILED if so_far.failed else DONE)
    if state.json:
        state.emit(document)
    return code


def _followed(state: State, request: int) -> api.RequestProgress:
    """Wait until a request is over, with a bar on a terminal."""
    with choice.progress_bar("building") as say:
        while True:
            so_far = _progress(state, request)
            say(so_far.total - so_far.running - so_far.waiting, so_far.total)
            if so_far.is_over:
                return so_far
            time.sleep(_POLL_SECONDS)


def _progress(state: State, request: int) -> api.RequestProgress:
    with api.connection(state.settings, purpose="cli") as conn:
        return api.progress_of(conn, request)


def _show_request(state: State, asked: api.Requested) -> None:
    cannot = [
        f"{count:,} {words}"
        for count, words in ((asked.incomplete, "lack an input"), (asked.without_code, "have no code for their day"))
        if count
    ]
    tail = f"; besides, {', '.join(cannot)}: `headrace products plan --waiting` says more" if cannot else ""
    if asked.id is None:
        state.out(f"no output of these days can be built{tail}")
        return
    state.out(
        f"request {asked.id}: {asked.slots:,} outputs: {asked.due:,} due now, {asked.waiting:,} after others,"
        f" {asked.up_to_date:,} up to date{tail}; `headrace products requests {asked.id}` shows how far it is"
    )


def told(so_far: api.RequestProgress) -> str:
    parts = {name: count for name, count in asdict(so_far).items() if name != "total" and count}
    return f"{so_far.total:,} outputs: " + (", ".join(f"{count:,} {name}" for name, count in parts.items()) or "none")
