"""Places for the boxes of a graph, layer by layer from left to right, and lines between them that cross no box."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

SWEEPS = 12
GAP_X, GAP_Y, MARGIN = 70.0, 18.0, 20.0
LANE = 12.0  # height of a line that passes a layer, and between lines below everything


@dataclass(frozen=True, slots=True)
class Box:
    """Where a node lies: its upper left corner and its size, in pixels."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> tuple[float, float]:
        """Where lines end."""
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> tuple[float, float]:
        """Where lines begin."""
        return self.x + self.width, self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes by node, the path of each edge as SVG writes it, and the size of it all in pixels."""

    boxes: Mapping[str, Box]
    paths: Mapping[tuple[str, str], str]
    width: float
    height: float


def layout(sizes: Mapping[str, tuple[float, float]], edges: Sequence[tuple[str, str]]) -> Layout:
    """Lay out nodes of these sizes (width, height).

    A node is one layer behind the last of those that lead to it. An edge that closes a circle runs back below it all.
    """
    backward = _closing(sizes, edges)
    forward = [edge for edge in dict.fromkeys(edges) if edge not in backward]
    layer = _layers(sizes, forward)
    columns: list[list[str]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for node, number in layer.items():
        columns[number].append(node)
    # An edge over several layers passes each of those between through a place of its own: there is no box.
    chains: dict[tuple[str, str], list[str]] = {}
    heights = {node: size[1] for node, size in sizes.items()}
    for start, end in forward:
        chain = [start]
        for number in range(layer[start] + 1, layer[end]):
            chain.append(f"\0{start}\0{end}\0{number}")
            heights[chain[-1]] = LANE
            columns[number].append(chain[-1])
        chains[start, end] = [*chain, end]
    links = [pair for chain in chains.values() for pair in pairwise(chain)]
    _order(columns, links)
    middles = _middles(columns, links, heights)

    lefts, widths, x = [], [], MARGIN
    for column in columns:
        lefts.append(x)
        widths.append(max((sizes[node][0] for node in column if node in sizes), default=0.0))
        # Many lines into one layer need room to bend.
        x += widths[-1] + GAP_X + 2 * min(len(column), 20)
    top = min((middles[node] - heights[node] / 2 for node in middles), default=0.0) - MARGIN
    bottom = max((middles[node] + heights[node] / 2 for node in middles), default=0.0) - top
    boxes = {
        node: Box(lefts[layer[node]], middles[node] - top - height / 2, widths[layer[node]], height)
        for node, (_, height) in sizes.items()
    }
    paths = {}
    for edge, chain in chains.items():
        steps = []
        for node in chain:
            if node in boxes:
                steps += [boxes[node].left, boxes[node].right]
            else:
                number, y = int(node.rpartition("\0")[2]), middles[node] - top
                steps += [(lefts[number], y), (lefts[number] + widths[number], y)]
        paths[edge] = _curve(steps[1:-1])
    for number, (start, end) in enumerate(sorted(backward), 1):
        paths[start, end] = _around(boxes[start].right, boxes[end].left, bottom + LANE * number, number)
    return Layout(boxes, paths, max(x - GAP_X + MARGIN, 2 * MARGIN), bottom + LANE * len(backward) + MARGIN)


def _closing(nodes: Mapping[str, object], edges: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Edges that close a circle when the graph is walked in the nodes' order."""
    after = defaultdict(list)
    for start, end in edges:
        after[start].append(end)
    closing: set[tuple[str, str]] = set()
    done: set[str] = set()
    for first in nodes:
        if first in done:
            continue
        path, rests = [first], [iter(after[first])]
        while path:
            following = next(rests[-1], None)
            if following is None:
                done.add(path.pop())
                rests.pop()
            elif following in path:
                closing.add((path[-1], following))
            elif following not in done:
                path.append(following)
                rests.append(iter(after[following]))
    return closing


