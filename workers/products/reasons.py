"""Why an output is to be built, and what that makes of its version: pure verdicts on what there is and should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from workers.products.plan_store import FileFacts, Process, Slot
from workers.products.versions import Part, Version, bump_of

Reason = Literal[
    "NEW_INPUT", "NEWER_INPUT", "CODE_CHANGED", "MISSING_OUTPUT", "CORRUPT_OUTPUT", "INPUT_SET_CHANGED", "FORCED"
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why, in a word and in a sentence, and which part of the version it bumps."""

    reason: Reason
    detail: str
    bump: Part


def verdict(
    process: Process, slot: Slot, files: Mapping[int, FileFacts], codes: Mapping[int, Version]
) -> Verdict | None:
    """Why a slot is stale; None when nothing is known against it but that an input is about to change.

    `files` and `codes` know the ids of both sides. The order is dbprocessing's: force, code, set of inputs, versions.
    """
    had_inputs, had_code = (
        (slot.ran_on, slot.ran_by) if process.output_product is None else (slot.had_inputs, slot.had_code)
    )
    if slot.force is not None:
        return Verdict("FORCED", f"{slot.force} bump asked for", slot.force)
    if slot.broken_id is not None:
        reason: Reason = "MISSING_OUTPUT" if slot.broken_state == "missing" else "CORRUPT_OUTPUT"
        what = "is not on disk" if reason == "MISSING_OUTPUT" else "differs from what was built"
        return Verdict(reason, f"its newest file {what}", "quality")
    if had_inputs is None and slot.output_id is None:
        told = "an input is built before it" if slot.has_pending else "asked for"
        return Verdict("NEW_INPUT", _names(files, slot.inputs) or told, "quality")
    if had_inputs is None:
        newer = [one for one in slot.inputs if slot.output_id is not None and one > slot.output_id]
        return Verdict("NEWER_INPUT", _names(files, newer), "quality") if newer else None
    if slot.code_id is not None and had_code != slot.code_id:
        old, new = codes.get(had_code or 0), codes[slot.code_id]
        return Verdict(
            "CODE_CHANGED", f"code {old or 'unknown'} -> {new}", bump_of(new.differs_in(old) if old else None)
        )
    return _by_inputs(process, slot, had_inputs, files)


def _by_inputs(process: Process, slot: Slot, had_inputs: list[int], files: Mapping[int, FileFacts]) -> Verdict | None:
    wanted = slot.inputs if process.neighbours else sorted({*slot.own, *had_inputs} & set(slot.inputs))
    before = {files[one].series: files[one] for one in had_inputs if one in files}
    after = {files[one].series: files[one] for one in wanted if one in files}
    gone = [one for series, one in before.items() if series not in after]
    come = [one for series, one in after.items() if series not in before]
    if come or gone or len(had_inputs) != len(before):
        words = [f"+ {one.filename}" for one in come] + [f"- {one.filename}" for one in gone]
        return Verdict("INPUT_SET_CHANGED", _few(words) or "inputs were forgotten", "quality")
    changed = [(before[series], one) for series, one in after.items() if before[series].id != one.id]
    if not changed:
        return None
    parts = {new.version.differs_in(old.version) for old, new in changed}
    words = [f"{new.filename} ({old.version} -> {new.version})" for old, new in changed]
    return Verdict("NEWER_INPUT", _few(words), "revision" if parts == {"revision"} else "quality")


def _names(files: Mapping[int, FileFacts], ids: list[int]) -> str:
    return _few([files[one].filename for one in ids if one in files])


def _few(words: list[str]) -> str:
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")
