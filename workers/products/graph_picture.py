"""The graph of a mission's products and processes, as Graphviz' DOT and as an SVG that needs no other program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from unicodedata import east_asian_width
from xml.sax.saxutils import escape, quoteattr

from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products import ask_store
from workers.products.graph_layout import Box, layout
from workers.products.plain_text import plain, shortened

Counts = Mapping[str, Mapping[str, int]]
"""By process name: how many of its outputs are `failed`, `stale`, `due`; what is not named is 0."""

# Of a state: its sign, the word, fill and line; the first one that a process has is its box's colour.
STATES = {
    "failed": ("✗", "failed", "#fbdedb", "#b3261e"),
    "stale": ("▲", "stale", "#fff0c7", "#8a6100"),
    "due": ("●", "due", "#dceafa", "#1f5f99"),
}
FINE = ("✓", "up to date", "#e3f3e8", "#2b7a4b")
UNKNOWN = ("", "", "#f1f3f4", "#5f6368")
LONGEST_LABEL = 44
FONT_PIXELS, LINE_PIXELS, PADDING = 13.0, 17.0, 9.0


@dataclass(frozen=True, slots=True)
class Product:
    """A product; `level` as its definition says."""

    name: str
    level: float


@dataclass(frozen=True, slots=True)
class Process:
    """A process; `codes` are the versions in force as a text, `output` is None for one that is run for its effects."""

    name: str
    timebase: str
    output: str | None
    codes: str


@dataclass(frozen=True, slots=True)
class Input:
    """A product that a process reads. `preference` above 0: instead of another one that is not there."""

    product: str
    process: str
    is_required: bool
    preference: int
    yesterday: int
    tomorrow: int

    @property
    def words(self) -> str:
        """What is special about it."""
        window = f"{self.yesterday} days before and {self.tomorrow} after" if self.yesterday or self.tomorrow else ""
        instead = f"choice {self.preference + 1}" if self.preference else ""
        return ", ".join(filter(None, ("" if self.is_required else "optional", instead, window)))


@dataclass(frozen=True, slots=True)
class Graph:
    """What a mission makes of what; only what is active."""

    mission: str
    products: tuple[Product, ...]
    processes: tuple[Process, ...]
    inputs: tuple[Input, ...]


def read(conn: Connection, mission: int) -> Graph:
    """The graph of a mission. Raises PermanentFailure when there is none of this id."""
    name = ask_store.mission_name(conn, mission)
    if name is None:
        raise PermanentFailure(f"there is no mission with the id {mission}")
    products = {row["id"]: row for row in ask_store.graph_products(conn, mission)}
    processes = {row["id"]: row for row in ask_store.graph_processes(conn, mission)}
    return Graph(
        name,
        tuple(Product(row["name"], row["level"]) for row in products.values()),
        tuple(
            Process(
                row["name"], row["timebase"], products.get(row["output_product"], {}).get("name"), row["codes"] or ""
            )
            for row in processes.values()
        ),
        tuple(
            Input(
                products[row["product_id"]]["name"], processes[row["process_id"]]["name"],
                row["is_required"], row["preference"], row["yesterday"], row["tomorrow"],
            )
            for row in ask_store.graph_inputs(conn, mission)
            if row["product_id"] in products
        ),
    )  # fmt: skip


def dot(graph: Graph, counts: Counts | None = None) -> str:
    """The graph for Graphviz. Without counts no state is shown."""
    lines = [
        f"digraph {_quoted(graph.mission)} {{", "  rankdir=LR;", '  node [fontname="sans-serif", fontsize=11];',
    ]  # fmt: skip
    lines += [
        f"  {_quoted('product ' + one.name)} [shape=box, label={_quoted(one.name, f'level {one.level:g}')}];"
        for one in graph.products
    ]
    for process in graph.processes:
        _, _, fill, line = _state(process, counts)
        lines.append(
            f'  {_quoted("process " + process.name)} [shape=box, style="rounded,filled", fillcolor={_quoted(fill)}, '
            f"color={_quoted(line)}, label={_quoted(*_process_lines(process, counts))}];"
        )
        if process.output is not None:
            lines.append(f"  {_quoted('process ' + process.name)} -> {_quoted('product ' + process.output)};")
    for one in graph.inputs:
        style = [] if one.is_required and not one.preference else ["style=dashed"]
        if one.words:
            style.append(f"label={_quoted(one.words)}")
        edge = f"{_quoted('product ' + one.product)} -> {_quoted('process ' + one.process)}"
        lines.append(f"  {edge} [{', '.join(style)}];" if style else f"  {edge};")
    return "\n".join([*lines, "}", ""])


def svg(graph: Graph, counts: Counts | None = None) -> str:
    """The graph as a picture. A process has a colour, a sign and words for its state; without counts none of them."""
    texts = {f"product {one.name}": [one.name, f"level {one.level:g}"] for one in graph.products}
    texts |= {f"process {one.name}": _process_lines(one, counts) for one in graph.processes}
    edges = {(f"product {one.product}", f"process {one.process}"): one for one in graph.inputs}
    made = [(f"process {one.name}", f"product {one.output}") for one in graph.processes if one.output is not None]
    sizes = {
        node: (
            2 * PADDING + max(_width(shortened(line, LONGEST_LABEL)) for line in lines),
            2 * PADDING + LINE_PIXELS * len(lines) - 4,
        )
        for node, lines in texts.items()
    }
    plan = layout(sizes, [*edges, *made])
    title = f"Products and processes of {plain(graph.mission)}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{plan.width:.0f}" height="{plan.height:.0f}" '
        f'viewBox="0 0 {plan.width:.0f} {plan.height:.0f}" role="img" aria-label={quoteattr(title)} '
        f'font-family="DejaVu Sans, Verdana, sans-serif" font-size="{FONT_PIXELS:g}">',
        f"<title>{escape(title)}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#5f6368"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for edge, path in plan.paths.items():
        one = edges.get(edge)
        dash = ' stroke-dasharray="6 4"' if one is not None and (not one.is_required or one.preference) else ""
        words = f"<title>{escape(one.words)}</title>" if one is not None and one.words else ""
        parts.append(
            f'<path class="edge" d="{path}" fill="none" stroke="#5f6368" stroke-width="1.3"{dash} '
            f'marker-end="url(#tip)">{words}</path>'
        )
    for product in graph.products:
        node = f"product {product.name}"
        parts.append(_drawn(plan.boxes[node], product.name, texts[node], "#ffffff", "#3c4043", corner=0))
    for process in graph.processes:
        node, (_, _, fill, line) = f"process {process.name}", _state(process, counts)
        parts.append(_drawn(plan.boxes[node], process.name, texts[node], fill, line, corner=10))
    return "\n".join([*parts, "</svg>", ""])


def _drawn(box: Box, name: str, lines: list[str], fill: str, line: str, *, corner: int) -> str:
    texts = "".join(
        f'<text x="{box.x + box.width / 2:.1f}" y="{box.y + PADDING + 10 + LINE_PIXELS * number:.1f}" '
        f'text-anchor="middle" fill="#1b1f23" font-weight="{weight}">'
        f"{escape(shortened(text, LONGEST_LABEL))}</text>"
        for number, (text, weight) in enumerate(zip(lines, ("bold", *["normal"] * len(lines)), strict=False))
    )
    return (
        f'<g class="node"><title>{escape(plain(name))}</title><rect x="{box.x:.1f}" y="{box.y:.1f}" '
        f'width="{box.width:.1f}" height="{box.height:.1f}" rx="{corner}" fill="{fill}" stroke="{line}" '
        f'stroke-width="1.6"/>{texts}</g>'
    )


def _state(process: Process, counts: Counts | None) -> tuple[str, str, str, str]:
    if counts is None:
        return UNKNOWN
    of = counts.get(process.name, {})
    return next((look for word, look in STATES.items() if of.get(word)), FINE)


def _process_lines(process: Process, counts: Counts | None) -> list[str]:
    lines = [process.name, " ".join(filter(None, (process.timebase, process.codes or "no code")))]
    if counts is not None:
        of = counts.get(process.name, {})
        said = [f"{sign} {of[word]:,} {text}" for word, (sign, text, _, _) in STATES.items() if of.get(word)]
        lines.append("  ".join(said) or " ".join(FINE[:2]))
    return lines


def _quoted(*lines: str) -> str:
    """A DOT string; its only escapes are the quote, and the backslash because labels give it a meaning."""
    return '"' + r"\n".join(plain(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines) + '"'


def _width(text: str) -> float:
    """About so many pixels, rather too many: bold DejaVu Sans is the widest of the fonts that are asked for."""
    wide = sum(1.1 if east_asian_width(c) in "WF" or c in "MWmw@%—" else 0.7 for c in text)
    return wide * FONT_PIXELS
