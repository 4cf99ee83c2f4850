"""Running a code: every way in which it may end, and that nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from workers.errors import PermanentFailure, RetryLater
from workers.products.endings import verdict
from workers.products.running import Order, Outcome, is_alive, kill_survivors, run, started_ticks, survivors

MB = 1_000_000


def _script(folder: Path, body: str, interpreter: str = "/bin/sh") -> str:
    path = folder / "code"
    path.write_text(f"#!{interpreter}\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def _order(
    folder: Path, *argv: str | bytes, environment: Mapping[str, str] | None = None, timeout: float | None = 60,
    memory: int | None = None, output: int | None = None, log_bytes: int = 10_000,
) -> Order:  # fmt: skip
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return Order(
        argv=argv, folder=scratch, environment=environment or {}, token=f"{os.getpid()}-{folder.name}",
        timeout_seconds=timeout, memory_bytes=memory, output_bytes=output, log_bytes=log_bytes,
    )  # fmt: skip


def _run(order: Order, cancelled: str | None = None) -> Outcome:
    outcome = run(order, started=lambda group, ticks: None, cancelled=lambda: cancelled)
    assert survivors([order.token]) == []
    return outcome


def _sh(folder: Path, body: str, **limits: float | None) -> Outcome:
    return _run(_order(folder, _script(folder, body), **limits))  # type: ignore[arg-type]


def _python(folder: Path, body: str, **limits: float | None) -> Outcome:
    return _run(_order(folder, _script(folder, body, sys.executable), **limits))  # type: ignore[arg-type]


def test_good_end(tmp_path: Path) -> None:
    """A code that ends with 0 has no problem; its output, its folder and its streams are where they belong."""
    outcome = _sh(tmp_path, "echo data > result; cat; echo said; echo warned >&2")
    assert (outcome.kind, outcome.problem, outcome.exit_status, outcome.signal) == (None, None, 0, None)
    assert (outcome.stdout, outcome.stderr) == ("said\n", "warned\n")
    assert (tmp_path / "scratch/result").read_text() == "data\n"


def test_exit_status(tmp_path: Path) -> None:
    """A code's own exit status is kept, and its last word stands in the problem."""
    outcome = _sh(tmp_path, "echo no calibration for this day >&2; exit 3")
    assert (outcome.kind, outcome.exit_status) == ("exit", 3)
    assert outcome.problem == "code ended with exit status 3: no calibration for this day"


@pytest.mark.parametrize("status", [126, 127])
def test_own_exit_status_of_a_missing_command(tmp_path: Path, status: int) -> None:
    """A code that ends with 126 or 127 by itself, as shells do, was not missing."""
    outcome = _sh(tmp_path, f"exit {status}")
    assert (outcome.kind, outcome.exit_status) == ("exit", status)


def test_signal(tmp_path: Path) -> None:
    """A code that a signal ended has no exit status, and the signal's name stands in the problem."""
    outcome = _sh(tmp_path, "kill -SEGV $$")
    assert (outcome.kind, outcome.exit_status, outcome.signal) == ("signal", None, signal.SIGSEGV)
    assert outcome.problem == "code was ended by SIGSEGV"


def test_timeout_leaves_time_to_clean_up(tmp_path: Path) -> None:
    """A code that is out of time may clean up after SIGTERM; even if it then ends with 0, it has failed."""
    outcome = _sh(tmp_path, "trap 'echo cleaned; exit 0' TERM; sleep 600 & wait", timeout=0.2)
    assert (outcome.kind, outcome.stdout) == ("timeout", "cleaned\n")
    assert outcome.problem == "code ran longer than the 0.2 s it may"


def test_timeout_of_a_stubborn_family(tmp_path: Path) -> None:
    """A code that ignores SIGTERM is killed, with its children in other groups and in other sessions."""
    body = "trap '' TERM; set -m; sleep 601 & (setsid sh -c 'sleep 602 & sleep 603' &) ; sleep 604"
    outcome = _sh(tmp_path, body, timeout=0.2)
    assert (outcome.kind, outcome.signal) == ("timeout", signal.SIGKILL)
    assert outcome.seconds < 20


def test_children_of_a_good_end(tmp_path: Path) -> None:
    """A child in the background that holds the streams open delays nothing, and does not outlive its code."""
    outcome = _sh(tmp_path, "sleep 600 & echo done")
    assert (outcome.kind, outcome.stdout) == (None, "done\n")
    assert outcome.seconds < 30


