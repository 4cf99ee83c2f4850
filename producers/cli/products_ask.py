"""`headrace products provenance`, `coverage`, `graph` and `show`: what is there, and how it came to be."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import click

from producers.cli import products_choice as choice
from producers.cli.context import DONE, SOME_FAILED, State, json_option, pass_state
from producers.cli.products_options import days_options
from workers.errors import PermanentFailure
from workers.products import api

_COVERAGE = ("product", "level", "first day", "last day", "days", "without", "failed", "due", "gaps")
_PROOF = ("kind", "file", "result", "problem")


@click.command()
@click.argument("file", required=False)
@choice.mission_choice
@click.option("--up", "direction", flag_value="up", default="up", help="What it was made of (default).")
@click.option("--down", "direction", flag_value="down", help="What was made of it.")
@click.option("--prov-json", is_flag=True, help="As a W3C PROV-JSON document.")
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="Write a tar file that proves it elsewhere; into a folder, too."
)
@click.option(
    "--verify", is_flag=False, flag_value="", metavar="[PATH]",
    help="Build it anew in a scratch folder, and compare; or do so with the bundle PATH. Its codes are run.",
)  # fmt: skip
@click.option("--scratch", type=click.Path(path_type=Path), help="The folder in which --verify works.")
@json_option
@pass_state
def provenance(
    state: State, file: str | None, mission: str | None, direction: str, prov_json: bool, bundle: Path | None,
    verify: str | None, scratch: Path | None,
) -> int:  # fmt: skip
    """What FILE (a name, a path or an id) was made of and by, as a tree; exit 1 if --verify does not prove it."""
    if verify is not None and file is None:
        if _is_tar(verify):
            packed = Path(verify)
            return _proven(state, lambda at, limits: api.verify_bundle(packed, at, limits=limits), scratch)
        file, verify = verify or None, ""
    if file is None:
        raise click.UsageError("name a FILE, or a bundle with --verify")
    if sum((direction == "down", prov_json, bundle is not None, verify is not None)) > 1:
        raise click.UsageError("--down, --prov-json, --bundle and --verify are said one at a time")
    if verify:
        raise click.UsageError(f"{verify} is for --verify without FILE; --scratch names the folder to work in")
    if verify is not None:
        return _verified(state, file, mission, scratch)
    with choice.asking(state) as conn:
        found = choice.file(conn, file, mission)
        if bundle is not None:
            try:
                target = api.write_bundle(conn, found, bundle)
            except OSError as error:
                raise PermanentFailure(f"{bundle} cannot be written: {error.strerror}; name another place") from error
            count = target.stat().st_size
            if state.json:
                state.emit({"bundle": str(target), "bytes": count})
            else:
                state.out(f"{target}: {choice.size(count)}; it is proven by `headrace products provenance --verify`")
            return DONE
        tree = api.lineage(conn, found) if direction == "up" else api.descendants(conn, found)
    if prov_json:
        state.out(json.dumps(api.prov_document(tree), indent=1, ensure_ascii=False))
    elif state.json:
        state.emit(_tree_facts(tree, direction))
    else:
        for line in tree.lines():
            state.out("  " * line.depth + _told(line))
    return DONE


@click.command()
@choice.mission_choice
@choice.products_option
@days_options
@click.option("--html", type=click.Path(path_type=Path), help="Write a web page that needs nothing else.")
@click.option("--png", type=click.Path(path_type=Path), help="Write a picture (needs matplotlib).")
@json_option
@pass_state
def coverage(
    state: State, mission: str | None, products: tuple[str, ...], since: date | None, until: date | None,
    html: Path | None, png: Path | None,
) -> int:  # fmt: skip
    """Which product has a file for which day: gaps, failures, and what is due."""
    choice.check_days(since, until)
    with choice.asking(state) as conn:
        one = choice.only(conn, mission, products)
        found = api.covered(conn, one.id, products=products or None, since=since, until=until)
    if html is not None:
        choice.write(html, api.coverage_page(found))
    if png is not None:
        choice.write(png, api.coverage_picture(found))
    if state.json:
        state.emit(found.as_json())
    elif found.lines:
        rows = []
        for line in found.lines:
            states = Counter(cell.state for cell in line.cells)
            rows.append((
                api.plain(line.product), f"{line.level:g}", line.first, line.last, line.days,
                len(line.cells) - line.days, states["failed"], states["due"], choice.stretches(line.gaps) or "none",
            ))  # fmt: skip
        state.table(f"Coverage of {api.plain(found.mission)}", _COVERAGE, rows)
    else:
        state.out(f"mission {api.plain(found.mission)} has no active product")
    for path in (html, png):
        if path is not None:
            state.say(f"wrote {path}")
    return DONE


@click.command()
@choice.mission_choice
@click.option("--svg", type=click.Path(path_type=Path), help="Write a picture.")
@click.option("--dot", type=click.Path(path_type=Path), help="Write a file for Graphviz (default: on stdout).")
@json_option
@pass_state
def graph(state: State, mission: str | None, svg: Path | None, dot: Path | None) -> int:
    """What is made of what, with how many outputs of each process are stale, due and failed."""
    with choice.asking(state) as conn:
        one = choice.only(conn, mission)
        found = api.graph(conn, one.id)
        counts = _counts([api.step_facts(step) for step in api.plan(conn, one)])
    if svg is not None:
        choice.write(svg, api.graph_as_svg(found, counts))
    if dot is not None:
        choice.write(dot, api.graph_as_dot(found, counts))
    if state.json:
        state.emit(asdict(found) | {"counts": counts})
    elif svg is None and dot is None:
        state.out(api.graph_as_dot(found, counts).rstrip("\n"))
    for path in (svg, dot):
        if path is not None:
            state.say(f"wrote {path}")
    return DONE


@click.command()
@click.argument("mission", required=False)
@json_option
@pass_state
def show(state: State, mission: str | None) -> int:
    """MISSION as it is loaded, as a YAML file that `load` takes."""
    with choice.asking(state) as conn:
        name = choice.only(conn, mission).name
        loaded = api.read_back(conn, name)
    text = api.as_yaml(loaded)
    if state.json:
        state.emit({"mission": name, "yaml": text})
    else:
        state.out(text.rstrip("\n"))
    return DONE


def _counts(steps: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """How many outputs of each process are due, are stale and wait for one that is due, or failed for good."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for step in steps:
        found[step["process"]]["stale" if step["state"] == "waits" else step["state"]] += 1
    return {name: dict(counts) for name, counts in found.items()}