def _layers(nodes: Mapping[str, object], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    layer = dict.fromkeys(nodes, 0)
    for _ in nodes:
        moved = False
        for start, end in edges:
            if layer[end] <= layer[start]:
                layer[end], moved = layer[start] + 1, True
        if not moved:
            break
    return layer


def _order(columns: list[list[str]], links: Sequence[tuple[str, str]]) -> None:
    """Sort each layer by the mean place of its neighbours, forth and back, and keep the order with fewest crossings."""
    best = [list(column) for column in columns]
    fewest = _crossings(columns, links)
    for sweep in range(SWEEPS):
        is_forth = sweep % 2 == 0
        near: defaultdict[str, list[str]] = defaultdict(list)
        for start, end in links:
            near[end if is_forth else start].append(start if is_forth else end)
        for column in columns if is_forth else reversed(columns):
            place = {node: number for one in columns for number, node in enumerate(one)}
            key = {
                node: sum(place[one] for one in near[node]) / len(near[node]) if near[node] else place[node]
                for node in column
            }
            column.sort(key=lambda node: key[node])
        if (crossings := _crossings(columns, links)) < fewest:
            best, fewest = [list(column) for column in columns], crossings
    for column, ordered in zip(columns, best, strict=True):
        column[:] = ordered


def _crossings(columns: Sequence[Sequence[str]], links: Sequence[tuple[str, str]]) -> int:
    place = {node: (number, row) for number, column in enumerate(columns) for row, node in enumerate(column)}
    between: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for start, end in links:
        between[place[start][0]].append((place[start][1], place[end][1]))
    return sum(
        (one[0] - other[0]) * (one[1] - other[1]) < 0
        for pairs in between.values() for number, one in enumerate(pairs) for other in pairs[:number]
    )  # fmt: skip


def _middles(
    columns: Sequence[Sequence[str]], links: Sequence[tuple[str, str]], heights: Mapping[str, float]
) -> dict[str, float]:
    """The height at which each node's middle lies: near its neighbours', in the layer's order and with room between."""
    near: defaultdict[str, list[str]] = defaultdict(list)
    for start, end in links:
        near[start].append(end)
        near[end].append(start)
    middles: dict[str, float] = {}
    for column in columns:
        y = 0.0
        for node in column:
            middles[node] = y + heights[node] / 2
            y += heights[node] + GAP_Y
    for sweep in range(SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            wished = {
                node: sum(middles[one] for one in near[node]) / len(near[node]) if near[node] else middles[node]
                for node in column
            }
            down = _spread(column, wished, heights)
            up = [-y for y in _spread(column[::-1], {node: -y for node, y in wished.items()}, heights)][::-1]
            # Pushed down it leans below, pushed up above; between the two all have room, as both have.
            for node, one, other in zip(column, down, up, strict=True):
                middles[node] = (one + other) / 2
    return middles


def _spread(column: Sequence[str], wished: Mapping[str, float], heights: Mapping[str, float]) -> list[float]:
    found: list[float] = []
    for number, node in enumerate(column):
        least = wished[node]
        if number:
            above = column[number - 1]
            least = max(least, found[-1] + heights[above] / 2 + GAP_Y + heights[node] / 2)
        found.append(least)
    return found


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """Bends between layers, straight lines through them."""
    path = [f"M{points[0][0]:.1f},{points[0][1]:.1f}"]
    for number, ((x, y), (to_x, to_y)) in enumerate(pairwise(points)):
        if number % 2:
            path.append(f"L{to_x:.1f},{to_y:.1f}")
        else:
            half = (x + to_x) / 2
            path.append(f"C{half:.1f},{y:.1f} {half:.1f},{to_y:.1f} {to_x:.1f},{to_y:.1f}")
    return " ".join(path)


def _around(start: tuple[float, float], end: tuple[float, float], below: float, number: int) -> str:
    out = 8.0 + 4 * (number % 5)
    (x, y), (to_x, to_y) = start, end
    return f"M{x:.1f},{y:.1f} H{x + out:.1f} V{below:.1f} H{to_x - out:.1f} V{to_y:.1f} H{to_x:.1f}"
