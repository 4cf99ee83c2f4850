"""dbprocessing's configuration files: what addFromConfig.py took is taken, and means what it meant."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from workers.errors import SettingsError
from workers.products import conf_file
from workers.products.definition import Code, Input, Inspector, Mission, Process, Product
from workers.products.versions import Version

PRODUCT = """
[product_{0}]
product_name = {{MISSION}}_{0}
relative_path = {0}/{{Y}}
level = {1}
format = {{PRODUCT}}_{{Y}}{{m}}{{d}}_v{{VERSION}}.dat
product_description = level {{LEVEL}}
inspector_filename = any.py
inspector_relative_path = {{INSTRUMENT}}
inspector_description = by name of {{PRODUCT}}
inspector_version = 1.2.0
inspector_output_interface = 1
inspector_active = True
inspector_date_written = 2020-01-01
inspector_newest_version = True
inspector_arguments = tag={{PRODUCT}} n=007
"""
CONF = (
    """# A mission
[mission]
mission_name = DEMO
rootdir = /data/demo
incoming_dir = incoming
codedir = codes
[satellite]
satellite_name = {MISSION}-a
[instrument]
instrument_name = cam
"""
    + PRODUCT.format("l0", "0")
    + PRODUCT.format("l1", "1.5")
    + """
[process_l0_l1]
process_name = {SPACECRAFT}_l0_to_l1
output_product = product_l1
output_timebase = DAILY
extra_params = --calib|{ROOTDIR}/cal.txt|--b 2020
required_input1 = ("product_l0", 1, 2)
code_filename = l0l1_v{CODEVERSION}.sh
code_relative_path = bin
code_start_date = 2000-01-01
code_stop_date = 2050-12-31
code_description = L0 to L1
code_version = 1.0.0
code_output_interface = 2
code_active = True
code_date_written = 2020-01-01
code_newest_version = yes
code_arguments = -q  {DATE}
code_cpu = 2
code_ram = 1
"""
)


def read(tmp_path: Path, text: str) -> tuple[Mission, list[str]]:
    """The mission of a file, and the warnings without the file's name."""
    path = tmp_path / "demo.conf"
    path.write_text(text)
    found, warnings = conf_file.read(path)
    return found, [line.removeprefix(f"{path}: ") for line in warnings]


def problems(tmp_path: Path, text: str) -> list[str]:
    """What is wrong with a file, without the file's name."""
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, text)
    return [line.removeprefix(f"{tmp_path / 'demo.conf'}: ") for line in caught.value.problems]


def code_of(found: Mission) -> Code:
    """The one code of the one process."""
    return found.processes[0].codes[0]


def without(key: str) -> str:
    """The file without the first line of a key."""
    lines = CONF.splitlines(keepends=True)
    lines.remove(next(line for line in lines if line.startswith(key)))
    return "".join(lines)