def test_daemons_of_a_bad_end(tmp_path: Path) -> None:
    """When a code fails, all processes are ended that it started, however many and in whatever session."""
    body = 'if [ "$1" = 0 ]; then exec sleep 600; fi; for i in 1 2; do setsid "$0" $(($1 - 1)) & done\n'
    order = _order(tmp_path, _script(tmp_path, f'if [ $# = 0 ]; then "$0" 4; exit 1; fi; {body}'))
    assert _run(order).exit_status == 1


def test_memory(tmp_path: Path) -> None:
    """A code that uses more memory than it may is killed, and the peak is known."""
    outcome = _python(tmp_path, "import time; held = bytearray(150_000_000); time.sleep(600)", memory=100 * MB)
    assert (outcome.kind, outcome.signal) == ("memory", signal.SIGKILL)
    assert outcome.problem is not None and "may use 100.0 MB" in outcome.problem
    assert outcome.peak_bytes is not None and outcome.peak_bytes > 100 * MB


def test_memory_of_children(tmp_path: Path) -> None:
    """The memory of all processes of a code counts together."""
    child = f"{sys.executable} -c 'import time; held = bytearray(60_000_000); time.sleep(600)' &"
    assert _sh(tmp_path, f"{child}\n{child}\n{child}\nwait", memory=120 * MB).kind == "memory"


def test_memory_that_is_shared(tmp_path: Path) -> None:
    """Memory that forks share counts once."""
    body = (
        "import os, time; held = bytearray(60_000_000)\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0: time.sleep(0.6); os._exit(0)\n"
        "for _ in range(3): os.wait()"
    )
    outcome = _python(tmp_path, body, memory=120 * MB)
    assert (outcome.kind, outcome.problem) == (None, None)


def test_memory_that_is_refused(tmp_path: Path) -> None:
    """A code that asks for far too much at once gets nothing, and that counts as its memory limit."""
    outcome = _python(tmp_path, "bytearray(100_000_000_000)", memory=100 * MB)
    assert (outcome.kind, outcome.exit_status) == ("memory", 1)
    assert outcome.problem == "code had no memory left of the 100.0 MB it may use: MemoryError"


def test_peak_and_processor_time(tmp_path: Path) -> None:
    """A code's peak is its own, not that of the process that started it; its processor time is counted."""
    held = b"x" * (150 * MB)  # touched, so that it is resident
    small = _python(tmp_path, "import time; start = time.process_time()\nwhile time.process_time() < start + 0.2: pass")
    assert small.peak_bytes is not None and 1 * MB < small.peak_bytes < 100 * MB
    assert small.cpu_seconds >= 0.2
    assert len(held) == 150 * MB


def test_endless_file(tmp_path: Path) -> None:
    """A file that grows beyond the limit is stopped there, not a gigabyte later."""
    outcome = _run(_order(tmp_path, "dd", "if=/dev/zero", "of=big", "bs=1M", "count=10000", output=5 * MB))
    assert (outcome.kind, outcome.signal) == ("output_limit", signal.SIGXFSZ)
    assert (tmp_path / "scratch/big").stat().st_size < 5 * MB + 2048


def test_failed_write_that_is_overlooked(tmp_path: Path) -> None:
    """A code that ends with 0 although its file was cut at the limit has failed."""
    outcome = _sh(tmp_path, "dd if=/dev/zero of=big bs=1M count=100; exit 0", output=MB)
    assert (outcome.kind, outcome.exit_status) == ("output_limit", 0)


def test_file_of_exactly_the_limit(tmp_path: Path) -> None:
    """A code may write all that it may."""
    assert _sh(tmp_path, "head -c 1000000 /dev/zero > full", output=MB).kind is None


def test_many_small_files(tmp_path: Path) -> None:
    """Files count together, in folders of the folder too."""
    body = "mkdir d; i=0; while :; do head -c 10000 /dev/zero > d/$i; i=$((i + 1)); done"
    outcome = _sh(tmp_path, body, output=MB)
    assert (outcome.kind, outcome.signal) == ("output_limit", signal.SIGKILL)
    assert outcome.problem is not None and "may write 1.0 MB" in outcome.problem


