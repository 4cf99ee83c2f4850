"""cube_dispatcher's INI file: read as Skytools read it, told apart from what it means here, and written as YAML."""

from __future__ import annotations

import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from workers.dispatch import rules
from workers.dispatch.cube_file import SWITCHES, CubeFile, as_yaml, read
from workers.dispatch.names import table
from workers.dispatch_settings import Consumer
from workers.errors import SettingsError
from workers.settings import load

Write = Callable[[str | bytes], Path]

SAMPLE = """\
# moves the archive
[cube_dispatcher]
job_name          = archive_cube
src_db            = dbname=control host=db1 password='se cret'
dst_db            = postgresql://cube:geheim@db2:5433/archive?sslmode=require
pgq_queue_name    = archive.%(job_name)s
pgq_consumer_id   = cd_%(service_name)s
mode              = keep_all ; every version
dateformat        = YYYY_MM
loop_delay        = 2
logfile           = ~/log/%(job_name)s.log
; made once a month
part_template     =
    create table _DEST_TABLE (like _PARENT);

\talter table only _DEST_TABLE add check (a %% 2 = 0)
    ; grant select on _DEST_TABLE to reader;
pidfile           = ~/pid/%(job_name)s.pid
"""
MINIMAL = "[cube_dispatcher]\njob_name = j\nsrc_db = dbname=a\ndst_db = dbname=b\npgq_queue_name = q\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes cube.ini in a folder of its own, which has no headrace.yaml."""
    monkeypatch.chdir(tmp_path)

    def written(text: str | bytes) -> Path:
        path = tmp_path / "cube.ini"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return written


def consumer(cube: CubeFile) -> Consumer:
    """The one consumer, as a worker sees it."""
    return load(None, cube.overrides).dispatch.consumers[cube.name]


def problems(path: Path) -> list[str]:
    """What is wrong with a file, without its name."""
    with pytest.raises(SettingsError) as caught:
        read(path)
    return [line.removeprefix(f"{path}: ") for line in caught.value.problems]


def test_a_file_becomes_one_consumer_between_two_databases(write: Write) -> None:
    """Every key that has a meaning here is used, interpolated, with its comment cut off."""
    cube = read(write(SAMPLE))
    conf = load(None, cube.overrides)
    one = conf.dispatch.consumers["archive_cube"]
    assert conf.target(one.source).dsn == "dbname=control host=db1 password='se cret'"
    assert conf.target(one.target).dsn == "postgresql://cube:geheim@db2:5433/archive?sslmode=require"
    assert (one.queue, one.registered_as, one.mode) == ("archive.archive_cube", "cd_cube_dispatcher", "keep_all")
    assert (one.partition.kind, one.partition.by, one.partition.dateformat) == ("like", "batch_time", "YYYY_MM")
    assert one.partition.part_template == (
        "create table _DEST_TABLE (like _PARENT);\n"
        "alter table only _DEST_TABLE add check (a % 2 = 0)\n"
        "; grant select on _DEST_TABLE to reader;"
    )


def test_a_drop_in_changes_no_meaning(write: Write) -> None:
    """What the old program could not do stays off, and its position is kept in step."""
    one = consumer(read(write(MINIMAL)))
    assert (one.source, one.target, one.registered_as, one.mode) == ("j.src", "j.dst", "j", "keep_latest")
    assert one.partition.model_dump(include={"kind", "dateformat", "part_template", "timezone"}) == {
        "kind": "like",
        "dateformat": "YYYY_MM_DD",
        "part_template": None,
        "timezone": "source",
    }
    assert (one.on_delete, one.on_truncate, one.on_unknown, one.on_new_column) == (None, "error", "error", "error")
    assert (one.leaf_to_root, one.sync_pgq_ext, one.slices, one.merge_events) == (False, True, 1, None)
    assert (one.only_tables, one.meta_columns) == (("*",), ())


def test_deletes_are_errors_where_every_version_is_kept(write: Write) -> None:
    """keep_all has no place for a delete, as in cube_dispatcher."""
    assert consumer(read(write(MINIMAL + "mode = keep_all\n"))).on_delete == "error"


