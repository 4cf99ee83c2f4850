"""Coverage for the eye: a web page that needs nothing else, and a picture."""

from __future__ import annotations

import io
import warnings
from calendar import month_name
from collections.abc import Iterator
from datetime import UTC, date, timedelta
from html import escape
from itertools import groupby

from workers.errors import PermanentFailure
from workers.products.coverage import Cell, Coverage, Line, State, days
from workers.products.plain_text import plain, shortened

# Each state has a sign and a word beside its colour: nobody needs to tell colours apart.
SIGNS: dict[State, tuple[str, str]] = {
    "present": ("", "one file: its version"),
    "several": ("×", "several files: how many, and their highest version"),
    "failed": ("✗", "no file: its build has failed"),
    "damaged": ("!", "no file: it is missing on disk, or corrupt"),
    "due": ("…", "no file yet: it waits to be built"),
    "gap": ("–", "no file: a gap"),
}
_EXAMPLES: dict[State, str] = {"present": "1.0.0", "several": "3× 1.0.0"}
# (fill, hatch) of the picture
PAINT: dict[State, tuple[str, str]] = {
    "present": ("#2b7a4b", ""), "several": ("#1f5f99", ""), "failed": ("#b3261e", "xxxx"),
    "damaged": ("#8a4b08", "++++"), "due": ("#f2c14e", "...."), "gap": ("#ffffff", "////"),
}  # fmt: skip
LONGEST_LABEL = 40

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f23; --paper: #fff; --line: #8a929a;
  --present: #dff2e5; --several: #dbe9f8; --failed: #f9d7d4; --damaged: #f5e0c8; --due: #fff1c9; --gap: #ececec; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --paper: #16191c; --line: #6b747c;
  --present: #1d3d2a; --several: #1c3550; --failed: #55211d; --damaged: #4a3313; --due: #4a3e12; --gap: #2c3034; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 1.5rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
