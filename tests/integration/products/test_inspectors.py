"""Inspectors of sites, asked in a real process: what they may do to it, and what we make of their answers."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

from workers.paths import to_text
from workers.products import dbprocessing_api
from workers.products.inspectors import Finding, Inspectors, Spec
from workers.products.versions import Version

PATIENCE_SECONDS = 30.0
Asking = Callable[..., Inspectors]

CLAIM = """
import datetime, os, signal, subprocess, sys, time
from dbprocessing import inspector, Version

class Inspector(inspector.inspector):
    code_name = os.path.basename(__file__)

    def inspect(self, kwargs):
        params = self.diskfile.params
        params["utc_file_date"] = datetime.date(2020, 1, 2)
        params["utc_start_time"] = datetime.datetime(2020, 1, 2)
        params["utc_stop_time"] = datetime.datetime(2020, 1, 2, 23, 59, 59)
        params["version"] = Version.Version(1, 2, 3)
        {body}
        return True
"""


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[Asking]:
    """Inspectors out of bodies, `a="..."` being a.py, that claim a file unless the body does something else."""
    with ExitStack() as stack:

        def make(
            *, timeout_seconds: float = PATIENCE_SECONDS, memory_bytes: int | None = None, **bodies: str
        ) -> Inspectors:
            specs = [spec(write(tmp_path, name, body), n) for n, (name, body) in enumerate(bodies.items(), start=1)]
            made = Inspectors(specs, timeout_seconds=timeout_seconds, memory_bytes=memory_bytes)
            return stack.enter_context(made)

        yield make


def write(folder: Path, name: str, body: str) -> Path:
    """A module whose `inspect` has this body, or that is this, when its first line says `# module`."""
    text = textwrap.dedent(body)
    if not text.startswith("# module"):
        text = CLAIM.replace("{body}", textwrap.indent(text.strip(), " " * 8).lstrip())
    path = folder / f"{name}.py"
    path.write_text(text)
    return path


def spec(path: Path, product_id: int = 1, **facts: Any) -> Spec:
    return Spec(product_id, path.stem, 1.0, "demo_{Y}{m}{d}_v{VERSION}.dat", path, **facts)


def claims(findings: list[Finding]) -> list[str]:
    """The products that claim the file."""
    return [finding.product for finding in findings if finding.identity is not None]


def problems(findings: list[Finding]) -> dict[str, str]:
    """What went wrong, by product."""
    return {finding.product: finding.problem for finding in findings if finding.problem is not None}


def keywords(findings: list[Finding]) -> str:
    """What the only inspector, which claims the file, says in process_keywords."""
    (finding,) = findings
    assert finding.identity is not None, finding.problem
    return finding.identity.keywords


def ends(pid_file: int) -> bool:
    """Whether a process, opened by its pidfd, ends in time."""
    try:
        return bool(select.select([pid_file], [], [], PATIENCE_SECONDS)[0])
    finally:
        os.close(pid_file)


def test_a_claim_becomes_an_identity(tmp_path: Path) -> None:
    """What an inspector sets is the file's identity: UTC times, version, keywords as the key, and the rest as notes."""
    path = write(
        tmp_path, "l1",
        """
        import re
        assert re.match(self.filenameregex, self.basename) and self.filenameformat.startswith("demo_")
        assert self.dbu.getEntry("Product", self.product).level == 1.0 and self.dbu.mission == "probe"
        params["utc_file_date"] = self.extract_YYYYMMDD()
        east = datetime.timezone(datetime.timedelta(hours=2))
        params["utc_stop_time"] = datetime.datetime(2020, 1, 3, 2, tzinfo=east)
        params["version"] = inspector.extract_Version(self.basename)
        params["process_keywords"] = "apid={} side={}".format(kwargs["apid"], kwargs["side"])
        params["quality_comment"], params["met_start_time"], params["quality_checked"] = "good", 17, True
        params["check_date"], params["met_stop_time"] = datetime.datetime(2020, 2, 1), float("nan")
        """,
    )  # fmt: skip
    with Inspectors([spec(path, 7, arguments={"apid": "0x1f", "side": "b"}, mission="probe")], timeout_seconds=30) as i:
        (finding,) = i.ask(b"/nowhere/demo_20200102_v1.4.0.dat")
    assert finding.problem is None
    identity = finding.identity
    assert identity is not None
    assert (identity.product_id, identity.product, identity.day) == (7, "l1", date(2020, 1, 2))
    assert (identity.start_at, identity.stop_at) == (datetime(2020, 1, 2, tzinfo=UTC), datetime(2020, 1, 3, tzinfo=UTC))
    assert identity.stop_at.utcoffset() == timedelta(0)
    assert identity.version == Version(1, 4, 0)
    assert identity.key == identity.keywords == "apid=0x1f side=b"
    assert identity.notes == {
        "quality_comment": "good", "met_start_time": 17, "quality_checked": True,
        "check_date": "2020-02-01T00:00:00", "met_stop_time": "nan",
    }  # fmt: skip