def test_the_spellings_of_skytools_3_are_read_too(write: Write) -> None:
    """queue_name and consumer_name stand for the keys of 2.1; the name is the file's where there is no job_name."""
    text = "[cube_dispatcher]\nsrc_db=dbname=a\ndst_db:dbname=b\nqueue_name = q3\nconsumer_name = c3\n"
    cube = read(write(text))
    one = consumer(cube)
    assert (cube.name, one.queue, one.registered_as) == ("cube", "q3", "c3")
    assert cube.notes == ["job_name: missing, 'cube' after the file"]


def test_the_older_spelling_goes_first_if_it_says_something(write: Write) -> None:
    """pgq_queue_name beats queue_name, but an empty one does not, as in Skytools 3."""
    cube = read(write(MINIMAL + "queue_name = other\npgq_consumer_id =\nconsumer_name = c\n"))
    assert (consumer(cube).queue, consumer(cube).registered_as) == ("q", "c")
    assert cube.notes == ["queue_name: not used, pgq_queue_name goes before it as in Skytools 3"]


def test_a_name_that_skytools_2_would_not_have_used_is_noted(write: Write) -> None:
    """Without job_name and consumer name the two versions registered under different names."""
    (note,) = read(write(MINIMAL.replace("job_name = j\n", ""))).notes
    assert note == (
        "job_name: missing, 'cube' after the file, in PgQ too as in Skytools 3 "
        "(2.1 registered it as 'cube_dispatcher': say so by pgq_consumer_id)"
    )


@pytest.mark.parametrize("empty", ["dateformat =", 'dateformat = ""', "dateformat:"])
def test_an_empty_dateformat_means_no_partitions(write: Write, empty: str) -> None:
    """Rows then go into the table itself, and a template for partitions is of no use."""
    cube = read(write(MINIMAL + empty + "\npart_template = create table _DEST_TABLE ();\n"))
    assert (consumer(cube).partition.kind, consumer(cube).partition.dateformat) == ("none", "")
    assert cube.notes == ["part_template: of no use without a dateformat, no table is made"]


def test_an_empty_template_is_the_default_one_and_noted(write: Write) -> None:
    """No partition could be made with it; here the default makes them."""
    cube = read(write(MINIMAL + "part_template =\n"))
    assert consumer(cube).partition.part_template is None
    assert cube.notes == ["part_template: empty, the default is used"]


def test_a_table_filter_is_a_list_of_whole_names(write: Write) -> None:
    """Names are compared as they are, of schema public if none is said; nothing in them is a pattern."""
    cube = read(write(MINIMAL + "table_filter = plain, tele.a*b, [x].t,\n"))
    one = consumer(cube)
    wanted = ["public.plain", "tele.a*b", "[x].t"]
    others = ["public.plain2", "tele.axb", "x.t", "tele.plain", "public.PLAIN"]
    assert [name for name in [*wanted, *others] if rules.of(one, table(name))] == wanted
    assert cube.notes == ["table_filter: used as only_tables, as in Skytools 3 (2.1 did not know it)"]


def test_every_other_key_is_noted_by_name(write: Write) -> None:
    """Each key that is not used as it is has one note, in the file's order; an unknown one too."""
    base = ["loop_delay", "connection_lifetime", "use_skylog", "logfile", "pidfile", "log_size", "logfmt_file"]
    more = ["exception_sleep", "sql_retry_max_count", "keepalive_stats", "pgq_lazy_fetch", "pgq_autocommit"]
    ticks = ["pgq_batch_collect_events", "pgq_batch_collect_interval", "pgq_keep_lag"]
    keys = [*base, *more, *ticks, "zebra", "dateformt"]
    cube = read(write(MINIMAL + "".join(f"{key} = 1\n" for key in keys)))
    assert [note.split(":")[0] for note in cube.notes] == keys
    assert (
        cube.notes[0] == "loop_delay: replaced by dispatch.poll_seconds; with --here the run ends when no tick is left"
    )
    assert cube.notes[-2:] == [
        "zebra: unknown, not used",
        "dateformt: unknown, not used (did you mean 'dateformat'?)",
    ]