.scroll { overflow-x: auto; position: relative; } .scroll:focus-visible { outline: 2px solid; }
table { border-collapse: collapse; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { border: 1px solid var(--line); padding: .15rem .4rem; text-align: left; white-space: nowrap; }
.days td, .days thead th { text-align: center; min-width: 2.6rem; font-variant-numeric: tabular-nums; font-size: .8rem;
  padding: .15rem .2rem; }
.days th[scope=row] { position: sticky; left: 0; background: var(--paper); min-width: 9rem; }
.ranges { white-space: normal; max-width: 60rem; } .ranges span { white-space: nowrap; }
.present { background: var(--present); } .several { background: var(--several); }
.failed { background: var(--failed); font-weight: 700; } .damaged { background: var(--damaged); font-weight: 700; }
.due { background: var(--due); }
.gap { background: repeating-linear-gradient(135deg, var(--gap) 0 5px, var(--paper) 5px 9px); }
.none { border: 0; }
.said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media print { body { margin: 0; } .scroll { overflow: visible; } }
"""


def html(found: Coverage) -> str:
    """The page: a summary with every gap, then a table per month with the versions of each product and day."""
    name = escape(plain(found.mission))
    span = found.span
    asked = f"{span[0]} to {span[1]}" if span else "no file at all"
    legend = "".join(
        f'<tr><td class="{state}">{_EXAMPLES.get(state, sign)}</td><td>{meaning}</td></tr>'
        for state, (sign, meaning) in SIGNS.items()
    )
    summary = "".join(_summary_row(line) for line in found.lines)
    months = "".join(_month(found, first) for first in _months(span)) if span else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Coverage of {name}</title><style>{_STYLE}</style></head>
<body><main><h1>Coverage of {name}</h1>
<p>{asked}. Days are UTC; versions are the newest ones.</p>
<div class="scroll" role="region" tabindex="0" aria-label="Summary"><table><caption>Products</caption>
<thead><tr><th scope="col">Product</th><th scope="col">Level</th><th scope="col">First day</th>
<th scope="col">Last day</th><th scope="col">Days with files</th><th scope="col">Days without</th>
<th scope="col">Gaps</th></tr></thead>
<tbody>{summary}</tbody></table></div>
<h2>How to read the days</h2><table><tbody>{legend}</tbody></table>
<p>A ✗ after a version: there is a file, and a newer build of it has failed.</p>
{months}</main></body></html>
"""


def png(found: Coverage, *, dots_per_inch: int = 100) -> bytes:
    """The picture: a line per product, coloured and hatched by state, gaps open. Needs the extra `plots`.

    Raises PermanentFailure when matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise PermanentFailure(
            "pictures need matplotlib, which is not installed: pip install 'headrace[plots]'"
        ) from error
    figure = Figure(figsize=(12, 1.9 + 0.32 * max(1, len(found.lines))), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display, whatever the environment prefers
    axes = figure.add_subplot()
    for number, line in enumerate(found.lines):
        for state, group in groupby(line.cells, key=lambda cell: cell.state):
            run = list(group)
            fill, hatch = PAINT[state]
            axes.broken_barh(
                [(_number(run[0].day), len(run))], (number - 0.38, 0.76),
                facecolors=fill, edgecolor="#7a8087" if state == "gap" else "#20242a", hatch=hatch, linewidth=0.4,
            )  # fmt: skip
    labels = [shortened(line.product, LONGEST_LABEL) for line in found.lines]
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    if span := found.span:
        axes.xaxis_date(UTC)
        axes.set_xlim(_number(span[0]), _number(span[1]) + 1)
    else:
        axes.set_xticks([])
    axes.set_title(f"Coverage of {shortened(found.mission, LONGEST_LABEL)}", loc="left", parse_math=False)
    figure.legend(
        handles=[
            Patch(facecolor=fill, hatch=hatch, edgecolor="#20242a", label=state)
            for state, (fill, hatch) in PAINT.items()
        ],
        loc="outside lower center", ncols=len(PAINT), frameon=False,
    )  # fmt: skip
    picture = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the page shows it.
        warnings.filterwarnings("ignore", message="Glyph ")
        figure.savefig(picture, format="png", dpi=dots_per_inch)
    return picture.getvalue()


def _summary_row(line: Line) -> str:
    spoken = (str(first) if first == last else f"{first} to {last}" for first, last in line.gaps)
    gaps = ", ".join(f"<span>{gap}</span>" for gap in spoken)
    return (
        f'<tr><th scope="row">{escape(plain(line.product))}</th><td>{line.level:g}</td><td>{line.first or "–"}</td>'
        f"<td>{line.last or '–'}</td><td>{line.days}</td><td>{len(line.cells) - line.days}</td>"
        f'<td class="ranges">{gaps or "none"}</td></tr>'
    )


def _months(span: tuple[date, date]) -> Iterator[date]:
    first = span[0].replace(day=1)
    while first <= span[1]:
        yield first
        first = (first + timedelta(days=31)).replace(day=1)


def _month(found: Coverage, first: date) -> str:
    last = (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    head = "".join(f'<th scope="col">{day.day}</th>' for day in days(first, last))
    rows = []
    for line in found.lines:
        if line.first is None or line.last is None or line.last < first or line.first > last:
            continue
        cells = {cell.day: cell for cell in line.cells[max(0, (first - line.first).days) :][:62]}
        tds = "".join(_day(cells.get(day)) for day in days(first, last))
        rows.append(f'<tr><th scope="row">{escape(plain(line.product))}</th>{tds}</tr>')
    if not rows:
        return ""
    title = f"{month_name[first.month]} {first.year}"
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}"><table class="days"><caption>{title}'
        f'</caption><thead><tr><th scope="col">Product</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _day(cell: Cell | None) -> str:
    if cell is None:
        return '<td class="none"></td>'
    sign, _ = SIGNS[cell.state]
    if cell.state in ("present", "several"):
        shown = f"{cell.files}{sign} {cell.version}" if sign else str(cell.version)
        said = ""
        if cell.failures:
            shown, said = f"{shown} ✗", "a newer build has failed"
    else:
        shown, said = sign, cell.state
    title = "; ".join(filter(None, (f"versions {cell.lowest} to {cell.version}" if cell.lowest else "", cell.problem)))
    hint = f' title="{escape(plain(title))}"' if title else ""
    hidden = f'<span class="said">{said}</span>' if said else ""
    return f'<td class="{cell.state}"{hint}>{shown}{hidden}</td>'


def _number(day: date) -> float:
    """A day as matplotlib counts them."""
    return float((day - date(1970, 1, 1)).days)
