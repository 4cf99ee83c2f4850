"""A mission's YAML file: every key read, every problem told at once, and the same mission after writing it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.errors import SettingsError
from workers.products.definition import Code, Input, Inspector, Mission, Orbit, Process, Product
from workers.products.mission_file import as_yaml, read
from workers.products.versions import Version

WHOLE = """
mission: DEMO
root: /data/demo
incoming: in
codes: codes
hosts: [obs1]
cut_off: false
satellites: {"{MISSION}-a": [cam, mag], DEMO-b: [cam]}
products:
  "{MISSION}_l0": {instrument: DEMO-a/cam, level: 0, format: "{PRODUCT}_{Y}{m}{d}_v{VERSION}.dat",
       folder: "L{LEVEL}/{Y}", description: raw, covers: day, min_bytes: 1kB, trailer: "END", marker: .done,
       cut_off: true, inspector: {file: any.py, arguments: {tag: "{INSTRUMENT}"}}}
  l1: {instrument: mag, level: 1.5, format: "l1_{DATE}_v{VERSION}"}
  best: {instrument: mag, level: 1, format: "best_{DATE}_v{VERSION}", trailer: !!binary AP8=}
processes:
  l0_l1:
    output: l1
    timebase: ORBIT
    inputs: ["{MISSION}_l0", {product: DEMO_l0, optional: true, yesterday: 1, tomorrow: 2}, {prefer: [best, DEMO_l0]}]
    on_code_change: hold
    attempts: 5
    priority: -1
    neighbours: false
    extra_params: ["--calib", "{ROOTDIR}/cal.txt"]
    codes:
      - {version: 1.0.0, file: bin/l0l1.sh, from: 2000-01-01, until: 2050-12-31, output_interface: 2,
         arguments: "-q {DATE} 'a b'", environment: {A: b}, timeout: 1h30m, memory: 1.5GB, output: 1GiB, cpu: 3}
      - {version: 1.0.1, file: old, active: false}
  plot: {inputs: [l1]}
