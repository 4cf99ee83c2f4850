"""Coverage: which days a product has files for, what stands where there is none, and how that looks."""

from __future__ import annotations

import html.parser
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from tests.integration.products.rows import DAY, Rows
from workers import database
from workers.errors import PermanentFailure
from workers.products import coverage_pages
from workers.products.coverage import Coverage, Line, coverage
from workers.settings import Settings

HOSTILE = '<script>"&$x^2$\n'


def day(number: int) -> date:
    """The days of these tests, counted from 0."""
    return DAY + timedelta(days=number)


@pytest.fixture
def rows(conf: Settings, tmp_path: Path) -> Iterator[Rows]:
    """A builder of rows, with a mission, on a connection as the room opens it."""
    with closing(database.connect(conf.target(), purpose="tests")) as conn:
        rows = Rows(conn)
        rows.mission(tmp_path / "root")
        yield rows


def slot(rows: Rows, process: int, number: int, **columns: Any) -> int:
    """An output of a process that failed or is due."""
    start = datetime.combine(day(number), datetime.min.time(), UTC)
    stop = columns.pop("stop_at", start + timedelta(days=1, microseconds=-1))
    return rows.insert("product_slot", process_id=process, day=day(number), start_at=start, stop_at=stop, **columns)


def line(found: Coverage, product: str) -> Line:
    """A product's line."""
    return next(one for one in found.lines if one.product == product)


def states(found: Coverage, product: str) -> str:
    """A product's days as words, and versions where there are files."""
    return " ".join(f"{cell.version}*{cell.files}" if cell.files else cell.state for cell in line(found, product).cells)


def everything(rows: Rows) -> Coverage:
    """Two products: one delivered with a gap and a damaged day, one built with failures; a third has no file."""
    raw, made = rows.product("raw"), rows.product("made", level=1)
    rows.product(HOSTILE, level=2, format="x")
    process = rows.process("make", made, [raw])
    for number in (0, 1, 4):
        rows.file(raw, day(number), content=None)
    rows.file(raw, day(1), "1.2.0", content=None)
    rows.file(raw, day(2), content=None, state="corrupt")
    for key in ("H=00", "H=01", "H=02"):
        rows.file(made, day(0), "2.0.0" if key == "H=01" else "1.0.0", key=key, content=None)
    rows.file(made, day(1), content=None)
    slot(rows, process, 1, failures=2, problem="exit 1")
    slot(rows, process, 2, failures=3, problem="code make.sh ended with exit status 3", has_given_up=True)
    slot(rows, process, 4, due_at=datetime.now(UTC), reason="MISSING_OUTPUT")
    return coverage(rows.conn, rows.mission_id)


def test_each_day_says_what_is_there(rows: Rows) -> None:
    """Newest version, several files, a failure, a damaged file, one that is due, and a gap are told apart."""
    found = everything(rows)
    assert states(found, "raw") == "1.0.0*1 1.2.0*1 damaged gap 1.0.0*1"
    assert states(found, "made") == "2.0.0*3 1.0.0*1 failed gap due"
    first, second, third, *_ = line(found, "made").cells
    assert (first.state, first.lowest, second.failures, third.problem) == (
        "several", "1.0.0", 1, "code make.sh ended with exit status 3",
    )  # fmt: skip
    assert line(found, "raw").gaps == ((day(2), day(3)),) and line(found, "raw").days == 3
    assert line(found, HOSTILE).cells == () and found.span == (day(0), day(4))


def test_a_given_range_is_what_is_covered(rows: Rows) -> None:
    """With since and until every product has these days, and one end alone leaves the other to the files."""
    everything(rows)

    def words(since: date | None, until: date | None) -> str:
        return states(coverage(rows.conn, rows.mission_id, products=["raw"], since=since, until=until), "raw")

    assert words(day(-1), day(1)) == "gap 1.0.0*1 1.2.0*1"
    assert words(day(3), None) == "gap 1.0.0*1"
    assert words(None, day(1)) == "1.0.0*1 1.2.0*1"
    assert words(day(9), None) == "gap"
    with pytest.raises(PermanentFailure, match="no range"):
        words(day(1), day(0))
    with pytest.raises(PermanentFailure, match="no active product nothing"):
        coverage(rows.conn, rows.mission_id, products=["raw", "nothing"])


