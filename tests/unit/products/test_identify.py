"""What a file is by its name: product, day, key, period and version; and what a misnamed one was meant to be."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.products.identify import Covers, Identity, Known, Names
from workers.products.templates import Template, TemplateError, date_fields
from workers.products.versions import Version

L0 = "demo_L0_{Y}{m}{d}_v{VERSION}.dat"
MICROSECOND = timedelta(microseconds=1)


def only(template: str, filename: str, covers: Covers | None = None) -> Identity | None:
    """What a file is where there is one product."""
    found = Names([Known(7, "one", template, covers)]).candidates(filename)
    assert len(found) <= 1
    return found[0] if found else None


def test_a_name_tells_product_day_and_version() -> None:
    """A daily file is of its day from the first to the last microsecond."""
    assert only(L0, "demo_L0_20200229_v1.10.3.dat") == Identity(
        product_id=7,
        product="one",
        day=date(2020, 2, 29),
        key="",
        start_at=datetime(2020, 2, 29, tzinfo=UTC),
        stop_at=datetime(2020, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC),
        version=Version(1, 10, 3),
    )


@pytest.mark.parametrize(
    ("text", "name", "day"),
    [
        ("{DATE}_v{VERSION}", "20200229_v1.0.0", date(2020, 2, 29)),
        ("{datetime}_v{VERSION}", "20200229_v1.0.0", date(2020, 2, 29)),
        ("{Y}{j}_v{VERSION}", "2020366_v1.0.0", date(2020, 12, 31)),
        ("{y}{j}_v{VERSION}", "69001_v1.0.0", date(2069, 1, 1)),
        ("{y}{j}_v{VERSION}", "70001_v1.0.0", date(1970, 1, 1)),
        ("{Y}{b}{d}_v{VERSION}", "2020Dec31_v1.0.0", date(2020, 12, 31)),
        ("{d}{m}{y}_v{VERSION}", "310199_v1.0.0", date(1999, 1, 31)),
        ("{Y}-{m}_v{VERSION}", "2020-12_v1.0.0", date(2020, 12, 1)),
        ("{Y}_v{VERSION}", "2020_v1.0.0", date(2020, 1, 1)),
        ("{Y}/{Y}{m}{d}_{j}_{DATE}_v{VERSION}", "2020/20201231_366_20201231_v1.0.0", date(2020, 12, 31)),
        ("{Y}{m}{d}_v{VERSION}", "20210229_v1.0.0", None),
        ("{Y}{m}{d}_v{VERSION}", "20201399_v1.0.0", None),
        ("{Y}{j}_v{VERSION}", "2021366_v1.0.0", None),
        ("{DATE}_{j}_v{VERSION}", "20200102_003_v1.0.0", None),
        ("{DATE}_{y}_v{VERSION}", "20200102_19_v1.0.0", None),
        ("{Y}{m}{d}_v{VERSION}", "20200101_v0.1.0", None),
        ("{Y}{m}{d}", "20200101", None),
        ("{m}{d}_v{VERSION}", "0101_v1.0.0", None),
        ("{Y}_{d}_v{VERSION}", "2020_01_v1.0.0", None),
    ],
)
def test_each_way_to_write_a_day(text: str, name: str, day: date | None) -> None:
    """Impossible dates, dates that contradict each other, and names without date or version are no candidates."""
    found = only(text, name)
    assert (found and found.day) == day


@given(st.dates(date(1970, 1, 1), date(2069, 12, 31)), st.sampled_from(["Ymd", "Ybd", "Yj", "yj", "ymd", "ybd"]))
@settings(max_examples=100)
def test_every_day_is_read_as_it_is_written(day: date, fields: str) -> None:
    """For all days of a century around now, however a format puts them."""
    text = "x_" + "_".join(f"{{{field}}}" for field in fields) + "_v{VERSION}"
    found = only(text, Template(text).fill(date_fields(day) | {"VERSION": "1.0.0"}))
    assert found is not None and found.day == day


@pytest.mark.parametrize(
    ("text", "covers", "start", "stop"),
    [
        ("{Y}{m}{d}", None, (2024, 2, 29), (2024, 3, 1)),
        ("{Y}{j}", None, (2024, 2, 29), (2024, 3, 1)),
        ("{datetime}", None, (2024, 2, 29), (2024, 3, 1)),
        ("{Y}{m}", None, (2024, 2, 1), (2024, 3, 1)),
        ("{Y}{b}", None, (2024, 2, 1), (2024, 3, 1)),
        ("{Y}", None, (2024, 1, 1), (2025, 1, 1)),
        ("{Y}{m}{d}T{H}", None, (2024, 2, 29, 23), (2024, 3, 1)),
        ("{Y}{m}{d}T{H}{M}", "day", (2024, 2, 29), (2024, 3, 1)),
        ("{Y}{m}{d}", "month", (2024, 2, 1), (2024, 3, 1)),
        ("{Y}{m}{d}", "year", (2024, 1, 1), (2025, 1, 1)),
        ("{Y}{m}{d}", "hour", (2024, 2, 29), (2024, 3, 1)),
    ],
)
def test_a_file_covers_what_its_name_tells_or_what_is_declared(
    text: str, covers: Covers | None, start: tuple[int, int, int], stop: tuple[int, int, int]
) -> None:
    """The finest part of its date, unless something coarser is declared; it ends a microsecond before the next."""
    moment = datetime(2024, 2, 29, 23, tzinfo=UTC)
    text = f"x{text}_v{{VERSION}}"
    found = only(text, Template(text).fill(date_fields(moment.date(), moment) | {"VERSION": "1.0.0"}), covers)
    assert found is not None
    assert found.start_at == datetime(*start, tzinfo=UTC)
    assert found.stop_at == datetime(*stop, tzinfo=UTC) - MICROSECOND


def test_december_ends_with_its_year() -> None:
    """The last month of a year is followed by one of the next year."""
    found = only("{Y}{m}_v{VERSION}", "202012_v1.0.0")
    assert found is not None and found.stop_at == datetime(2021, 1, 1, tzinfo=UTC) - MICROSECOND


@pytest.mark.parametrize(
    ("text", "name", "key", "notes"),
    [
        ("{DATE}T{H}{M}{S}_v{VERSION}", "20200101T030405_v1.0.0", "H=03 M=04 S=05", None),
        ("{DATE}_{nn}_{APID}_v{VERSION}", "20200101_07_1fa_v1.0.0", "APID=1fa nn=07", None),
        ("{DATE}_{SIDE}_v{VERSION}", "20200101_far side_v1.0.0", "SIDE=far side", None),
        ("{DATE}_o{ORBIT}_v{VERSION}", "20200101_o00123_v1.0.0", "ORBIT=123", None),
        ("{DATE}_{??}_{mday}_v{VERSION}", "20200101_ab_95_v1.0.0", "", {"mday": "95"}),
        ("{DATE}_{QACODE}_v{VERSION}", "20200101_ok_v1.0.0", "", {"QACODE": "ok"}),
    ],
)
def test_what_else_a_name_tells_is_its_key(text: str, name: str, key: str, notes: dict[str, str] | None) -> None:
    """Files of one product and day are told apart by time, orbit, number or word, never by a wildcard or a quality."""
    found = only(text, name)
    assert found is not None and (found.key, found.keywords, found.notes) == (key, key, notes)


def test_every_product_that_fits_is_a_candidate() -> None:
    """Two formats that fit one name are both told; a product with an inspector is never told by the name."""
    names = Names(
        [
            Known(1, "l0", L0),
            Known(2, "any", "demo_{KIND}_{DATE}_v{VERSION}.dat"),
            Known(3, "l1", "demo_L1_{DATE}_v{VERSION}.dat"),
            Known(4, "dump", "{NAME}.dat", has_inspector=True),
            Known(5, "day first", "{DATE}_demo_v{VERSION}.dat"),
        ]
    )
    told = {name: {found.product for found in names.candidates(name)} for name in (
        "demo_L0_20200101_v1.0.0.dat", "demo_L1_20200101_v1.0.0.dat", "demo_L2_20200101_v1.0.0.dat",
        "20200101_demo_v1.0.0.dat", "junk.bin", "", "demo_L0_20200101_v1.0.0.dat\n",
    )}  # fmt: skip
    assert list(told.values()) == [{"l0", "any"}, {"l1", "any"}, {"any"}, {"day first"}, set(), set(), set()]


def test_among_hundreds_of_like_formats_each_finds_its_own() -> None:
    """Formats that differ in one number, at their start, middle or end, never take each other's files."""
    texts = [
        "rbspa_M{:03d}-hr_{{DATE}}_v{{VERSION}}.cdf",
        "{{DATE}}_M{:03d}_v{{VERSION}}.cdf",
        "{{DATE}}_v{{VERSION}}_{}",
    ]
    products = [Known(i, f"p{i}", texts[i % 3].format(i)) for i in range(300)]
    names = Names(products)
    for product in products:
        filename = Template(product.format).fill({"DATE": "20200101", "VERSION": "1.0.0"})
        assert [found.product_id for found in names.candidates(filename)] == [product.product_id]