orbits: {DEMO-a: orbits.csv, DEMO-b: [{number: 1, start: 2020-01-01T00:00:00+01:00, stop: 2020-01-01}]}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes demo.yaml, and beside it a table of orbits."""
    (tmp_path / "orbits.csv").write_text(
        "number,start,stop\n1, 2020-01-01T00:00,2020-01-01 01:40:30.5\n\n2,2020-01-02,2020-01-03\n"
    )

    def writes(text: str) -> Path:
        (tmp_path / "demo.yaml").write_text(text)
        return tmp_path / "demo.yaml"

    return writes


def problems(path: Path) -> list[str]:
    """What is wrong with a file, without its name."""
    with pytest.raises(SettingsError) as caught:
        read(path)
    return [line.removeprefix(f"{path}: ") for line in caught.value.problems]


def test_every_key_is_read(write: Callable[[str], Path]) -> None:
    """Folders are absolute, names filled in, units turned into numbers, times UTC, products named either way."""
    root = Path("/data/demo")

    def orbit(satellite: str, number: int, *at: int, **lasts: float) -> Orbit:
        start = datetime(*at, tzinfo=UTC)  # type: ignore[misc, arg-type]
        return Orbit(satellite=satellite, number=number, start_at=start, stop_at=start + timedelta(**lasts))

    assert read(write(WHOLE)) == Mission(
        name="DEMO", root=root, incoming=root / "in", codes=root / "codes", inspectors=root / "codes",
        quarantine=root / "quarantine", hosts=("obs1",), cut_off=False,
        satellites={"DEMO-a": ("cam", "mag"), "DEMO-b": ("cam",)},
        products=(
            Product(
                name="DEMO_l0", satellite="DEMO-a", instrument="cam", level=0, folder="L0/{Y}", description="raw",
                format="DEMO_l0_{Y}{m}{d}_v{VERSION}.dat", covers="day", min_bytes=1000, trailer=b"END",
                marker=".done", cut_off=True, inspector=Inspector(file="any.py", arguments={"tag": "cam"}),
            ),
            Product(name="l1", satellite="DEMO-a", instrument="mag", level=1.5, format="l1_{DATE}_v{VERSION}"),
            Product(name="best", satellite="DEMO-a", instrument="mag", level=1, format="best_{DATE}_v{VERSION}",
                    trailer=b"\x00\xff"),
        ),
        processes=(
            Process(
                name="l0_l1", output="l1", timebase="ORBIT", satellite="DEMO-a", on_code_change="hold", attempts=5,
                priority=-1, neighbours=False, extra_params=("--calib", "{ROOTDIR}/cal.txt"),
                inputs=(
                    Input(products=("DEMO_l0",)),
                    Input(products=("DEMO_l0",), is_required=False, yesterday=1, tomorrow=2),
                    Input(products=("best", "DEMO_l0")),
                ),
                codes=(
                    Code(
                        version=Version(1, 0, 0), filename="bin/l0l1.sh", valid_from=date(2000, 1, 1),
                        valid_until=date(2050, 12, 31), output_interface=2, arguments=("-q", "{DATE}", "a b"),
                        environment={"A": "b"}, timeout_seconds=5400, memory_bytes=1_500_000_000, output_bytes=2**30,
                        cpu=3,
                    ),
                    Code(version=Version(1, 0, 1), filename="old", is_active=False),
                ),
            ),
            Process(name="plot", output=None, timebase="RUN", inputs=(Input(products=("l1",)),)),
        ),
        orbits=(
            orbit("DEMO-a", 1, 2020, 1, 1, hours=1, minutes=40, seconds=30.5),
            orbit("DEMO-a", 2, 2020, 1, 2, days=1),
            orbit("DEMO-b", 1, 2019, 12, 31, 23, hours=1),
        ),
    )  # fmt: skip


def test_a_written_file_reads_as_the_same_mission(write: Callable[[str], Path]) -> None:
    """What was filled in and worked out stays as it is."""
    found = read(write(WHOLE))
    assert read(write(as_yaml(found))) == found


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("incoming: in", "incomming: in", "incomming: there is no such key; did you mean 'incoming'?"),
        ("root: /data/demo", "root: data", "root: 'data' is not absolute; write it from / on"),
        ("mission: DEMO", "mission:", "mission: is missing"),
        ("hosts: [obs1]", "hosts: obs1", "hosts: expected a list, found 'obs1'"),
        ("cut_off: false", "cut_off: 0", "cut_off: expected true or false, found 0"),
        (
            "DEMO-a/cam",
            "cam",
            "products.{MISSION}_l0.instrument: several satellites have a 'cam'; write DEMO-a/cam or DEMO-b/cam",
        ),
        ("DEMO-a/cam", "can", "products.{MISSION}_l0.instrument: there is no 'can'; did you mean 'cam'?"),
        ("covers: day", "covers: dya", "products.{MISSION}_l0.covers: 'dya' is not known; did you mean 'day'?"),
        ("level: 1.5", "level: .nan", "products.l1.level: expected a number, found nan"),
        ("level: 1.5, ", "", "products.l1.level: is missing"),
        ("min_bytes: 1kB", "min_bytes: 1 kb", "expected a size such as 2GB or 500MiB, found '1 kb'"),
        ("instrument: mag, level: 1,", "level: 1,", "products.best.instrument: is missing"),
        (
            'format: "l1_{DATE}_v{VERSION}"',
            "formt: x",
            "products.l1.formt: there is no such key; did you mean 'format'?",
        ),
        (
            '"{INSTRUMENT}"',
            "007",
            "products.{MISSION}_l0.inspector.arguments: expected a text, found 7; write it in quotes",
        ),
        ("A: b", '"A=B": b', "processes.l0_l1.codes.1.environment: 'A=B' is no name of a variable"),
        ("version: 1.0.0", "version: 1.0", "processes.l0_l1.codes.1.version: '1.0' is no version; write it as 1.0.0"),
        ("version: 1.0.0, ", "", "processes.l0_l1.codes.1.version: is missing"),
        ("timeout: 1h30m", "timeout: soon", "timeout: expected seconds, or a time such as 10m or 1h30m, found 'soon'"),
        ("timeout: 1h30m", "timeout: 0", "processes.l0_l1.codes.1.timeout: Input should be greater than 0"),
        (
            "from: 2000-01-01",
            "from: 2000",
            "processes.l0_l1.codes.1.from: expected a day such as 2020-01-31, found 2000",
        ),
        (
            "yesterday: 1",
            "yesterday: -1",
            "processes.l0_l1.inputs.2.yesterday: Input should be greater than or equal to 0",
        ),
        (
            "product: DEMO_l0,",
            "produkt: DEMO_l0,",
            "processes.l0_l1.inputs.2: expected `product:` with one, or `prefer:`",
        ),
        ("attempts: 5", "attempts: 5.0", "processes.l0_l1.attempts: expected a whole number, found 5.0"),
        (
            "timebase: ORBIT",
            "timebase: ORBITS",
            "processes.l0_l1.timebase: 'ORBITS' is not known; did you mean 'ORBIT'?",
        ),
        ("    timebase: ORBIT\n", "", "processes.l0_l1.timebase: is missing"),
        ("orbits.csv", "orbit.csv", "orbit.csv cannot be read: "),
        ("orbits.csv", "demo.yaml", "demo.yaml: 'mission: DEMO' is not number,start,stop"),
        ("start: 2020-01-01T00:00:00+01:00, ", "", "orbits.DEMO-b.1.start: is missing"),
        ("inputs: [l1]", "inputs: [l2]", "process plot: there is no product 'l2'; known: DEMO_l0, best, l1"),
        (
            "description: raw",
            'description: "\\0"',
            "products.{MISSION}_l0.description: '\\x00' holds a character that no",
        ),
        ("description: raw", "1: raw", "products.{MISSION}_l0: 1 is no text to YAML; write it in quotes"),
        ("cut_off: false", "hosts: []", "not valid YAML: the key 'hosts' is there twice"),
    ],
)
def test_a_problem_names_its_place(write: Callable[[str], Path], old: str, new: str, said: str) -> None:
    """One wrong value is one line with the file, the key and what was expected."""
    assert old in WHOLE
    found = problems(write(WHOLE.replace(old, new, 1)))
    assert len(found) == 1
    assert said in found[0]


def test_all_problems_are_told_at_once(write: Callable[[str], Path]) -> None:
    """A person sees the whole list, not its first line."""
    text = (
        WHOLE.replace("covers: day", "covers: dya").replace("cpu: 3", "cpu: many").replace("root: /data", "root: data")
    )
    assert [line.split(":")[0] for line in problems(write(text))] == [
        "root", "products.{MISSION}_l0.covers", "processes.l0_l1.codes.1.cpu",
    ]  # fmt: skip


def test_nothing_but_names_is_needed(write: Callable[[str], Path]) -> None:
    """Everything else has a default: folders below the root, no limits, rebuilding."""
    found = read(write("mission: M\nroot: /r\nsatellites: {a: [i]}\n"))
    assert (found.incoming, found.codes, found.inspectors) == (Path("/r/incoming"), Path("/r"), Path("/r"))
    assert (found.quarantine, found.scratch, found.cut_off) == (Path("/r/quarantine"), None, True)


def test_a_folder_may_have_any_name(write: Callable[[str], Path]) -> None:
    """Bytes that are no UTF-8 are written as elsewhere here, and come back."""
    found = read(write('mission: M\nroot: "/r\\\\xff é"\nsatellites: {a: [i]}\n'))
    assert found.root == Path("/r\udcff é")
    assert read(write(as_yaml(found))) == found
    assert Mission.model_validate_json(found.model_dump_json()) == found


# No braces: {MISSION} and the like would be filled in when the file is read.
texts = st.text(st.characters(exclude_characters="\0{}", exclude_categories=["Cs"]), max_size=12)
names = texts.filter(bool)
days = st.dates(date(1970, 1, 1), date(2100, 1, 1))
sizes = st.none() | st.integers(1, 2**62)


def parts(model: Any, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Parts of a definition with these fields."""
    return st.builds(model, **fields)