def test_not_mine(asking: Asking) -> None:
    """None says "not mine", and so does False with nothing set, which is how many inspectors say it."""
    inspectors = asking(none="return None", false="for name in list(params): params[name] = None\nreturn False")
    assert inspectors.ask(Path("/nowhere/x")) == []


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('params["utc_start_time"] = None', "claims the file but does not set utc_start_time"),
        ('params["version"] = "1.0.0"', "its version is '1.0.0', not a Version"),
        ('params["version"] = Version.Version(-1, 0, 0)', "-1.0.0 is no version"),
        ('params["utc_file_date"] = "20200101"', "its utc_file_date is '20200101', not a date"),
        ('params["utc_stop_time"] = 5', "its utc_stop_time is 5, not a datetime"),
        ('params["utc_stop_time"] = datetime.datetime(2019, 1, 1)', "is before its utc_start_time"),
        ("self.dbu.getFiles()", "dbu.getFiles is not there for inspectors"),
        (
            "# module\nfrom dbprocessing import DButils\nDButils.DButils('x')",
            "dbprocessing.DButils.DButils is not there",
        ),
        ("# module\nclass Other: pass", "has no class Inspector"),
        ("# module\nfrom dbprocessing import nonsense", "cannot import name 'nonsense'"),
        ("# module\nimport nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("# module\nfrom dbprocessing import inspector\n)", "SyntaxError"),
    ],
)
def test_an_unusable_answer_is_a_problem(asking: Asking, body: str, text: str) -> None:
    """A claim that lacks something, and a module that cannot be used, are problems that say what is wrong."""
    findings = asking(probe=body).ask(b"/nowhere/x")
    assert claims(findings) == []
    assert text in problems(findings)["probe"]


def test_every_inspector_is_asked(asking: Asking) -> None:
    """Two that claim one file are both seen; `only` narrows the question to some products."""
    inspectors = asking(a="pass", b="return None", c="pass")
    assert claims(inspectors.ask(b"/nowhere/x")) == ["a", "c"]
    assert claims(inspectors.ask(b"/nowhere/x", only={2, 3})) == ["c"]


def test_one_raises(asking: Asking) -> None:
    """What an inspector raises is a problem with the traceback's end; sys.exit too; the others are asked."""
    findings = asking(bad='raise ValueError("no\\0such\\ud800header")', leaves="sys.exit(4)", good="pass").ask(b"/x")
    assert claims(findings) == ["good"]
    first, *rest = problems(findings)["bad"].split("\n")
    assert first == "inspector bad.py raised ValueError: no\\x00such\\ud800header"
    assert 'bad.py", line 14, in inspect' in "\n".join(rest)
    assert "inspector_child" not in problems(findings)["bad"]
    assert problems(findings)["leaves"].startswith("inspector leaves.py raised SystemExit: 4\n")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("os._exit(3)", "has ended its process with exit status 3"),
        ("print('last words', flush=True); os.kill(os.getpid(), signal.SIGKILL)", "was killed by signal 9 (Killed)"),
        ("import ctypes; ctypes.string_at(0)", "was killed by signal 11 (Segmentation fault)"),
        (
            """
            for fd in os.listdir("/proc/self/fd"):
                if os.path.exists(f"/proc/self/fd/{fd}") or os.path.islink(f"/proc/self/fd/{fd}"):
                    if os.readlink(f"/proc/self/fd/{fd}").startswith("socket"):
                        os.write(int(fd), b"garbage\\n")
            """,
            "has written into the channel",
        ),
    ],
)
def test_one_crashes(asking: Asking, body: str, text: str) -> None:
    """An inspector that takes the process with it is a problem; those before and after it are asked all the same."""
    findings = asking(before="pass", bad=body, after="pass").ask(b"/nowhere/x")
    assert claims(findings) == ["before", "after"]
    assert text in problems(findings)["bad"]
    assert ("last words" in problems(findings)["bad"]) == ("last words" in body)


def test_one_hangs(asking: Asking, tmp_path: Path) -> None:
    """One that hangs, even in C, is killed with all that it started; the problem says where, the others are asked."""
    body = f"""
        child = subprocess.Popen(["sleep", "600"])
        os.write(os.open({str(tmp_path / "pid")!r}, os.O_WRONLY), str(child.pid).encode())
        import re; re.match("(a+)+$", "a" * 60 + "b")
        """
    os.mkfifo(tmp_path / "pid")
    reader = os.open(tmp_path / "pid", os.O_RDWR)
    findings = asking(bad=body, good="pass", timeout_seconds=1.5).ask(b"/nowhere/x")
    assert claims(findings) == ["good"]
    problem = problems(findings)["bad"]
    assert problem.startswith("inspector bad.py has not answered for 1.5 seconds\n")
    assert 'bad.py", line 16 in inspect' in problem
    try:
        assert ends(os.pidfd_open(int(os.read(reader, 20))))
    except ProcessLookupError:
        pass  # It has ended, and somebody has seen it.
    os.close(reader)


