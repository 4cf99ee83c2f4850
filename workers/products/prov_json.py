"""A file's lineage as a W3C PROV-JSON document, for whoever keeps or checks provenance with other tools."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from workers.products.provenance import Build, Code, Node, Tree

Record = dict[str, Any]
# A revision is no relation of its own in PROV-JSON: it is a derivation of this type.
_REVISION = "prov:Revision"


def document(tree: Tree) -> dict[str, Record]:
    """The PROV-JSON document of a tree of ancestors: files and codes as entities, builds as activities.

    A code is the plan of its builds, and the software agent that carried them out; a host is an agent, too.
    An ancestor that was forgotten stays an entity of which nothing is known but its id.
    """
    mission = quote(tree.nodes[tree.root].mission, safe="")
    prefixes = {"headrace": "urn:headrace:terms:"}
    prefixes |= {
        word: f"urn:headrace:{mission}:{word}:" for word in ("file", "build", "code", "software", "host", "relation")
    }
    parts: defaultdict[str, Record] = defaultdict(dict)
    parts["prefix"] = prefixes
    for file in tree.inputs_first():
        node = tree.nodes.get(file)
        if node is None:
            parts["entity"][f"file:{file}"] = {"prov:type": _name("headrace:File"), "headrace:state": "forgotten"}
        else:
            _add_file(parts, node, tree.links[file])
    return dict(parts)


def _add_file(parts: Mapping[str, Record], node: Node, inputs: tuple[int, ...]) -> None:
    file, build = f"file:{node.id}", node.build
    parts["entity"][file] = _entity(node)
    if build is not None:
        activity = f"build:{build.id}"
        parts["activity"][activity] = _activity(build)
        made = {"prov:entity": file, "prov:activity": activity}
        if build.finished_at:
            made["prov:time"] = _moment(build.finished_at)
        parts["wasGeneratedBy"][f"relation:made-{node.id}"] = made
        _add_agents(parts, build, node.code)
    for position, one in enumerate(inputs, 1):
        derived = {"prov:generatedEntity": file, "prov:usedEntity": f"file:{one}"}
        if build is not None:
            use = f"relation:used-{build.id}-{position}"
            parts["used"][use] = {
                "prov:activity": f"build:{build.id}", "prov:entity": f"file:{one}",
                "prov:role": {"$": f"input {position}", "type": "xsd:string"},
            }  # fmt: skip
            derived |= {
                "prov:activity": f"build:{build.id}",
                "prov:generation": f"relation:made-{node.id}",
                "prov:usage": use,
            }
        parts["wasDerivedFrom"][f"relation:derived-{node.id}-{position}"] = derived
    if (older := node.older) is not None:
        known = {"prov:label": older.filename, "headrace:version": str(older.version), "headrace:sha256": older.sha256}
        parts["entity"].setdefault(f"file:{older.id}", {"prov:type": _name("headrace:File")} | _without_none(known))
        parts["wasDerivedFrom"][f"relation:revision-{node.id}"] = {
            "prov:generatedEntity": file, "prov:usedEntity": f"file:{older.id}", "prov:type": _name(_REVISION),
        }  # fmt: skip


def _add_agents(parts: Mapping[str, Record], build: Build, code: Code | None) -> None:
    activity = f"build:{build.id}"
    if code is not None:
        digest = build.code_sha256 or code.sha256
        # One version that was edited in place is two codes here: what ran is what has these bytes.
        name = f"{code.id}-{digest[:16]}" if digest else str(code.id)
        facts = {
            "prov:label": f"{code.filename} {code.version}", "headrace:version": str(code.version),
            "headrace:sha256": digest, "headrace:process": build.process,
        }  # fmt: skip
        parts["entity"][f"code:{name}"] = _without_none(
            facts | {"prov:type": _name("prov:Plan"), "prov:location": code.path}
        )
        parts["agent"][f"software:{name}"] = _without_none(facts | {"prov:type": _name("prov:SoftwareAgent")})
        parts["wasAssociatedWith"][f"relation:code-{build.id}"] = {
            "prov:activity": activity, "prov:agent": f"software:{name}", "prov:plan": f"code:{name}",
        }  # fmt: skip
    if build.host:
        host = f"host:{quote(build.host, safe='')}"
        parts["agent"][host] = {"prov:label": build.host, "prov:type": _name("headrace:Host")}
        parts["wasAssociatedWith"][f"relation:host-{build.id}"] = {"prov:activity": activity, "prov:agent": host}


def _entity(node: Node) -> Record:
    return _without_none({
        "prov:type": _name("headrace:File"), "prov:label": node.filename, "prov:location": node.path,
        "headrace:product": node.product, "headrace:level": {"$": str(node.level), "type": "xsd:double"},
        "headrace:day": {"$": node.day.isoformat(), "type": "xsd:date"}, "headrace:key": node.key or None,
        "headrace:version": str(node.version), "headrace:state": node.state,
        "headrace:sha256": node.sha256, "headrace:sha1": node.sha1,
        "headrace:bytes": None if node.bytes is None else {"$": str(node.bytes), "type": "xsd:long"},
        "headrace:registeredAt": {"$": _moment(node.registered_at), "type": "xsd:dateTime"},
    })  # fmt: skip


def _activity(build: Build) -> Record:
    exit_status = None if build.exit_status is None else {"$": str(build.exit_status), "type": "xsd:int"}
    return _without_none({
        "prov:type": _name("headrace:Build"), "prov:label": f"{build.process} (build {build.id})",
        "prov:startTime": _moment(build.started_at),
        "prov:endTime": _moment(build.finished_at) if build.finished_at else None,
        "headrace:process": build.process, "headrace:reason": build.reason, "headrace:state": build.state,
        "headrace:exitStatus": exit_status,
        # As JSON: several values of one attribute are a set in PROV, and would lose their order.
        "headrace:command": json.dumps(build.command, ensure_ascii=False),
        "headrace:environment": json.dumps(dict(build.environment), ensure_ascii=False, sort_keys=True),
    })  # fmt: skip


def _name(qualified: str) -> dict[str, str]:
    return {"$": qualified, "type": "xsd:QName"}


def _moment(at: datetime) -> str:
    return at.isoformat()


def _without_none(record: Record) -> Record:
    return {name: value for name, value in record.items() if value is not None}