def _is_tar(text: str) -> bool:
    try:
        return bool(text) and Path(text).is_file() and tarfile.is_tarfile(text)
    except OSError:
        return False


def _verified(state: State, text: str, mission: str | None, scratch: Path | None) -> int:
    with choice.changing(state) as conn:
        found = choice.file(conn, text, mission)
        default = api.scratch_root(api.mission_of_file(conn, found), state.settings)
        conn.rollback()
        return _proven(
            state,
            lambda at, limits: api.verify_file(conn, found, at, limits=limits),
            scratch or Path(os.fsdecode(default)),
        )


def _proven(state: State, verify: Callable[[Path, api.ProofLimits], api.ProofVerdict], scratch: Path | None) -> int:
    rules = state.settings.products
    limits = api.ProofLimits(rules.timeout_seconds, rules.code_memory_bytes, rules.output_bytes)
    scratch = scratch or Path(tempfile.gettempdir())
    try:
        verdict = verify(scratch, limits)
    except OSError as error:
        reason = f"{error.strerror}{f' ({error.filename})' if error.filename else ''}"
        raise PermanentFailure(f"nothing was proven: {reason}; --scratch names a folder to work in") from error
    if state.json:
        state.emit(asdict(verdict) | {"is_proven": verdict.is_proven, "problems": verdict.problems})
    else:
        rows = [(one.kind, api.plain(one.filename), one.result, api.plain(one.problem or "-")) for one in verdict.steps]
        state.table("Proof", _PROOF, rows)
        word = "is proven: every file came out with its recorded bytes" if verdict.is_proven else "is not proven"
        state.out(f"{api.plain(verdict.filename)} {word}")
    if verdict.folder is not None:
        state.say(f"what was built is in {verdict.folder}; remove it when you have seen it")
    return DONE if verdict.is_proven else SOME_FAILED


def _tree_facts(tree: api.Lineage, direction: str) -> dict[str, Any]:
    links = "inputs" if direction == "up" else "outputs"
    return {
        "file": tree.root,
        "direction": direction,
        "files": [
            asdict(tree.nodes[one]) | {links: tree.links[one]}
            for one in dict.fromkeys(line.id for line in tree.lines())
            if one in tree.nodes
        ],
        "forgotten": tree.forgotten,
    }


def _told(line: api.LineageLine) -> str:
    node = line.node
    if node is None:
        return f"file {line.id}: forgotten"
    where = " ".join(str(word) for word in (node.product, node.day, node.key) if word)
    told = f"{api.plain(node.filename)} (id {line.id}: {where}, {node.state})"
    if line.is_repeated:
        return f"{told}, see above"
    if node.build is None:
        return f"{told}, delivered {node.registered_at:%Y-%m-%d %H:%M:%S}"
    code = f"{node.code.filename} {node.code.version}" if node.code is not None else "a code that is not known"
    build = node.build
    return (
        f"{told}, by {code} in build {build.id} on {build.host}, {build.started_at:%Y-%m-%d %H:%M:%S}: {build.reason}"
    )