def test_a_format_that_cannot_be_read_names_its_product() -> None:
    """The name of the product is in the message; what an inspector makes of its own format is its affair."""
    with pytest.raises(TemplateError, match="of product broken"):
        Names([Known(1, "broken", "x{Y")])
    assert Names([Known(1, "broken", "x{Y", has_inspector=True)]).suggest("x2020") is None


MISSION = [
    Known(1, "l0", L0),
    Known(2, "l1", "demo_L1_{Y}{m}{d}_v{VERSION}.dat"),
    Known(3, "hk", "hk_{Y}-{j}T{H}{M}_{SIDE}_v{VERSION}.cdf"),
    Known(4, "pkt", "ect_rbspa_{nnnn}_{APID}_{nn}.ptp.gz", has_inspector=True),
]


@pytest.mark.parametrize(
    ("filename", "product", "meant"),
    [
        ("demo_l0_20200101_v1.0.0.dat", "l0", "demo_L0_20200101_v1.0.0.dat"),
        ("demo-L1-20200101-v1.0.0.dat", "l1", "demo_L1_20200101_v1.0.0.dat"),
        ("demo L0 20200101 v1.0.0.dat", "l0", "demo_L0_20200101_v1.0.0.dat"),
        ("demo_L0_20200101_v1.0.dat", "l0", "demo_L0_20200101_v1.0.0.dat"),
        ("demo_L0_20200101_v1.0.0.DAT", "l0", "demo_L0_20200101_v1.0.0.dat"),
        ("demo_L0_20200101_1.0.0.dat", "l0", "demo_L0_20200101_v1.0.0.dat"),
        ("demo_L0_2020-01-01_v1.0.0.dat", "l0", "demo_L0_20200101_v1.0.0.dat"),
        ("dmeo_L1_20200101_v1.0.1.dat", "l1", "demo_L1_20200101_v1.0.1.dat"),
        ("demo_L1_20200101_v1.0.0.txt", "l1", "demo_L1_20200101_v1.0.0.dat"),
        ("demo_L1_20200101_v1.0.0.dat.gz", "l1", "demo_L1_20200101_v1.0.0.dat"),
        ("demo_L1_20200101_v1.0.0 (1).dat", "l1", "demo_L1_20200101_v1.0.0.dat"),
        ("HK_2020-7T0312_b_v2.cdf", "hk", "hk_2020-007T0312_b_v2.0.0.cdf"),
        ("ECT_rbspa_0123_1fa_03.ptp.gz", "pkt", "ect_rbspa_0123_1fa_03.ptp.gz"),
    ],
)
def test_a_misnamed_file_is_told_its_name(filename: str, product: str, meant: str) -> None:
    """The nearest product, and a name that fits its format."""
    assert Names(MISSION).suggest(filename) == f"did you mean product {product}, as in {meant}?"
    assert [one.name for one in MISSION if Template(one.format).match(meant)] == [product]