def test_a_file_means_what_it_meant(tmp_path: Path) -> None:
    """Every key that dbprocessing used comes through, names filled in, words of the command line divided as there."""
    found, warnings = read(tmp_path, CONF)
    root = Path("/data/demo")

    def product(name: str, level: float) -> Product:
        return Product(
            name=f"DEMO_{name}", satellite="DEMO-a", instrument="cam", level=level, folder=name + "/{Y}",
            format=f"DEMO_{name}_{{Y}}{{m}}{{d}}_v{{VERSION}}.dat", description="level {LEVEL}",
            inspector=Inspector(
                file="any.py", folder="cam", arguments={"tag": f"DEMO_{name}", "n": "007"}, version=Version(1, 2, 0),
                description=f"by name of DEMO_{name}",
            ),
        )  # fmt: skip

    assert found == Mission(
        name="DEMO", root=root, incoming=root / "incoming", codes=root / "codes", inspectors=root / "codes",
        quarantine=root / "codes/errors", cut_off=False, neighbours=True, is_legacy=True, is_part=True,
        satellites={"DEMO-a": ("cam",)}, products=(product("l0", 0), product("l1", 1.5)),
        processes=(Process(
            name="DEMO-a_l0_to_l1", output="DEMO_l1", timebase="DAILY",
            inputs=(Input(products=("DEMO_l0",), yesterday=1, tomorrow=2),),
            extra_params=("--calib", "{ROOTDIR}/cal.txt", "--b 2020"),
            codes=(Code(
                version=Version(1, 0, 0), filename="l0l1_v{CODEVERSION}.sh", folder="bin", description="L0 to L1",
                output_interface=2, valid_from=date(2000, 1, 1), valid_until=date(2050, 12, 31),
                arguments=("-q", "{DATE}"), cpu=2, written=date(2020, 1, 1),
            ),),
        ),),
    )  # fmt: skip
    assert warnings == [
        "without effect, as in dbprocessing: inspector_output_interface, inspector_date_written, "
        "inspector_newest_version, code_ram"
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CONF.replace("[mission]", "[missing]"), ["is no section of these files", "the section [mission] is missing"]),
        (CONF.replace("[satellite]", "[satelite]"), ["is no section", "the section [satellite] is missing"]),
        (CONF + "[FakeSection]\n", ["[FakeSection] is no section of these files"]),
        (CONF + "[mission]\n", ["section 'mission' already exists"]),
        (CONF + PRODUCT.format("l0", "0"), ["section 'product_l0' already exists"]),
        (without("mission_name"), ["[mission] mission_name is missing"]),
        (without("code_cpu"), ["[process_l0_l1] code_cpu is missing"]),
        (without("inspector_arguments"), ["[product_l0] inspector_arguments is missing"]),
        (CONF.replace("= product_l1", "= product_l2"), ["output_product: there is no section [product_l2]"]),
        (CONF.replace("= product_l1", "="), ["DAILY needs an output"]),
        (CONF.replace('("product_l0"', '("product_9"'), ["required_input1: there is no section [product_9]"]),
        (CONF.replace('("product_l0", 1, 2)', '("product_l0", 1)'), ["required_input1: '(\"product_l0\", 1)' is no"]),
        (CONF.replace('("product_l0", 1, 2)', "(product_l0, 1, 2)"), ["required_input1: '(product_l0, 1, 2)' is no"]),
        (CONF.replace('1, 2)', "-1, 2)"), ["[process_l0_l1] yesterday: Input should be greater"]),
        (CONF.replace("DAILY", "daily"), ["output_timebase 'daily' is not known; known: DAILY, FILE"]),
        (CONF.replace("= 1.0.0", "= 1.0"), ["code_version: '1.0' cannot be read: '1.0' is no version"]),
        (CONF.replace("2050-12-31", "2050-12-32"), ["code_stop_date: '2050-12-32' cannot be read"]),
        (CONF.replace("level = 1.5", "level = high").replace("code_output_interface = 2", "code_output_interface = x"),
         ["[product_l1] level: 'high' cannot be read", "code_output_interface: 'x' cannot be read"]),
        (CONF.replace("-q  {DATE}", "50%"), ["'%' must be followed by"]),
        ("mission_name = DEMO\n", ["File contains no section headers"]),
    ],
)  # fmt: skip
def test_what_addfromconfig_refused_is_refused(tmp_path: Path, text: str, said: list[str]) -> None:
    """Missing and unknown sections, missing keys and unknown products are named, all of them at once."""
    found = problems(tmp_path, text)
    assert [want in line for want, line in zip(said, found, strict=True)] == [True] * len(said), found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CONF.replace("[satellite]", "extra = key\n[satellite]"), "[mission] extra is not known, and not used"),
        (
            CONF.replace("code_cpu = 2", "code_cpus = 3\ncode_cpu = 2"),
            "[process_l0_l1] code_cpus is not known, and not used; did you mean code_cpu?",
        ),
        ("[DEFAULT]\nlevel = 0\nowner = me\n" + CONF, "[DEFAULT] owner is not known in any section, and not used"),
        (CONF.replace("code_active = True", "code_active = on"), "[process_l0_l1] code_active 'on' is taken for False"),
        (CONF.replace("n=007", "-q n=007"), "[product_l0] inspector_arguments: '-q n=007' is not used"),
        (CONF.replace("any.py", ""), "[product_l0] inspector_filename is blank"),
        (CONF.replace("code_cpu = 2", "code_cpu = many"), "[process_l0_l1] code_cpu 'many' is no number; taken for 1"),
        (CONF.replace("DAILY", "RUN"), "[process_l0_l1] output_product 'product_l1' is not used: RUN has no output"),
        (CONF.replace("_v{VERSION}", ""), "product DEMO_l1: its format needs {VERSION}"),
        (CONF.replace("DAILY", "ORBIT"), "process DEMO-a_l0_to_l1: ORBIT goes by the orbits of DEMO-a; there are none"),
    ],
)
def test_what_is_not_used_is_said(tmp_path: Path, text: str, said: str) -> None:
    """Nothing that a person wrote is dropped in silence, and none of it keeps the file from loading."""
    _, warnings = read(tmp_path, text)
    assert [line for line in warnings if said in line]


