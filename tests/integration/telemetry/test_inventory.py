"""The inventory of a host's folders in a real PostgreSQL: every file once, nothing invented, unchanged means free."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from workers.messages import TakeInventory
from workers.settings import Settings

Ask = Callable[..., list[tuple[Any, ...]]]
Work = Callable[..., list[str]]

LOOK = TakeInventory(host="here", then_ingest=False)
RECORD = '{"ts": "2024-04-16T03:50:00.000000001", "prio": "TELM", "ec": "e", "msg": {"a": 1}}\n'


def origins(sql: Ask) -> set[str]:
    """Paths in the inventory."""
    return {row[0] for row in sql("SELECT origin_path FROM file_origins")}


def test_every_regular_file_is_there_with_its_size_and_time(data: Path, work: Work, sql: Ask) -> None:
    """Files in folders below are found; sizes, times to the microsecond and the time in the name are exact."""
    (data / "deep" / "er").mkdir(parents=True)
    path = data / "deep" / "er" / "cam_20240416035000123456789.xrif"
    path.write_bytes(b"x" * 7)
    os.utime(path, ns=(0, 1_700_000_000_123_456_789))
    (data / "plain.txt").touch()
    assert work(LOOK) == []
    assert origins(sql) == {str(path), str(data / "plain.txt")}
    assert sql("SELECT modification_time, creation_time, size_bytes FROM file_origins WHERE size_bytes = 7") == [
        (
            datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC),
            datetime(2024, 4, 16, 3, 50, 0, 123456, tzinfo=UTC),
            7,
        )
    ]


def test_an_unchanged_look_writes_nothing_but_its_time(data: Path, work: Work, sql: Ask) -> None:
    """A second look changes no row of the inventory and makes no run."""
    for number in range(50):
        (data / f"file{number}").touch()
    work(LOOK)
    before = sql("SELECT xmin::text, ctid::text FROM file_origins ORDER BY 2")
    assert work(LOOK) == []
    assert sql("SELECT xmin::text, ctid::text FROM file_origins ORDER BY 2") == before
    assert sql("SELECT count(*) FROM headrace.run") == [(1,)]
    assert sql("SELECT count(*) FROM headrace.inventory_host WHERE taken_at > now() - interval '1 minute'") == [(1,)]


def test_changed_files_are_updated_and_only_they(data: Path, work: Work, sql: Ask) -> None:
    """A file that grew has its new size; its neighbours' rows are left alone."""
    for name in ("a", "b"):
        (data / name).write_text("1")
    work(LOOK)
    before = sql("SELECT xmin::text FROM file_origins WHERE origin_path LIKE %s", "%/a")
    (data / "b").write_text("12345")
    work(LOOK)
    assert sql("SELECT size_bytes FROM file_origins WHERE origin_path LIKE %s", "%/b") == [(5,)]
    assert sql("SELECT xmin::text FROM file_origins WHERE origin_path LIKE %s", "%/a") == before


def test_a_file_is_missing_after_two_looks(data: Path, work: Work, sql: Ask) -> None:
    """One look without a file is no proof; after the second it is missing; found again, it is not."""
    for name in ("a", "b"):
        (data / name).touch()
    work(LOOK)
    (data / "a").unlink()
    for expected in (1, 2, 2):
        work(LOOK)
        assert sql("SELECT missing_sights FROM file_origins WHERE origin_path LIKE %s", "%/a") == [(expected,)]
    assert sql("SELECT event FROM headrace.file_event") == [("missing",)]
    (data / "a").touch()
    work(LOOK)
    assert sql("SELECT missing_sights FROM file_origins WHERE origin_path LIKE %s", "%/a") == [(0,)]


def test_a_folder_that_is_gone_takes_its_files_along(data: Path, work: Work, sql: Ask) -> None:
    """Files of a removed folder are missing after two looks, and then the folder costs nothing any more."""
    (data / "sub").mkdir()
    (data / "sub" / "a").touch()
    (data / "b").touch()
    work(LOOK)
    shutil.rmtree(data / "sub")
    for _look in range(2):
        work(LOOK)
    assert sql("SELECT missing_sights FROM file_origins ORDER BY origin_path") == [(0,), (2,)]
    assert sql("SELECT folder FROM headrace.inventory_folder") == [(str(data),)]


def test_a_disk_that_is_not_mounted_loses_nothing(data: Path, work: Work, sql: Ask) -> None:
    """An empty or absent data folder that had files is told as a problem, and no file is missing."""
    (data / "a").touch()
    work(LOOK)
    (data / "a").rename(data.parent / "a")
    work(LOOK)
    data.rmdir()
    work(LOOK)
    assert sql("SELECT missing_sights FROM file_origins") == [(0,)]
    assert "is its disk mounted" in sql("SELECT error ->> 'message' FROM headrace.run ORDER BY id DESC LIMIT 1")[0][0]


def test_links_fifos_and_sockets_do_not_stop_it(
    data: Path, work: Work, sql: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop of links and a broken one are told; a FIFO and a socket are no files; all others are found."""
    (data / "good").touch()
    (data / "loop").symlink_to("loop")
    (data / "nowhere").symlink_to("gone")
    (data / "up").symlink_to("..")
    (data / "link").symlink_to("good")
    os.mkfifo(data / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(data)  # a socket's path may have 107 bytes only
        listener.bind("socket")
        work(LOOK)
    assert origins(sql) == {str(data / "good"), str(data / "link")}
    problems = sql("SELECT problems FROM headrace.inventory_host")[0][0]
    assert len(problems) == 2
    assert any("loop" in problem for problem in problems) and any("nowhere" in problem for problem in problems)


def test_what_is_new_or_changed_is_read_next(data: Path, work: Work, sql: Ask) -> None:
    """An inventory that may ingest asks for new and changed telemetry files, and for nothing else."""
    path = data / "cooler_20240416035000000000000.ndjson"
    path.write_text(RECORD)
    (data / "image.xrif").touch()
    look = TakeInventory(host="here")
    assert work(look) == []
    assert sql("SELECT count(*) FROM telem") == [(1,)]
    assert work(look) == []
    assert sql("SELECT count(*) FROM headrace.run") == [(2,)]
    with path.open("a") as file:
        file.write(RECORD.replace("001", "002"))
    assert work(look) == []
    assert sql("SELECT count(*) FROM telem") == [(2,)]


def test_paths_longer_than_xtelemdb_allowed_are_kept(data: Path, work: Work, sql: Ask) -> None:
    """A path of 1,500 characters is in the inventory."""
    folder = data
    for _level in range(7):
        folder = folder / ("d" * 200)
    folder.mkdir(parents=True)
    (folder / "f").touch()
    assert work(LOOK) == []
    assert len(next(iter(origins(sql)))) > 1400


def test_another_hosts_files_are_left_alone(data: Path, work: Work, sql: Ask, conf: Settings) -> None:
    """The same folder on two hosts is two sets of rows; a look at one touches nothing of the other."""
    (data / "a").touch()
    work(LOOK)
    there = conf.model_copy(update={"host": "there"})
    work(TakeInventory(host="there", then_ingest=False), settings=there)
    (data / "b").touch()
    work(LOOK)
    assert sql("SELECT origin_host, count(*) FROM file_origins GROUP BY 1 ORDER BY 1") == [("here", 2), ("there", 1)]