def test_what_inspectors_print(asking: Asking) -> None:
    """Whatever an inspector prints or reads, however much, and if it closes its output: its answer comes through."""
    body = """
        print("x" * 200_000); os.write(1, b"{\\"claim\\": null}\\n" * 20_000); print("y", file=sys.stderr)
        assert sys.stdin.read() == ""
        subprocess.run(["echo", "from a child"], check=True)
        """
    inspectors = asking(loud=body, closed="os.close(1); os.close(2)", good="pass")
    assert claims(inspectors.ask(b"/nowhere/x", only={1})) == ["loud"]
    assert claims(inspectors.ask(b"/nowhere/x")) == ["loud", "closed", "good"]
    assert claims(inspectors.ask(b"/nowhere/x", only={3})) == ["good"]


def test_one_takes_all_memory(asking: Asking) -> None:
    """With a limit, an inspector that takes memory without end is a problem, and the next file is served."""
    body = "if self.basename == 'big': kept = [bytearray(1 << 24) for _ in range(1 << 20)]"
    inspectors = asking(hog=body, memory_bytes=1 << 29)
    assert "MemoryError" in problems(inspectors.ask(b"/nowhere/big"))["hog"]
    assert claims(inspectors.ask(b"/nowhere/small")) == ["hog"]


def test_a_module_is_loaded_once_and_again_when_it_changes(asking: Asking, tmp_path: Path) -> None:
    """A module is loaded once in its process; a change, a repair or a removal holds for the next file."""
    answer = "global n; n = globals().get('n', 0) + 1; params['process_keywords'] = f'{n} %s {os.getpid()}'"
    inspectors = asking(probe=answer % "old")
    number, text, pid = keywords(inspectors.ask(b"/nowhere/x")).split()
    assert (number, text) == ("1", "old")
    assert keywords(inspectors.ask(b"/nowhere/x")) == f"2 old {pid}"
    write(tmp_path, "probe", answer % "new")
    assert keywords(inspectors.ask(b"/nowhere/x")) == f"1 new {pid}"
    write(tmp_path, "probe", "# module\nfrom")
    assert "SyntaxError" in problems(inspectors.ask(b"/nowhere/x"))["probe"]
    (tmp_path / "probe.py").unlink()
    assert "cannot be loaded: No such file" in problems(inspectors.ask(b"/nowhere/x"))["probe"]
    write(tmp_path, "probe", answer % "new")
    assert keywords(inspectors.ask(b"/nowhere/x")) == f"1 new {pid}"
    assert [entry.name for entry in tmp_path.iterdir()] == ["probe.py"]


@pytest.mark.parametrize(
    "name", [b"a b", b"new\nline\ttab", b"'quo\"te;$(x)", b"caf\xe9 \xff", "né\u2028".encode(), b"\\xe9"]
)
def test_a_name_of_any_bytes(asking: Asking, tmp_path: Path, name: bytes) -> None:
    """An inspector gets every name as Python has it, can open the file, and may hand the name back."""
    path = os.fsencode(tmp_path) + b"/" + name
    with open(path, "wb") as file:
        file.write(b"content")
    body = "assert open(self.filename).read() == 'content'; params['process_keywords'] = self.basename"
    assert keywords(asking(probe=body).ask(path)).replace("\\x5c", "\\") == to_text(name).replace("\\x5c", "\\")


