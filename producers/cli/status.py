"""`headrace status`: one look at everything; exit 1 if something needs a person."""

from __future__ import annotations

from typing import Any

import click

from producers.cli import dispatch_status, postprocessing_status, products_status, repack_status
from producers.cli.context import DONE, SOME_FAILED, State, json_option, pass_state
from workers import queues
from workers import status as status_module
from workers.dispatch import api as dispatch
from workers.errors import ServerUnavailable
from workers.postprocessing import api as jobs
from workers.repack import api as repack
from workers.services.status import read_status
from workers.targets import CONTROL
from workers.telemetry import api as telemetry

LATE_SECONDS = 600.0


@click.command()
@json_option
@pass_state
def status(state: State) -> int:
    """What waits, runs, is late and has failed, on every host. Exit 1 if something needs a person."""
    conf = state.prepare()
    document: dict[str, Any] = status_module.control_status(conf.target())
    names = queues.all_names([host["name"] for host in document["hosts"]])
    try:
        from workers.app import queue_depths

        document["queues"] = queue_depths(names)
        document["broker"] = "reachable"
    except ServerUnavailable as error:
        document["queues"] = {}
        document["broker"] = str(error)
    document["telemetry"] = telemetry.status(conf)
    # A room's own tables say what is in order; a run that failed before is history then.
    settled = telemetry.settled(conf, [run["key"] for run in document["failing"] if run["room"] == "telemetry"])
    document["failing"] = [run for run in document["failing"] if run["key"] not in settled]
    document["products"] = products_status.of(conf)
    document["postprocessing"] = postprocessing_status.statuses(conf, jobs.names(conf))
    document["dispatch"] = dispatch_status.statuses(conf, dispatch.names(conf))
    document["repack"] = repack_status.statuses(conf, list(dict.fromkeys([CONTROL, *repack.names(conf)])))
    document["failing"] = [
        run
        for run in document["failing"]
        if not (run["room"] == "dispatch" and dispatch_status.tells_of(document["dispatch"], run["key"]))
        and not (run["room"] == "products" and document["products"]["set_up"])
        and not (run["room"] == "repack" and repack_status.tells_of(document["repack"], run["key"]))
    ]
    local = read_status(conf.data_dir)
    document["processes"] = (
        [{"name": child.name, "state": child.state, "restarts": child.restarts} for child in local.children]
        if local
        else []
    )
    document["needs_a_person"] = _needs(document)
    if state.json:
        state.emit(document)
    else:
        _print(state, document)
    return SOME_FAILED if document["needs_a_person"] else DONE


def _needs(document: dict[str, Any]) -> list[str]:
    """Every reason to wake somebody up, with what to do."""
    needs = []
    if document["broker"] != "reachable":
        needs.append(document["broker"])
    if not document["beat"]:
        needs.append("no beat sends ticks, so nothing is swept or scheduled; start `headrace beat` on any host")
    depths = document["queues"]
    for host in document["hosts"]:
        waiting = sum(depths.get(name, 0) for name in host["queues"] if name.endswith(f".{host['name']}"))
        if not host["alive"] and (waiting or host["queues"]):
            needs.append(
                f"host {host['name']} is silent for {host['silent_seconds']:.0f} s, {waiting} messages wait for it; "
                f"start `headrace worker` there, or `headrace hosts --forget {host['name']}` if it is gone for good"
            )
    room = document["telemetry"]
    for trouble in room.get("troubles", []):
        path = trouble["path"]
        error = str(trouble["error"]).removeprefix(f"{path}: ")
        needs.append(
            f"{trouble['state']} file on {trouble['host']}: {path}: {error}; "
            f"repair it, or run `headrace telemetry accept {path}` there"
        )
    needs += document["products"]["needs"]
    needs += postprocessing_status.needs_of(document["postprocessing"])
    needs += dispatch_status.needs_of(document["dispatch"])
    needs += repack_status.needs_of(document["repack"])
    told = {
        f"{one['database']}:job {trouble['job_id']}"
        for one in document["postprocessing"]
        for trouble in one.get("troubles", [])
    }
    for run in [run for run in document["failing"] if run["key"] not in told]:
        path = run["key"].split(":", 1)[-1]
        if not any(path in need for need in needs):
            reason = (run["error"] or {}).get("message", run["state"])
            what = "" if path in reason else f" {run['key']}:"
            needs.append(f"run {run['id']} {run['state']}:{what} {reason}; `headrace retry {run['id']}` tries again")
    for waiting in room.get("pending", []):
        if (waiting["lag_seconds"] or 0) > LATE_SECONDS:
            needs.append(
                f"{waiting['files']} files of {waiting['host']} wait, the oldest for {waiting['lag_seconds']:.0f} s"
            )
    for host in room.get("hosts", []):
        needs += [f"{host['host']}: {problem}" for problem in host["problems"] if not any(problem in n for n in needs)]
    return needs


def _print(state: State, document: dict[str, Any]) -> None:
    state.table(
        "Hosts",
        ("host", "state", "last heard [s]", "running", "waiting"),
        [
            (
                host["name"],
                "draining" if host["draining"] else "alive" if host["alive"] else "silent",
                host["silent_seconds"],
                host["running"],
                sum(document["queues"].get(name, 0) for name in host["queues"] if name.endswith(f".{host['name']}")),
            )
            for host in document["hosts"]
        ],
    )
    state.table(
        "Rooms (last 7 days)",
        ("room", "queued", "running", "failing"),
        [(room["room"], room["queued"], room["running"], room["failing"]) for room in document["rooms"]],
    )
    devices = document["telemetry"].get("devices", [])
    if devices:
        worst = sorted(devices, key=lambda row: -(row["lag_seconds"] or 0))[:10]
        state.table(
            "Telemetry (latest file per device)",
            ("device", "state", "records", "read at", "lag [s]"),
            [(row["device"], row["state"], row["records"], row["ingested_at"], row["lag_seconds"]) for row in worst],
        )
    products_status.print_status(state, document["products"])
    postprocessing_status.print_status(state, document["postprocessing"])
    dispatch_status.print_status(state, document["dispatch"])
    repack_status.print_status(state, document["repack"])
    for pause in document["pauses"]:
        reason = pause["reason"] or "no reason given"
        state.out(f"paused: {pause['room']} on {pause['host']} by {pause['paused_by']}: {reason}")
    state.out(f"beat: {'leading' if document['beat'] else 'none'}; broker: {document['broker']}")
    if document["needs_a_person"]:
        state.out("needs a person:")
        for need in document["needs_a_person"]:
            state.out(f"  - {need}")
    else:
        state.out("nothing needs a person")