def test_a_key_that_other_values_refer_to_is_used(write: Write) -> None:
    """Variables of a file, in its own section or in [DEFAULT], are no unknown keys."""
    text = MINIMAL.replace("dbname=a", "dbname=a host=%(server)s port=%(PORT)s")
    cube = read(write("[DEFAULT]\nserver = db%(digit)s\ndigit = 9\nspare = 1\n" + text + "port = 6432\n"))
    assert cube.overrides["databases"]["j.src"]["connection"]["dsn"] == "dbname=a host=db9 port=6432"
    assert cube.notes == ["spare: unknown, not used"]


def test_the_files_own_place_can_be_referred_to(write: Write) -> None:
    """config_dir, config_file and host_name are there as in Skytools 3."""
    path = write(MINIMAL.replace("dbname=a", "passfile=%(config_dir)s/pass service=%(config_file)s"))
    dsn = read(path).overrides["databases"]["j.src"]["connection"]["dsn"]
    assert dsn == f"passfile={path.parent}/pass service={path}"


def test_tilde_and_variables_stay_as_they_are(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skytools expanded `~` in logfile and pidfile only."""
    monkeypatch.setenv("WHERE", "elsewhere")
    cube = read(write(MINIMAL.replace("dbname=a", "passfile=~/x host=$WHERE")))
    assert cube.overrides["databases"]["j.src"]["connection"]["dsn"] == "passfile=~/x host=$WHERE"


def test_all_notes_fit_into_one_line(write: Write) -> None:
    """The line at a run's start has the file and every note; a file with none says so."""
    cube = read(write(SAMPLE))
    assert len(cube.notes) == 3
    assert cube.line() == "'cube.ini': " + "; ".join(cube.notes)
    assert "\n" not in cube.line()
    assert read(write(MINIMAL)).line() == "'cube.ini': every setting is used as it is"


@pytest.mark.parametrize(
    "encoded",
    [
        ("\ufeff" + MINIMAL + "dateformat = é\n").encode(),
        (MINIMAL + "dateformat = é\n").replace("\n", "\r\n").encode(),
        (MINIMAL + "dateformat = é\n").encode("latin-1"),
        "".join(f" {line}\n" for line in (MINIMAL + "\ndateformat = é").splitlines()).encode(),
        (MINIMAL.upper().replace("CUBE_DISPATCHER", "cube_dispatcher") + "REM a word\nDATEFORMAT: é").encode(),
    ],
    ids=["byte order mark", "CRLF", "Latin-1", "indented as a whole", "upper case, REM, no newline at the end"],
)
def test_a_file_is_read_however_it_was_written(write: Write, encoded: bytes) -> None:
    """Encoding, line ends, a common indent and the case of keys make no difference."""
    one = consumer(read(write(encoded)))
    assert (one.queue.lower(), one.partition.dateformat) == ("q", "é")


def test_comments_end_a_line_only_as_in_skytools(write: Write) -> None:
    """A semicolon starts a comment behind white space in a key's own line; `#` only at a line's start."""
    text = MINIMAL + (
        "dateformat = YYYY;MM#DD # x\npart_template = one; two\n  # left out\n# this too\n  three ; four\n  ; five\n"
    )
    layout = consumer(read(write(text))).partition
    assert layout.dateformat == "YYYY;MM#DD # x"
    assert layout.part_template == "one; two\nthree ; four\n; five"


def test_sql_that_a_comment_cuts_off_is_noted(write: Write) -> None:
    """Skytools never saw what follows ` ;` in the template's first line; whoever reads the note can mend it."""
    cube = read(write(MINIMAL + "part_template = create table _DEST_TABLE (like _PARENT) ; grant all\n  ; end\n"))
    assert consumer(cube).partition.part_template == "create table _DEST_TABLE (like _PARENT)\n; end"
    assert cube.notes == ["part_template: what follows ` ;` in its first line is a comment, as for Skytools"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[cube_dispatcher]\n",
            [
                "[cube_dispatcher] src_db is missing; set it to a libpq string such as dbname=x host=y",
                "[cube_dispatcher] dst_db is missing; set it to a libpq string such as dbname=x host=y",
                "[cube_dispatcher] the queue is missing; set pgq_queue_name (Skytools 3: queue_name)",
            ],
        ),
        (
            MINIMAL + "queue_name =\nmode = latest\n",
            ["[cube_dispatcher] mode: latest is neither keep_latest nor keep_all; set one of the two"],
        ),
        (
            MINIMAL.replace("= q", "="),
            ["[cube_dispatcher] the queue is missing; set pgq_queue_name (Skytools 3: queue_name)"],
        ),
        (
            MINIMAL + "dateformat = 100%\n",
            [
                "[cube_dispatcher] dateformat (line 6): a lone % is no text in these files; "
                "write %% for it, or %(name)s for another setting"
            ],
        ),
        (
            MINIMAL + "mode = %(moed)s\n",
            [
                "[cube_dispatcher] mode (line 6): %(moed)s is not set anywhere in the file; "
                "set it, or write %% for a plain %"
            ],
        ),
        (
            MINIMAL + "mode = %(x)s\nx = %(mode)s\n",
            [
                "[cube_dispatcher] mode (line 6): %(mode)s leads back to itself; write out one of the two settings",
            ],
        ),
        (MINIMAL + "Queue : a\nqueue = b\n", ["line 7: queue is in line 6 too; take one of them away"]),
        (
            MINIMAL + "[cube_dispatcher]\nmode = keep_all\n",
            ["line 6: the section 'cube_dispatcher' is there twice; join the two"],
        ),
        (
            MINIMAL + "\nkeep_all\n",
            ["line 7: neither `key = value` nor indented like the rest of the value above it"],
        ),
        (
            "src_db = x\n",
            ["line 1: stands before the first section; [cube_dispatcher] is missing above it"],
        ),
        ("", ["there is no section [cube_dispatcher]; found: none; is it the right file?"]),
        (
            "[DEFAULT]\nsrc_db = x\n",
            ["there is no section [cube_dispatcher]; found: none; is it the right file?"],
        ),
        (
            "[londiste]\n[pgqadm]\n",
            ["there is no section [cube_dispatcher]; found: 'londiste', 'pgqadm'; is it the right file?"],
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(write: Write, text: str, expected: list[str]) -> None:
    """Every problem of a file comes at once: section, key or line, and what to do."""
    assert problems(write(text)) == expected


def test_a_file_that_is_not_there_is_an_error_of_the_settings(tmp_path: Path) -> None:
    """It is told with its path, a folder too."""
    assert problems(tmp_path / "none.ini")[0].startswith("cannot be read: ")
    assert problems(tmp_path)[0].startswith("cannot be read: ")


def test_the_only_section_is_taken_whatever_its_name(write: Write) -> None:
    """A file with one section of another name is read, with a note."""
    cube = read(write(MINIMAL.replace("[cube_dispatcher]", "[cube]")))
    assert consumer(cube).queue == "q"
    assert cube.notes == ["section 'cube': taken for [cube_dispatcher], the only one there is"]


def test_sections_of_other_programs_are_noted(write: Write) -> None:
    """They may say anything, their keys are not looked at."""
    cube = read(write("[londiste]\nsrc_db = other\nx = %\n" + MINIMAL))
    assert cube.overrides["databases"]["j.src"]["connection"]["dsn"] == "dbname=a"
    assert cube.notes == ["section 'londiste': not of cube_dispatcher, not used"]


@pytest.mark.parametrize(
    "dsn",
    [
        "host=h password=geheim",
        "host=h password='ge\\'heim geheim'",
        "postgresql://u:geheim@h/d",
        "host=h\ndbname=d password=geheim",
        "host=h password=\ngeheim dbname=d",
        "host=h password=\ngeheim",
        "host=h password=x%geheim",
        "host=h\npassword=geheim\npassword=geheim",
    ],
)
@pytest.mark.parametrize("more", ["", "mode = %(src_db)s\n", "mode = wrong\nlogfile = %(src_db)s\n"])
def test_no_password_is_told(write: Write, dsn: str, more: str) -> None:
    """Neither notes, errors nor the object's own text repeat what a connection string may hold, even a broken one."""
    path = write(MINIMAL.replace("dbname=a", dsn) + more)
    try:
        cube = read(path)
    except SettingsError as error:
        told = str(error)
    else:
        told = f"{cube!r} {cube.line()} {cube.notes}"
    assert "geheim" not in told
    assert "cube" in told


def test_every_switch_has_a_meaning_here() -> None:
    """The switches of cube_dispatcher are explained, the old one first."""
    assert list(SWITCHES) == ["-d", "-r", "-s", "-k", "-v", "-q", "--register", "--unregister", "--rewind", "--reset"]
    assert SWITCHES["--rewind"] == "headrace dispatch rewind"
    assert all(meaning.strip() and "\n" not in meaning for meaning in SWITCHES.values())


def test_the_yaml_says_the_same(write: Write, tmp_path: Path) -> None:
    """What `import` prints loads to the settings that the old file gives."""
    cube = read(write(SAMPLE))
    ours = tmp_path / "ours.yaml"
    ours.write_text(as_yaml(cube), encoding="utf-8")
    assert load(ours) == load(None, cube.overrides)


def test_the_yaml_can_be_read_by_people(write: Write) -> None:
    """Notes are comments, SQL keeps its lines, nothing is said that is not set."""
    text = as_yaml(read(write(MINIMAL + "loop_delay = 1\npart_template =\n  create a;\n  create b;\n")))
    head, _, body = text.partition("databases:\n")
    assert head.splitlines() == [
        "# What 'cube.ini' of cube_dispatcher says.",
        "# loop_delay: replaced by dispatch.poll_seconds; with --here the run ends when no tick is left",
    ]
    assert "        part_template: |-\n          create a;\n          create b;\n" in body
    assert "null" not in body


def test_the_yaml_recommends_a_password_file(write: Write) -> None:
    """Only where a password stands in the file, and the password stays in the dsn until somebody moves it."""
    advice = "`password_file:` below `dsn:`"
    assert advice in as_yaml(read(write(SAMPLE))) and "geheim" in as_yaml(read(write(SAMPLE)))
    assert advice not in as_yaml(read(write(MINIMAL)))


# What one line of a value can hold: it begins and ends with something, and has no comment in it.
LINES = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=30).filter(
    lambda line: line.strip(string.whitespace) == line != '""' and line[0] not in "#;" and ";" not in line
)


@given(
    name=LINES, queue=LINES, registered=LINES, dateformat=LINES, source=LINES, template=st.lists(LINES, max_size=4)
)  # fmt: skip
@example(name="null", queue="1.0", registered="yes", dateformat="2026-11-22", source="dbname=x", template=["~", "- a"])
@example(
    name="a: b #c", queue="'", registered='"', dateformat="\x85", source="\ufeff", template=["\u2028", "|", "\x00"]
)
def test_values_survive_the_file_and_the_yaml(
    name: str, queue: str, registered: str, dateformat: str, source: str, template: list[str]
) -> None:
    """Any text arrives as it was, from the old file and once more from the YAML of it."""
    lines = [
        "[cube_dispatcher]",
        f"job_name = {name}",
        f"src_db = {source}",
        "dst_db = dbname=b",
        f"pgq_queue_name = {queue}",
        f"pgq_consumer_id = {registered}",
        f"dateformat = {dateformat}",
        "part_template =",
        *(f"  {line}" for line in template),
    ]
    with tempfile.TemporaryDirectory() as folder:
        old, ours = Path(folder, "cube.ini"), Path(folder, "ours.yaml")
        old.write_text("\n".join(lines).replace("%", "%%"), encoding="utf-8", newline="\n")
        cube = read(old)
        ours.write_text(as_yaml(cube), encoding="utf-8")
        conf: Any = load(ours)
        given_directly = load(None, cube.overrides)
    one = conf.dispatch.consumers[name]
    assert (one.queue, one.registered_as, one.partition.dateformat) == (queue, registered, dateformat)
    assert one.partition.part_template == ("\n".join(template) or None)
    assert conf.target(one.source).dsn == source
    assert conf == given_directly
    assert yaml.safe_load(as_yaml(cube))["dispatch"]["consumers"][name]["queue"] == queue