@st.composite
def missions(draw: st.DrawFn) -> Mission:
    """Missions that keep to the rules: two products and a process, their values whatever they may be."""
    own = draw(st.lists(names, min_size=3, max_size=3, unique=True))
    inspectors = parts(
        Inspector, file=names, folder=texts, arguments=st.dictionaries(names, texts, max_size=2), description=texts,
        version=st.builds(Version, st.integers(1, 9), st.integers(0, 99), st.integers(0, 2**31 - 1)),
        is_active=st.just(True),
    )  # fmt: skip
    satellite, instrument = draw(names), draw(names)
    products = [
        draw(parts(
            Product, name=st.just(name), satellite=st.just(satellite), instrument=st.just(instrument),
            level=st.floats(0, 9), format=st.just("{DATE}_v{VERSION}"), folder=texts, description=texts,
            covers=st.sampled_from([None, "day"]), min_bytes=st.integers(0, 2**62), trailer=st.none() | st.binary(),
            marker=st.none() | names, inspector=st.none() | inspectors, cut_off=st.none() | st.booleans(),
        ))
        for name in own[:2]
    ]  # fmt: skip
    codes = parts(
        Code, version=st.builds(Version, st.integers(1, 9), st.integers(0, 99), st.integers(0, 99)), filename=names,
        folder=texts, description=texts, output_interface=st.integers(1, 9), written=st.none() | days,
        arguments=st.lists(texts, max_size=3), timeout_seconds=st.none() | st.floats(0.001, 1e6),
        environment=st.dictionaries(names.filter(lambda name: "=" not in name), texts, max_size=2),
        memory_bytes=sizes, output_bytes=sizes, cpu=st.integers(1, 99), is_active=st.just(False),
        valid_from=st.none() | st.just(date(1999, 1, 1)), valid_until=st.none() | st.dates(date(2000, 1, 1)),
    )  # fmt: skip
    process = draw(parts(
        Process, name=st.just(own[2]), output=st.just(own[1]), timebase=st.sampled_from(["FILE", "DAILY"]),
        inputs=st.lists(parts(Input, products=st.just((own[0],)), is_required=st.booleans(),
                              yesterday=st.integers(0, 9), tomorrow=st.integers(0, 9)), max_size=2),
        codes=st.lists(codes, max_size=2, unique_by=lambda code: code.version),
        extra_params=st.lists(texts, max_size=2), neighbours=st.none() | st.booleans(),
        on_code_change=st.sampled_from(["rebuild", "hold"]), attempts=st.integers(1, 9), priority=st.integers(-9, 9),
    ))  # fmt: skip
    root = Path("/" + draw(st.sampled_from(["r", "a b", "é\n", "r\udcff"])))
    places = st.sampled_from([root, root / "x", Path("/else where")])
    return Mission(
        name=draw(names), root=root, incoming=draw(places), codes=draw(places), inspectors=draw(places),
        quarantine=draw(places), scratch=draw(st.none() | places), hosts=draw(st.lists(names, max_size=2)),
        cut_off=draw(st.booleans()), neighbours=draw(st.booleans()), is_legacy=draw(st.booleans()),
        satellites={satellite: (instrument,)}, products=products, processes=(process,),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(missions())
def test_any_mission_survives_its_file(mission: Mission) -> None:
    """Whatever a name, a path or an argument holds comes back as it was, from YAML and from the mission's row."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo.yaml"
        path.write_text(as_yaml(mission), encoding="utf-8")
        assert read(path) == mission
    assert Mission.model_validate_json(mission.model_dump_json()) == mission