def test_full_disk(tmp_path: Path) -> None:
    """A code that finds the disk full has failed by itself, and says why."""
    outcome = _sh(tmp_path, "head -c 100000 /dev/zero > /dev/full")
    assert outcome.kind == "exit"
    assert outcome.problem is not None and "No space left on device" in outcome.problem


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        (None, 0o755, "does not exist"),
        (b"#!/bin/sh\n", 0o644, "is not executable: chmod +x"),
        (b"#!/no/such/interpreter -x\n", 0o755, "the interpreter /no/such/interpreter of "),
        (b"#!/usr\n", 0o755, "is not a file"),
        (b"#!nowhere\n", 0o755, "could not be started: "),
        (b"#!/bin/sh\r\necho\r\n", 0o755, "ends as Windows ends lines"),
        (b"import os\n", 0o755, "is neither a program nor a script"),
        (b"", 0o755, "is neither a program nor a script"),
    ],
)
def test_missing(tmp_path: Path, content: bytes | None, mode: int, problem: str) -> None:
    """A code that cannot be started is told from one that fails, and it is said what to mend."""
    path = tmp_path / "code"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    outcome = _run(_order(tmp_path, str(path), log_bytes=0))
    assert outcome.kind == "missing"
    assert outcome.problem is not None and problem in outcome.problem


def test_missing_folder_and_command(tmp_path: Path) -> None:
    """A folder in place of a code is missing, and so is a bare name that the path does not have."""
    assert _run(_order(tmp_path, str(tmp_path))).problem == f"{tmp_path} is not a file"
    assert _run(_order(tmp_path, "no-such-command")).kind == "missing"


def test_too_long_command_line(tmp_path: Path) -> None:
    """A command line that the system does not take is the code's failure: waiting would not help."""
    outcome = _run(_order(tmp_path, "/bin/true", "x" * 500_000))
    assert outcome.kind == "missing"
    assert outcome.problem is not None and "1 arguments of 500001 bytes" in outcome.problem


def test_lost_scratch(tmp_path: Path) -> None:
    """A scratch folder that is gone is this host's failure: it is worth another attempt."""
    order = _order(tmp_path, "/bin/true")
    order.folder.rmdir()
    with pytest.raises(RetryLater, match="scratch"):
        _run(order)


def test_endless_stdout(tmp_path: Path) -> None:
    """A gigabyte on stdout takes no disk and no memory; its end is kept."""
    outcome = _sh(tmp_path, "yes 12345678 | head -c 900000000; echo; echo the end", log_bytes=27)
    assert (outcome.kind, outcome.stdout) == (None, "12345678\n12345678\n\nthe end\n")
    assert os.listdir(tmp_path / "scratch") == []


def test_streams_closed_early(tmp_path: Path) -> None:
    """A code that closes its streams and works on costs no processor time here."""
    before = time.process_time()
    outcome = _sh(tmp_path, "exec >&- 2>&-; sleep 0.5")
    assert outcome.kind is None
    assert time.process_time() - before < 0.3


def test_binary_streams(tmp_path: Path) -> None:
    """What a code says fits into a text column: no NUL, no broken UTF-8, no half character where it was cut."""
    outcome = _sh(tmp_path, r"printf 'a\000\377b' >&2; printf 'xx\303\274end'", log_bytes=4)
    assert (outcome.stderr, outcome.stdout) == ("a\ufffdb", "end")


def test_cancelled(tmp_path: Path) -> None:
    """A code whose run a person cancels is ended within moments, and the person's reason is the problem."""
    outcome = _run(_order(tmp_path, _script(tmp_path, "exec sleep 600")), cancelled="cancelled by an operator")
    assert (outcome.kind, outcome.problem, outcome.signal) == ("cancelled", "cancelled by an operator", signal.SIGTERM)


def test_started(tmp_path: Path) -> None:
    """The process group that is reported is alive, and known by its start; afterwards it is not."""
    groups: list[tuple[int, int]] = []

    def started(group: int, ticks: int) -> None:
        assert os.getpgid(group) == os.getsid(group) == group
        assert is_alive(group, ticks) and not is_alive(group, ticks + 1)
        groups.append((group, ticks))

    run(_order(tmp_path, _script(tmp_path, "sleep 0.3")), started=started, cancelled=lambda: None)
    assert [is_alive(*group) for group in groups] == [False]


def test_started_fails(tmp_path: Path) -> None:
    """When the start cannot be recorded, the code is ended, and the error is passed on."""

    def started(group: int, ticks: int) -> None:
        raise ConnectionError("the database is away")

    order = _order(tmp_path, _script(tmp_path, "setsid sleep 601 & sleep 600"))
    with pytest.raises(ConnectionError, match="away"):
        run(order, started=started, cancelled=lambda: None)
    assert survivors([order.token]) == []


