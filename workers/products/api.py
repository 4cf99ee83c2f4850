"""What others may ask of the products room, and ask it to do: definitions, plans, what is due, how it stands."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from workers.database import Connection
from workers.products import (
    ask_store,
    bundle,
    checking,
    cleaning,
    coverage_pages,
    definition,
    estimating,
    explaining,
    forgetting,
    graph_picture,
    keep_store,
    latest,
    legacy_database,
    loading,
    looking,
    mission_file,
    places,
    plain_text,
    plan_store,
    planning,
    proof,
    prov_json,
    provenance,
    quarantine,
    release_export,
    releases,
    requests,
    room,
    status,
    store,
    validity,
    versions,
)
from workers.products import coverage as covering
from workers.products.loading import Change
from workers.products.planning import Step
from workers.settings import Settings
from workers.targets import Target

connection = room.connection
target = room.target
due = looking.due
incoming_folders = looking.incoming_folders
forget_old = looking.forget_old
read_mission = loading.read_mission
as_yaml = mission_file.as_yaml
mission = plan_store.mission
missions = plan_store.missions
plan = planning.plan
quarantined = store.quarantined
give_back = quarantine.retry
discard = quarantine.discard
status_of = status.status
problems = validity.problems
builds = status.builds
approve = loading.approve
read_back = loading.read_back
known_products = store.products
known_processes = plan_store.processes
require_products = keep_store.require_products
Mission = plan_store.Mission

lineage = provenance.tree
descendants = provenance.descendants
Lineage = provenance.Tree
LineageLine = provenance.Line
prov_document = prov_json.document
write_bundle = bundle.write
verify_bundle = bundle.verify
verify_file = bundle.verify_file
ProofLimits = proof.Limits
ProofVerdict = proof.Verdict
scratch_root = places.scratch_root
plain = plain_text.plain

covered = covering.coverage
Coverage = covering.Coverage
coverage_page = coverage_pages.html
coverage_picture = coverage_pages.png
graph = graph_picture.read
graph_as_dot = graph_picture.dot
graph_as_svg = graph_picture.svg

check_files = checking.check
CheckReport = checking.Report
tag_release = releases.tag
released = releases.listing
release = releases.find
files_of_release = releases.files
verify_release = releases.verify
export_release = release_export.export
Release = releases.Release
to_clean = cleaning.plan
clean = cleaning.clean
to_forget = forgetting.plan
forget = forgetting.forget
clear_dependencies = forgetting.clear_dependencies
latest_links = latest.latest_links

reprocess = requests.reprocess
backfill = requests.backfill
retry = requests.retry
cancel_request = requests.cancel
progress_of = requests.progress
requests_of = requests.listing
Requested = requests.Requested
RequestProgress = requests.Progress

explain_file = explaining.explain_file
explain_output = explaining.explain_output
Explanation = explaining.Explanation
waiting = explaining.waiting
impact = estimating.impact
Impact = estimating.Impact
parse_version = versions.parse

read_legacy = legacy_database.read
import_legacy = legacy_database.import_into


def load(conn: Connection, mission: definition.Mission, *, host: str, by: str, dry_run: bool = False) -> list[Change]:
    """Make the tables say what a mission's file says; what changes, or would. It is looked over soon after the commit.

    The caller commits. Raises SettingsError for a mission that cannot work.
    """
    changes = loading.load(conn, mission, host=host, by=by, dry_run=dry_run)
    if not dry_run:
        store.SQL["plan_again"].run(conn, {"name": mission.name})
    return changes


def migrations_of(settings: Settings) -> list[tuple[Target, str]]:
    """The database of the room with each set of migrations that it needs."""
    return [(room.target(settings), name) for name in room.ROOMS]


def seen_here(conn: Connection, settings: Settings, name: str | None) -> list[str]:
    """The missions that this host sees, or the named one. Raises PermanentFailure for an unknown name."""
    if name is not None:
        return [plan_store.mission(conn, name).name]
    return [one.name for one in plan_store.missions(conn) if one.is_seen_by(settings.host)]


def step_facts(step: Step) -> dict[str, Any]:
    """A step of a plan as JSON has it."""
    slot = step.slot
    return {
        "process": step.process.name,
        "product": step.process.product,
        "timebase": step.process.timebase,
        "day": slot.day,
        "key": slot.key,
        "reason": step.verdict.reason,
        "detail": step.verdict.detail,
        "state": "waits" if step.waits else "failed" if step.is_given_up else "due",
        "inputs": len(slot.inputs),
        "problem": slot.problem if step.is_given_up else None,
    }


def troubles(conn: Connection, missions: Collection[str]) -> list[str]:
    """Outputs of these missions that failed and are not tried again by themselves, a sentence each."""
    rows = status.SQL["troubles"].records(conn, {"limit": 1000})
    return [
        f"{' '.join(str(word) for word in (row['product'], row['day'], row['key']) if word)} failed: {row['problem']};"
        " it is tried again when something changes, or by"
        f" `headrace products retry {row['product']} --day {row['day']}`"
        for row in rows
        if row["mission"] in missions
    ]


def open_work(conn: Connection, missions: Collection[str]) -> tuple[int, int]:
    """(outputs that are due or wait for their next attempt, builds that run) of these missions."""
    rows = [row for row in status.SQL["missions"].records(conn) if row["mission"] in missions]
    return sum(row["due"] + row["retrying"] for row in rows), sum(row["building"] for row in rows)


def find_files(conn: Connection, text: str, *, mission: str | None = None) -> list[int]:
    """Ids of the files, of one mission or of any, that may be meant by a name, a path or an id in text form."""
    found = provenance.find(conn, text)
    if mission is None:
        return found
    of = {row["id"]: row["mission"] for row in ask_store.facts(conn, found)}
    return [one for one in found if of[one] == mission]


def mission_of_file(conn: Connection, file: int) -> Mission:
    """The mission that a file belongs to."""
    return plan_store.mission(conn, ask_store.facts(conn, [file])[0]["mission"])


def held_codes(conn: Connection, missions: Collection[str]) -> list[dict[str, Any]]:
    """Codes of these missions that are not used until a person approves them, oldest first."""
    return [row for row in status.SQL["held_codes"].records(conn) if row["mission"] in missions]