@pytest.mark.parametrize(
    ("filename", "says"),
    [
        ("demo_L0_20200231_v1.0.0.dat", "it is named like product l0, but 2020-02-31 is no date"),
        ("hk_2021-366T0000_b_v1.0.0.cdf", "it is named like product hk, but 2021 has no day 366"),
        ("ect_rbspa_0123_1fa_03.ptp.gz", "it is named like product pkt, whose inspector did not take it"),
        ("demo_L0_20201399_v1.0.0.dat", f"did you mean product l0, whose files are named {L0}?"),
        ("demo_L0_20200101.dat", f"did you mean product l0, whose files are named {L0}?"),
        ("junk.bin", None),
        ("core.1234", None),
        ("other_L9_20200101_v1.0.0.dat", None),
        ("20200101", None),
        ("", None),
        ("demo_L0_20200101_v1.0.0.dat", None),
    ],
)
def test_where_no_name_can_be_made_up_the_reason_or_the_format_is_told(filename: str, says: str | None) -> None:
    """An impossible date is said to be one, and what looks like nothing, or fits, gets no suggestion."""
    assert Names(MISSION).suggest(filename) == says


@given(st.text(min_size=0, max_size=60))
@settings(max_examples=100)
def test_any_name_gets_an_answer(filename: str) -> None:
    """No name, whatever letters it has, ends in an error."""
    names = Names(MISSION)
    assert names.candidates(filename) == []
    suggestion = names.suggest(filename)
    assert suggestion is None or suggestion.startswith(("did you mean product ", "it is named like product "))