def test_interrupted(tmp_path: Path) -> None:
    """An exception out of a signal handler, as at a worker's time limit, ends the code and is passed on."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def started(group: int, ticks: int) -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()

    before = signal.signal(signal.SIGUSR1, interrupt)
    order = _order(tmp_path, _script(tmp_path, "(setsid sleep 601 &); sleep 600"))
    try:
        with pytest.raises(KeyboardInterrupt):
            run(order, started=started, cancelled=lambda: None)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert survivors([order.token]) == []


def test_ignored_children(tmp_path: Path) -> None:
    """Where the kernel keeps no exit status for this process, a run is a failure and never taken for a good end."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(PermanentFailure, match="how true ended is not known"):
            _run(_order(tmp_path, "/bin/true"))
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_arguments(tmp_path: Path) -> None:
    """Arguments arrive as they are: no shell sees blanks, quotes, newlines, dollars, or what is not UTF-8."""
    words: list[str | bytes] = ["a b", "it's", '"q"', "new\nline", "$HOME", "-x", "", "*", b"\xff\xfe", "`id`", "\\"]
    code = _script(tmp_path, "printf '%s\\0' \"$@\" > words")
    assert _run(_order(tmp_path, code, *words)).kind is None
    expected = b"".join(os.fsencode(word) + b"\0" for word in words)
    assert (tmp_path / "scratch/words").read_bytes() == expected


def test_executable_with_a_difficult_name(tmp_path: Path) -> None:
    """A code's own path may hold anything, and is shown as text."""
    folder = os.path.join(os.fsencode(tmp_path), b"it's \xff\n$(x)")
    os.mkdir(folder)
    code = os.path.join(folder, b"do it")
    os.symlink("/bin/false", code)
    assert _run(_order(tmp_path, code)).problem == "do it ended with exit status 1"


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A code's environment is small, its own, and without this process' secrets."""
    monkeypatch.setenv("HEADRACE_CONTROL__PASSWORD", "secret")
    monkeypatch.setenv("ANYTHING", "else")
    code = _script(tmp_path, "/usr/bin/env")
    order = _order(tmp_path, code, environment={"MODEL": "T89 = a\nb", "TZ": "UTC0", "HEADRACE_BUILD": "faked"})
    names = {line.partition("=")[0] for line in _run(order).stdout.splitlines()}
    shells = {"PWD", "OLDPWD", "SHLVL", "_", "b"}
    assert names - shells == {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "MODEL", "HEADRACE_BUILD"}
    told = _sh(tmp_path, 'echo "$TZ $TMPDIR $HEADRACE_BUILD"; pwd').stdout
    assert told == f"UTC {order.folder} {order.token}\n{order.folder}\n"


def test_descriptors(tmp_path: Path) -> None:
    """However a run ends, it keeps no descriptor open here, and the code inherits none."""
    good, missing = _order(tmp_path, "/bin/ls", "/proc/self/fd"), _order(tmp_path, "/no/code")
    before = os.listdir("/proc/self/fd")
    assert _run(good).stdout == "0\n1\n2\n3\n"  # 3 is the folder that it lists
    _run(missing)
    with pytest.raises(ZeroDivisionError):
        run(good, started=lambda group, ticks: print(1 // 0), cancelled=lambda: None)  # noqa: T201
    assert os.listdir("/proc/self/fd") == before


def test_survivors_of_a_dead_worker(tmp_path: Path) -> None:
    """What a dead worker's build left behind is found by its token and ended; other builds go on."""
    tokens = f"{os.getpid()}-a", f"{os.getpid()}-ab"
    command = ["/bin/sh", "-c", "sleep 600 & sleep 601"]
    started = [
        subprocess.Popen(command, env={"HEADRACE_BUILD": token}, start_new_session=True) for token in tokens
    ]  # fmt: skip
    try:
        ticks = started_ticks(started[0].pid)
        assert ticks is not None and is_alive(started[0].pid, ticks)
        assert kill_survivors(tokens[:1]) >= 1
        assert not is_alive(started[0].pid, ticks)
        assert survivors(tokens[:1]) == []
        assert started[1].pid in survivors(tokens)
    finally:
        kill_survivors(tokens)
        for process in started:
            process.wait()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0, None),
        (-9, ("signal", "was ended by SIGKILL, sent by a person, or by the kernel for want of memory (see dmesg)")),
        (137, ("exit", "ended with exit status 137 (SIGKILL of a program in it)")),
        (200, ("exit", "ended with exit status 200")),
        (255, ("exit", "ended with exit status 255")),
        (-40, ("signal", "was ended by signal 40")),
    ],
)
def test_verdicts(status: int, expected: tuple[str, str] | None) -> None:
    """A number becomes a sentence."""
    found = verdict(status, "", launcher="x", written=None, peak_bytes=0, memory_bytes=None, output_bytes=None)
    assert found == expected