def test_the_environment_is_clean(asking: Asking, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No password, no setting of ours and no installed dbprocessing gets to inspectors; what they need does."""
    installed = tmp_path / "installed" / "dbprocessing"
    installed.mkdir(parents=True)
    for module in ("__init__", "inspector", "extra"):
        (installed / f"{module}.py").write_text("raise SystemError('the installed one')")
    (installed.parent / "site_library.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(installed.parent))
    for name in ("HEADRACE_BROKER__URL", "PGPASSWORD", "MY_DB_PASSWORD", "GITLAB_TOKEN"):
        monkeypatch.setenv(name, "hidden")
    monkeypatch.setenv("CDF_LIB", "/opt/cdf/lib")
    body = """
        import site_library
        assert not [name for name, value in os.environ.items() if value == "hidden"]
        assert os.environ["CDF_LIB"] == "/opt/cdf/lib" and os.environ["PATH"]
        assert not {"celery", "psycopg2", "pydantic", "workers.settings"} & set(sys.modules)
        try:
            import dbprocessing.extra
        except ModuleNotFoundError:
            params["process_keywords"] = "clean"
        """
    assert keywords(asking(probe=body).ask(b"/nowhere/x")) == "clean"


def test_a_dead_child_is_replaced(asking: Asking) -> None:
    """A child that dies between two files, or is closed, costs nothing: the next question starts another one."""
    inspectors = asking(probe="params['process_keywords'] = str(os.getpid())")
    first = int(keywords(inspectors.ask(b"/nowhere/x")))
    pid_file = os.pidfd_open(first)
    os.kill(first, signal.SIGKILL)
    assert ends(pid_file)
    second = int(keywords(inspectors.ask(b"/nowhere/x")))
    assert second != first
    pid_file = os.pidfd_open(second)
    inspectors.close()
    assert ends(pid_file)
    assert int(keywords(inspectors.ask(b"/nowhere/x"))) != second


def test_an_interrupted_question_leaves_no_answer_behind(asking: Asking) -> None:
    """After an exception in the middle of a question, the next question gets its own answers."""

    class Interrupted(Exception):
        pass

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    body = """
        params["process_keywords"] = self.basename
        if self.basename == "slow":
            os.kill(os.getppid(), signal.SIGUSR2)
        """
    inspectors = asking(probe=body)
    kept = signal.signal(signal.SIGUSR2, interrupt)
    try:
        with pytest.raises(Interrupted):
            inspectors.ask(b"/nowhere/slow")
            signal.pause()
    finally:
        signal.signal(signal.SIGUSR2, kept)
    assert keywords(inspectors.ask(b"/nowhere/next")) == "next"


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    """When the parent is killed, an inspector that hangs in C ends at once, and so does what it started."""
    os.mkfifo(tmp_path / "pids")
    path = write(
        tmp_path, "probe",
        f"""
        child = subprocess.Popen(["sleep", "600"])
        with open({str(tmp_path / "pids")!r}, "w") as file:
            file.write(f"{{os.getpid()}} {{child.pid}}")
        import re; re.match("(a+)+$", "a" * 60 + "b")
        """,
    )  # fmt: skip
    program = f"""
from pathlib import Path
from workers.products.inspectors import Inspectors, Spec
Inspectors([Spec(1, "p", 0, "x", Path({str(path)!r}))], timeout_seconds=600).ask(b"/nowhere/x")
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[3]) as parent:
        pid_files = [os.pidfd_open(int(pid)) for pid in (tmp_path / "pids").read_text().split()]
        parent.kill()
        assert [ends(pid_file) for pid_file in pid_files] == [True, True]


def test_what_inspectors_import() -> None:
    """The modules under dbprocessing's name have what inspectors call, with its results."""
    modules: dict[str, ModuleType] = {}
    dbprocessing_api.install(modules)
    package: Any = modules["dbprocessing"]
    insp, utils = package.inspector, package.Utils
    assert modules["dbprocessing.inspector"] is insp
    name = "/scratch/20190704_x/rbspa_hope-L1_20130214_v1.10.3.cdf"
    assert insp.extract_YYYYMMDD(name) == datetime(2013, 2, 14)  # noqa: DTZ001
    assert insp.extract_YYYYMM(name) == date(2013, 2, 1)
    for wrong in ("x_20130231_v1", "x_19520201", "x_20510201", "x"):
        assert insp.extract_YYYYMMDD(wrong) is None
    assert [insp.valid_YYYYMMDD(text) for text in ("20130214", "20130231", "2013021", "abc")] == [True, *[False] * 3]
    assert str(insp.extract_Version(name)) == "1.10.3"
    assert insp.extract_Version("a_v1.2.3.cdf", basename=True) == (package.Version.Version(1, 2, 3), "a_")
    assert insp.extract_Version("a_v1.2.cdf") is None
    version = package.Version.Version.fromString("1.2.3")
    version.incQuality()
    assert f"{version:>6}" == " 1.3.0" and version > package.Version.Version(1, 2, 9)
    with pytest.raises(package.Version.VersionError):
        package.Version.Version(0, 1, 0)
    assert utils.toDatetime("2020-01-02", end=True) == datetime(2020, 1, 2, 23, 59, 59, 999999)  # noqa: DTZ001
    assert utils.datetimeToDate(utils.parseDate("2020-01-02")) == date(2020, 1, 2)
    assert len(utils.daterange_to_dates([date(2020, 2, 27), date(2020, 3, 1)])) == 4
    assert utils.strargs_to_args(["a=1 b=2", "c=3"]) == {"a": "1", "b": "2", "c": "3"}
    assert list(utils.flatten([1, [2, ["x", 3]]])) == [1, 2, "x", 3]
    assert package.DBlogging.dblogger.name == "DBLogger"
