"""Why a file was built, or an output is not: down to the root causes, in sentences that say what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products import explain_store, plan_store, planning
from workers.products.explain_store import Maker, Wanted
from workers.products.plan_store import Mission, Process, Slot
from workers.products.requests import first_day
from workers.products.versions import Version
from workers.settings import did_you_mean

State = Literal[
    "up_to_date", "delivered", "due", "building", "waiting", "failed", "held", "no_code", "no_input", "not_asked",
    "retired", "not_delivered", "arriving", "quarantined", "damaged", "newest", "superseded", "removed", "see_above",
]  # fmt: skip

_DEEPEST = 20  # levels of processes that causes are followed through
_FEW = 5  # causes of one kind that are told


@dataclass(frozen=True, slots=True)
class Explanation:
    """How an output or a file stands and why, in a word, in a sentence, and as facts that JSON can hold.

    `causes` explain this one in turn; the leaves are where a person can do something. `key` is '' for a product that
    has one file a day.
    """

    state: State
    sentence: str
    product: str
    day: date
    key: str = ""
    process: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    causes: tuple[Explanation, ...] = ()

    def roots(self) -> Iterator[Explanation]:
        """The explanations at the ends of all chains of causes; itself, if it has none."""
        if not self.causes:
            yield self
        for cause in self.causes:
            yield from cause.roots()

    def document(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {
            "state": self.state, "sentence": self.sentence, "product": self.product, "day": self.day.isoformat(),
            "key": self.key, "process": self.process, "facts": self.facts,
            "causes": [cause.document() for cause in self.causes],
        }  # fmt: skip


def explain_output(
    conn: Connection, mission: Mission, product: str, day: date, key: str | None = None
) -> list[Explanation]:
    """Why there is or is not each output of a product (or of a process that has none) whose period has this day.

    The transaction is read-only from here. Raises PermanentFailure for a name that nothing has.
    """
    explain_store.read_only(conn)
    return _Explainer(conn, mission).output(product, day, key)


def explain_file(conn: Connection, mission: Mission, file_id: int) -> Explanation:
    """Why a file was built, from what, by what; whether it is stale, and what was built from it.

    The transaction is read-only from here. Raises PermanentFailure for a file that the mission does not have.
    """
    explain_store.read_only(conn)
    found = explain_store.files(conn, mission.id, [file_id])
    if not found:
        raise PermanentFailure(f"{mission.name} has no file {file_id}; was it forgotten?")
    return _Explainer(conn, mission).file(found[0])


def waiting(conn: Connection, mission: Mission, since: date | None, until: date | None) -> list[Explanation]:
    """Every output in a range of days that has some of its inputs but waits for a required one; read-only from here."""
    explain_store.read_only(conn)
    explainer = _Explainer(conn, mission)
    plan_store.for_many_slots(conn, many=since is None or until is None or until - since > timedelta(days=31))
    found: list[Explanation] = []
    for process in explainer.processes.values():
        names = explain_store.input_products(conn, process.id) if process.inputs else []
        first = first_day(process.timebase, since) if since is not None else None
        for slot in plan_store.stale(conn, process, since=first, until=until, from_due=True, everything=True):
            if not slot.is_complete:
                missing = _missing(process, slot.found, names)
                sentence = f"{_title(process, slot.day, slot.key)} is waiting: {_list(missing, slot.day)}"
                found.append(_of(process, slot, "waiting", sentence, {"missing": missing}))
    plan_store.for_many_slots(conn, many=False)
    return found


class _Explainer:
    """One question. Each output is explained once: a graph's branches meet again."""

    def __init__(self, conn: Connection, mission: Mission) -> None:
        self.conn, self.mission = conn, mission
        self.processes = {one.id: one for one in plan_store.processes(conn, mission.id)}
        self.told: set[tuple[int, date, str]] = set()
        self.depth = 0

    # Outputs

    def output(self, name: str, day: date, key: str | None) -> list[Explanation]:
        product = explain_store.product(self.conn, self.mission.id, name)
        makers = explain_store.makers(self.conn, self.mission.id, product, name)
        if product is None and not makers:
            known = explain_store.names(self.conn, self.mission.id)
            raise PermanentFailure(f"nothing in {self.mission.name} is called {name!r}{did_you_mean(name, known)}")
        active = [self.processes[one.id] for one in makers if one.id in self.processes]
        if active:
            return [one for process in active for one in self.slots(process, day, key)]
        files = explain_store.newest(self.conn, self.mission.id, product, day, key) if product is not None else []
        if files:
            return [self.file(one) for one in files]
        return [self.not_made(name, product, day, key or "", makers)]

    def slots(self, process: Process, day: date, key: str | None) -> list[Explanation]:
        first = first_day(process.timebase, day)
        found = plan_store.stale(
            self.conn, process, since=first, until=first, key=key, from_due=True, everything=True
        )  # fmt: skip
        return [self.slot(process, one) for one in found] or [self.no_slot(process, first, key)]

    def slot(self, process: Process, slot: Slot) -> Explanation:
        id_ = (process.id, slot.day, slot.key)
        title = _title(process, slot.day, slot.key)
        if id_ in self.told or self.depth > _DEEPEST:
            return _of(process, slot, "see_above", f"{title}: explained above")
        self.told.add(id_)
        row = explain_store.slot(self.conn, *id_)
        if row is not None and row["running_id"] is not None:
            since, host = row["running_since"], row["running_host"]
            facts = {"build": row["running_id"], "host": host, "since": _iso(since), "reason": row["running_reason"],
                     "detail": row["running_detail"]}  # fmt: skip
            sentence = f"{title} is being built on {host} since {_clock(since)}: {row['running_reason']}"
            return _of(process, slot, "building", sentence, facts)
        if not slot.is_complete:
            wanted = explain_store.inputs(self.conn, process.id, slot.day, start=slot.start_at, stop=slot.stop_at)
            missing = [one for one in wanted if process.required & ~slot.found & 1 << one.position]
            return self.waiting(process, slot.day, slot.key, missing)
        if slot.code_id is None:
            return self.no_code(process, slot)
        if slot.is_given_up or slot.has_failed_so:
            return self.failed(process, slot, row or {})
        causes = self.upstream(process, slot)
        if slot.has_pending:
            names = ", ".join(_title_of(one) for one in causes) or "an input"
            return _of(process, slot, "waiting", f"{title} waits for {names} to be built first", {}, causes)
        step = planning.of_slot(self.conn, process, slot.day, slot.key)
        if step is None:
            return self.current(process, slot, causes)
        facts = {"reason": step.verdict.reason, "detail": step.verdict.detail, "force": slot.force}
        sentence = f"{title} is to be built: {step.verdict.reason}, {step.verdict.detail}"
        if slot.slot_id is None or slot.due_at is None:
            return _of(process, slot, "due", f"{sentence}; the next look at the mission finds it", facts, causes)
        ahead, running, lanes = explain_store.queue(self.conn, slot.slot_id)
        facts |= {"since": _iso(slot.due_at), "ahead": ahead, "running": running, "lanes": lanes}
        why = f"{ahead} are built before it, {running} are being built on {lanes} lanes"
        if lanes == 0:
            why = "no worker for products has run on a host that sees the mission: start one"
        return _of(process, slot, "due", f"{sentence}; since {_clock(slot.due_at)}; {why}", facts, causes)

    def current(self, process: Process, slot: Slot, causes: tuple[Explanation, ...]) -> Explanation:
        """Nothing is to be done. Causes are inputs that could not be built anew."""
        title = _title(process, slot.day, slot.key)
        held = [one for one in explain_store.codes(self.conn, process.id) if one.state == "held"]
        held_names = [f"{process.name} {one.version}" for one in held if one.holds_for(slot.day)]
        facts: dict[str, Any] = {"held": held_names}
        tail = "".join(f"; code {one} is held: `headrace products approve {one}`" for one in held_names)
        if causes:
            tail += f"; {', '.join(_title_of(one) for one in causes)} could not be built anew"
        if slot.output_id is None:
            row = explain_store.slot(self.conn, process.id, slot.day, slot.key) or {}
            facts |= {"build": row.get("build_id"), "built_at": _iso(row.get("finished_at"))}
            sentence = f"{title} is up to date: it ran {_clock(row.get('finished_at'))}{tail}"
            return _of(process, slot, "up_to_date", sentence, facts, causes)
        file = explain_store.files(self.conn, self.mission.id, [slot.output_id])[0]
        facts |= self.file_facts(file)
        if file["inputs"] is None:
            sentence = f"{file['filename']} was delivered, not built: it stands until an input comes after it{tail}"
            return _of(process, slot, "delivered", sentence, facts, causes)
        sentence = f"{title} is up to date: {_made(file, facts)}{tail}"
        return _of(process, slot, "up_to_date", sentence, facts, causes)

    def failed(self, process: Process, slot: Slot, row: dict[str, Any]) -> Explanation:
        kind, problem = row.get("kind"), row.get("problem") or slot.problem
        facts = {
            "kind": kind, "problem": problem, "attempts": row.get("failures"), "of": row.get("attempts"),
            "is_given_up": slot.is_given_up, "build": row.get("build_id"), "host": row.get("build_host"),
            "exit_status": row.get("exit_status"), "signal": row.get("signal"), "stderr": row.get("stderr") or "",
            "again_at": _iso(slot.due_at),
        }  # fmt: skip
        title = _title(process, slot.day, slot.key)
        if not slot.is_given_up:
            sentence = f"{title} failed {row.get('failures')} of {row.get('attempts')} times ({kind}: {problem})"
            return _of(process, slot, "failed", f"{sentence}; it is tried again at {_clock(slot.due_at)}", facts)
        fix = (
            "correct the definition and load it" if kind == "definition"
            else f"correct the code or its input, then `headrace products retry {process.product or process.name}"
                 f" --day {slot.day}`"
        )  # fmt: skip
        count = row.get("failures")
        times = f" after {count} attempt{'s' if count != 1 else ''}" if count else ""
        return _of(process, slot, "failed", f"{title} was given up{times} ({kind}: {problem}); {fix}", facts)

    def no_code(self, process: Process, slot: Slot) -> Explanation:
        title = _title(process, slot.day, slot.key)
        codes = explain_store.codes(self.conn, process.id)
        facts = {"codes": [f"{one.version} ({one.state}, {_days(one.valid_from, one.valid_until)})" for one in codes]}
        held = [one for one in codes if one.state == "held" and one.holds_for(slot.day)]
        if held:
            name = f"{process.name} {held[-1].version}"
            sentence = f"{title} is not built: code {name} is held; `headrace products approve {name}` lets it be used"
            return _of(process, slot, "held", sentence, facts)
        there = f"there are {', '.join(facts['codes'])}" if codes else "it has none"
        sentence = f"{title} is not built: no code of {process.name} is valid for {slot.day}; {there}"
        return _of(process, slot, "no_code", sentence, facts)

    # What is not there

    def no_slot(self, process: Process, day: date, key: str | None) -> Explanation:
        """There is no such output to keep up to date: why?"""
        title = _title(process, day, key or "")
        files = (
            explain_store.newest(self.conn, self.mission.id, process.output_product, day, key)
            if process.output_product is not None
            else []
        )
        if files:
            return self.stands(process, files[0])
        if not process.inputs:
            sentence = f"{title}: {process.name} reads nothing, so its days are asked for: `headrace products backfill`"
            return _at(process, day, key, "not_asked", sentence)
        if process.timebase == "ORBIT" and not explain_store.is_orbit(self.conn, process.id, day):
            return _at(process, day, key, "no_input", f"{title}: no orbit begins on {day}; load the table of orbits")
        wanted = explain_store.inputs(self.conn, process.id, day)
        there = {one.position for one in wanted if one.files}
        missing = [one for one in wanted if one.is_required and one.position not in there]
        if not missing and not there:
            missing = wanted
        if missing:
            return self.waiting(process, day, key or "", missing)
        facts = {"inputs": {one.product: one.files for one in wanted}}
        what = "files of neighbouring days alone do not make an output" if not any(one.own for one in wanted) else (
            f"no input has the key {key!r}" if key else "its inputs there are of other keys"
        )  # fmt: skip
        return _at(process, day, key, "no_input", f"{title} is not built: no input covers it; {what}", facts)

    def stands(self, process: Process, file: dict[str, Any]) -> Explanation:
        """A file of a period that nothing there is covers any more."""
        facts = self.file_facts(file)
        is_built = file["inputs"] is not None
        how = f"was built {_made(file, facts)}" if is_built else f"was delivered {_clock(file['registered_at'])}"
        gone = [one for one in explain_store.inputs(self.conn, process.id, file["day"]) if not one.files]
        self.depth += 1
        causes = [cause for one in gone if self.depth <= _DEEPEST for cause in self.why_missing(one, file["day"])]
        self.depth -= 1
        sentence = f"{file['filename']} {how}; it stands, though no input that is there covers its period"
        state: State = "up_to_date" if is_built else "delivered"
        return _at(process, file["day"], file["key"], state, sentence, facts, tuple(causes))

    def waiting(self, process: Process, day: date, key: str, missing: Sequence[Wanted]) -> Explanation:
        positions: dict[int, list[Wanted]] = {}
        for one in missing:
            positions.setdefault(one.position, []).append(one)
        words, causes = [], list[Explanation]()
        for several in positions.values():
            name = " or ".join(one.product for one in several)
            first, last = several[0].first, several[0].last
            words.append(f"{name} {day}" + (f" ({first} to {last} would do)" if (first, last) != (day, day) else ""))
            self.depth += 1
            for one in several:
                causes += self.why_missing(one, day)
            self.depth -= 1
        facts = {
            "missing": [
                {"product": one.product, "from": one.first.isoformat(), "until": one.last.isoformat()}
                for one in missing
            ]
        }  # fmt: skip
        sentence = f"{_title(process, day, key)} is waiting: {', '.join(words)}"
        return _at(process, day, key, "waiting", sentence, facts, tuple(causes))

    def why_missing(self, one: Wanted, day: date) -> list[Explanation]:
        damaged = [
            Explanation("damaged", f"{name} is {state}: deliver it again, or look with `headrace products fsck`",
                        one.product, day, facts={"file": name, "state": state})
            for name, state in explain_store.damaged(self.conn, one.product_id, one.first, one.last)
        ]  # fmt: skip
        troubles = explain_store.troubles(self.conn, [one.product_id], one.first, one.last)
        if troubles:
            return damaged + self.slots_of(troubles)
        makers = explain_store.makers(self.conn, self.mission.id, one.product_id, one.product)
        if any(maker.id in self.processes for maker in makers) and self.depth <= _DEEPEST:
            return damaged + self.output(one.product, day, None)
        return damaged or [self.not_made(one.product, one.product_id, day, "", makers)]

    def not_made(
        self, name: str, product: int | None, day: date, key: str, makers: Sequence[Maker]
    ) -> Explanation:  # fmt: skip
        """No active process makes it, and it is not there."""
        dates = [day.strftime(form) for form in ("%Y%m%d", "%Y-%m-%d", "%Y_%m_%d", "%Y.%m.%d", "%Y%j", "%Y-%j")]
        causes = [
            Explanation(
                "quarantined",
                f"{one['filename']} is in quarantine ({one['reason']}): {one['message']};"
                f" `headrace products quarantine retry {one['id']}` after a fix",
                name, day, facts={"quarantine": one["id"], "file": one["filename"], "reason": one["reason"],
                                  "suggestion": one["suggestion"], "arrived_at": _iso(one["arrived_at"])},
            )
            for one in explain_store.quarantined(self.conn, self.mission.id, name, dates)
        ]  # fmt: skip
        causes += [
            Explanation(
                "arriving", f"{one['path']} is in the incoming folder, {one['problem'] or 'and has not settled yet'}",
                name, day, facts={"path": one["path"], "host": one["host"], "seen_at": _iso(one["seen_at"])},
            )
            for one in explain_store.arriving(self.conn, self.mission.id, dates)
        ]  # fmt: skip
        damaged = explain_store.damaged(self.conn, product, day, day) if product is not None else []
        causes += [
            Explanation(
                "damaged", f"{file} is {state}: deliver it again", name, day, facts={"file": file, "state": state}
            )
            for file, state in damaged
        ]
        title = " ".join(word for word in (name, str(day), key) if word)
        if makers:
            retired = ", ".join(one.name for one in makers)
            sentence = f"{title} is not built: {retired} is retired; nothing else makes it"
            return Explanation("retired", sentence, name, day, key, makers[0].name, causes=tuple(causes))
        sentence = f"{title} was not delivered: no process makes it"
        return Explanation("not_delivered", sentence, name, day, key, causes=tuple(causes))

    def upstream(self, process: Process, slot: Slot) -> tuple[Explanation, ...]:
        """Outputs that this one reads and that are not as they should be."""
        if not process.inputs:
            return ()
        first = slot.start_at.date() - timedelta(days=process.yesterday)
        last = slot.stop_at.date() + timedelta(days=process.tomorrow)
        self.depth += 1
        found = self.slots_of(explain_store.troubles(self.conn, process.inputs, first, last))
        self.depth -= 1
        return tuple(found)

    def slots_of(self, ids: Sequence[tuple[int, date, str]]) -> list[Explanation]:
        found: list[Explanation] = []
        for process_id, day, key in ids[:_FEW]:
            process = self.processes[process_id]
            slots = plan_store.stale(
                self.conn, process, since=day, until=day, key=key, from_due=True, everything=True
            )  # fmt: skip
            found += [self.slot(process, one) for one in slots] or [self.no_slot(process, day, key)]
        return found

    # Files

    def file(self, file: dict[str, Any]) -> Explanation:
        facts = self.file_facts(file)
        name = file["filename"]
        is_built = file["inputs"] is not None or file["build_id"] is not None
        sentence = (
            f"{name} was {'built' if is_built else 'delivered'}: {_made(file, facts)}" if is_built
            else f"{name} was delivered {_clock(file['registered_at'])}"
        )  # fmt: skip
        state: State = "newest" if is_built else "delivered"
        causes: tuple[Explanation, ...] = ()
        process = self.processes.get(file["process_id"]) or next(
            (one for one in self.processes.values() if one.output_product == file["product_id"]), None
        )
        if file["state"] in ("missing", "corrupt", "placing"):
            state, sentence = "damaged", f"{sentence}; now it is {file['state']}"
        elif file["state"] == "removed":
            state, sentence = "removed", f"{sentence}; it was cleaned away"
        elif not file["is_newest"]:
            late = " and was so when it came: nothing is built from it" if file["came_too_late"] else ""
            state, sentence = "superseded", f"{sentence}; it is superseded by {file['newest']}{late}"
        if process is not None and (file["is_newest"] or state == "damaged"):
            step = planning.of_slot(self.conn, process, file["day"], file["key"])
            if step is not None:
                facts |= {"stale": step.verdict.reason, "stale_detail": step.verdict.detail}
                sentence += f"; it is stale: {step.verdict.reason}, {step.verdict.detail}"
            causes = tuple(
                one
                for one in self.slots(process, file["day"], file["key"])
                if one.state not in ("up_to_date", "delivered", "newest", "see_above") or one.causes
            )
        children = explain_store.children(self.conn, file["id"])
        facts["children"] = children
        if children:
            sentence += f"; {len(children)} {'file was' if len(children) == 1 else 'files were'} built from it"
        return Explanation(state, sentence, file["product"], file["day"], file["key"], file["process"], facts, causes)

    def file_facts(self, file: dict[str, Any]) -> dict[str, Any]:
        """What a file was made of, for JSON."""
        inputs = explain_store.files(self.conn, self.mission.id, file["inputs"]) if file["inputs"] else []
        code = [file[f"code_{part}"] for part in Version._fields]
        return {
            "file": file["id"], "filename": file["filename"], "state": file["state"], "is_newest": file["is_newest"],
            "version": str(Version(*(file[part] for part in Version._fields))), "is_forced": file["is_forced"],
            "registered_at": _iso(file["registered_at"]), "process": file["process"],
            "code": str(Version(*code)) if code[0] is not None else None,
            "build": file["build_id"], "build_state": file["build_state"], "reason": file["reason"],
            "detail": file["detail"], "host": file["host"], "built_at": _iso(file["finished_at"] or file["started_at"]),
            "inputs": [{"id": one["id"], "filename": one["filename"], "is_newest": one["is_newest"]} for one in inputs],
            "superseded_by": file["newest"] if not file["is_newest"] else None,
            "superseded_on_arrival": file["came_too_late"],
        }  # fmt: skip