def test_a_file_of_a_month_covers_its_days(rows: Rows) -> None:
    """A file longer than a day covers each day of its period; one that ends at midnight does not cover the next day."""
    month, hour = rows.product("month"), rows.product("hour")
    start = datetime(2027, 2, 1, tzinfo=UTC)
    rows.file(month, start.date(), content=None, start_at=start, stop_at=datetime(2027, 3, 1, tzinfo=UTC))
    rows.file(month, date(2027, 4, 1), content=None, start_at=datetime(2027, 4, 1, tzinfo=UTC),
              stop_at=datetime(2027, 4, 30, 23, 59, 59, tzinfo=UTC))  # fmt: skip
    process = rows.process("monthly", month, [hour], timebase="MONTHLY")
    slot(rows, process, 0, stop_at=datetime(2027, 4, 1, tzinfo=UTC), failures=1)
    rows.file(hour, day(0), content=None, start_at=datetime(2027, 3, 1, 23, tzinfo=UTC),
              stop_at=datetime(2027, 3, 2, 1, tzinfo=UTC))  # fmt: skip
    found = coverage(rows.conn, rows.mission_id)
    assert states(found, "month").split() == ["1.0.0*1"] * 28 + ["failed"] * 31 + ["1.0.0*1"] * 30
    assert states(found, "hour") == "1.0.0*1"
    some = coverage(rows.conn, rows.mission_id, products=["month"], since=date(2027, 2, 27), until=date(2027, 3, 2))
    assert states(some, "month") == "1.0.0*1 1.0.0*1 failed failed"


def test_json_has_days_and_gaps(rows: Rows) -> None:
    """A script gets days as text, and each gap as its first and last day."""
    raw = next(one for one in everything(rows).as_json()["products"] if one["product"] == "raw")
    assert raw["gaps"] == [["2027-03-03", "2027-03-04"]] and raw["days_with_files"] == 3
    assert raw["days"][1] == {
        "day": "2027-03-02", "state": "present", "version": "1.2.0", "lowest": None, "files": 1, "failures": 0,
        "problem": None,
    }  # fmt: skip


class Page(html.parser.HTMLParser):
    """What a browser makes of a page: its elements, whether they close, and the cells of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        """An element ends; it must be the last that began."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Text within an element."""
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def test_the_page_shows_each_day_and_needs_nothing_else(rows: Rows) -> None:
    """Versions, gaps and failures stand in the tables as text, hostile names are text, and nothing is loaded."""
    page = Page(coverage_pages.html(everything(rows)))
    assert page.open == []
    row = page.cells.index("made", page.cells.index("31"))
    assert page.cells[row + 1 : row + 7] == [
        "3× 2.0.0",
        "1.0.0 ✗a newer build has failed",
        "✗failed",
        "–gap",
        "…due",
        "",
    ]
    assert '<script>"&$x^2$␊' in page.cells
    assert "2027-03-03 to 2027-03-04" in page.cells
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not any(name in attributes for _, attributes in page.tags for name in ("src", "href", "onclick"))
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")


def test_a_mission_without_files_has_a_page_and_a_picture(rows: Rows) -> None:
    """Nothing to show is shown, too."""
    rows.product("alone")
    found = coverage(rows.conn, rows.mission_id)
    assert "no file at all" in coverage_pages.html(found)
    assert coverage_pages.png(found).startswith(b"\x89PNG")


def test_the_picture_has_the_colours_of_the_states(rows: Rows, tmp_path: Path) -> None:
    """Its line of a product runs through the colours of that product's days, in their order."""
    (tmp_path / "picture.png").write_bytes(coverage_pages.png(everything(rows)))
    pixels = matplotlib.image.imread(tmp_path / "picture.png")
    assert pixels.shape[1] == 1200
    wanted = {
        tuple(int(fill[place : place + 2], 16) for place in (1, 3, 5)): state
        for state, (fill, _) in coverage_pages.PAINT.items() if state != "gap"
    }  # fmt: skip
    found = []
    for row in (pixels[:, :, :3] * 255).round().astype(int)[:150]:
        seen = [wanted[tuple(map(int, pixel))] for pixel in row if tuple(map(int, pixel)) in wanted]
        found.append(list(dict.fromkeys(seen)))
    assert ["present", "damaged"] in found and ["several", "present", "failed", "due"] in found


def test_without_matplotlib_the_picture_says_what_to_install(rows: Rows) -> None:
    """The room works without the extra, and only the picture asks for it."""
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from workers.products import coverage_pages as pages\n"
        "from workers.products.coverage import Coverage\n"
        "nothing = Coverage('m', None, None, ())\n"
        "assert pages.html(nothing)\n"
        "try: pages.png(nothing)\n"
        "except pages.PermanentFailure as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "pip install 'headrace[plots]'" in said