@pytest.mark.parametrize(
    ("active", "newest", "is_active"),
    [("True", "True", True), ("1", "y", True), ("True", "False", False), ("0", "1", False), ("", "true", False)],
)
def test_a_code_is_used_if_it_is_active_and_newest(tmp_path: Path, active: str, newest: str, is_active: bool) -> None:
    """Both words count, and a 1 is true, though dbprocessing took it for false."""
    text = CONF.replace("code_active = True", f"code_active = {active}")
    found, _ = read(tmp_path, text.replace("code_newest_version = yes", f"code_newest_version = {newest}"))
    assert code_of(found).is_active is is_active


@pytest.mark.parametrize(
    ("folders", "codes", "inspectors", "quarantine"),
    [
        ("", "/data/demo", "/data/demo", "/data/demo/errors"),
        ("codedir =\ninspectordir =\nerrordir =\n", "/data/demo", "/data/demo", "/data/demo/errors"),
        ("codedir = c\n", "/data/demo/c", "/data/demo/c", "/data/demo/c/errors"),
        ("codedir = /c\ninspectordir = i\nerrordir = /e\n", "/c", "/data/demo/i", "/e"),
        ("codedir = c\ninspectordir =\n", "/data/demo/c", "/data/demo", "/data/demo/c/errors"),
    ],
)
def test_folders_default_as_there(tmp_path: Path, folders: str, codes: str, inspectors: str, quarantine: str) -> None:
    """Left out, inspectors lie with the codes and errors below them; blank is the root, but for errors."""
    found, _ = read(tmp_path, CONF.replace("codedir = codes\n", folders))
    assert (str(found.codes), str(found.inspectors), str(found.quarantine)) == (codes, inspectors, quarantine)


def test_a_relative_root_is_taken_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As dbprocessing did it, and said."""
    monkeypatch.chdir(tmp_path)
    found, warnings = read(tmp_path, CONF.replace("/data/demo", "."))
    assert found.root == tmp_path
    assert f"[mission] rootdir '.' is taken from the current folder: {tmp_path}" in warnings


def test_shared_keys_and_references_work(tmp_path: Path) -> None:
    """[DEFAULT] gives keys to all sections without a warning, and %(key)s is another key."""
    text = "[DEFAULT]\ncode_cpu = 3\n" + without("code_cpu").replace("L0 to L1", "%(code_version)s")
    found, warnings = read(tmp_path, text)
    assert (code_of(found).cpu, code_of(found).description) == (3, "1.0.0")
    assert len(warnings) == 1


def test_processes_without_inputs_or_output_load(tmp_path: Path) -> None:
    """A process that reads nothing, and a RUN that makes nothing, are in order; inputs may be optional."""
    found, _ = read(tmp_path, CONF.replace('required_input1 = ("product_l0", 1, 2)\n', ""))
    assert found.processes[0].inputs == ()
    text = CONF.replace("DAILY", "RUN").replace("= product_l1", "=").replace("required_input1", "optional_input1")
    found, _ = read(tmp_path, text)
    assert (found.processes[0].output, found.processes[0].timebase) == (None, "RUN")
    assert not found.processes[0].inputs[0].is_required