def _made(file: dict[str, Any], facts: dict[str, Any]) -> str:
    names = [one["filename"] for one in facts["inputs"]]
    what = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "nothing"
    code = " ".join(word for word in (file["process"], facts["code"]) if word) or "an unknown code"
    host = f" on {file['host']}" if file["host"] else ""
    why = f"; {file['reason']}: {file['detail']}".removesuffix(": ") if file["reason"] else ""
    return f"{_clock(file['finished_at'] or file['registered_at'])}{host} by {code} from {what}{why}"


def _missing(process: Process, found: int, names: Sequence[tuple[int, bool, str]]) -> list[str]:
    positions: dict[int, list[str]] = {}
    for position, is_required, name in names:
        if is_required and not found & 1 << position:
            positions.setdefault(position, []).append(name)
    return [" or ".join(one) for one in positions.values()]


def _list(missing: Sequence[str], day: date) -> str:
    return ", ".join(f"{one} {day}" for one in missing)


def _of(
    process: Process, slot: Slot, state: State, sentence: str, facts: dict[str, Any] | None = None,
    causes: tuple[Explanation, ...] = (),
) -> Explanation:  # fmt: skip
    return _at(process, slot.day, slot.key, state, sentence, facts, causes)


def _at(
    process: Process, day: date, key: str | None, state: State, sentence: str, facts: dict[str, Any] | None = None,
    causes: tuple[Explanation, ...] = (),
) -> Explanation:  # fmt: skip
    return Explanation(
        state, sentence, process.product or process.name, day, key or "", process.name, facts or {}, causes
    )


def _title(process: Process, day: date, key: str) -> str:
    return " ".join(word for word in (process.product or process.name, str(day), key) if word)


def _title_of(one: Explanation) -> str:
    return " ".join(word for word in (one.product, str(one.day), one.key) if word)


def _days(first: date | None, last: date | None) -> str:
    if first is None and last is None:
        return "all days"
    return f"{first or 'the beginning'} to {last or 'the end'}"


def _clock(at: datetime | None) -> str:
    return "at an unknown time" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat()
