"""part_template: magic words are replaced as in Skytools, but once."""

from __future__ import annotations

import pytest

from workers.dispatch import template
from workers.dispatch.names import Table
from workers.dispatch.template import Words

WORDS = Words("public.t_2026_11_21", "public.t", '"Id", part', "public__t_2026_11_21")
SKYTOOLS = "create table _DEST_TABLE (like _PARENT); alter table only _DEST_TABLE add primary key (_PKEY);"


def test_all_four_words_are_replaced() -> None:
    """Each stands for what it says, within longer names, too."""
    indexes = "create index _SCHEMA_TABLE_idx on _DEST_TABLE (x); create index idx_SCHEMA_TABLE on _DEST_TABLE (y)"
    assert template.render(f"{SKYTOOLS} {indexes}", WORDS) == (
        "create table public.t_2026_11_21 (like public.t);"
        ' alter table only public.t_2026_11_21 add primary key ("Id", part);'
        " create index public__t_2026_11_21_idx on public.t_2026_11_21 (x);"
        " create index idxpublic__t_2026_11_21 on public.t_2026_11_21 (y)"
    )


def test_a_name_that_contains_a_magic_word_stays_as_it_is() -> None:
    """What was put in is never looked at again."""
    words = Words('"a_PKEY_2026"', '"a_PKEY_DEST_TABLE"', '"_PARENT"', "a_PKEY_PARENT")
    assert template.render("_DEST_TABLE|_PARENT|_PKEY|_SCHEMA_TABLE", words) == (
        '"a_PKEY_2026"|"a_PKEY_DEST_TABLE"|"_PARENT"|a_PKEY_PARENT'
    )


def test_backslashes_and_braces_are_plain_text() -> None:
    """Neither the template nor a name is a pattern."""
    words = Words(r'"\1{x}%s"', "p", "k", "s")
    assert template.render(r"_DEST_TABLE \g<0> {} %", words) == r'"\1{x}%s" \g<0> {} %'


def test_a_key_that_is_missing_is_named() -> None:
    """_PKEY without a key would be a syntax error on the server; a template without _PKEY does not need one."""
    without = Words("public.t_1", "public.t", "", "public__t_1")
    with pytest.raises(ValueError, match="_PKEY, but its events have no key"):
        template.render(SKYTOOLS, without)
    assert (
        template.render("create table _DEST_TABLE (like _PARENT)", without) == "create table public.t_1 (like public.t)"
    )


@pytest.mark.parametrize(
    ("mode", "has_key", "expected"),
    [
        ("keep_latest", True, "PRIMARY KEY"),
        ("plain", True, "PRIMARY KEY"),
        ("keep_all", True, "CREATE INDEX"),
        ("keep_latest", False, None),
        ("keep_all", False, None),
    ],
)
def test_the_default_template_has_what_the_mode_needs(mode: str, has_key: bool, expected: str | None) -> None:
    """A primary key where a row has one version, a plain index where it has many, nothing without a key."""
    text = template.default(mode, has_key=has_key)
    assert text.startswith("CREATE TABLE _DEST_TABLE (LIKE _PARENT);")
    assert [word for word in ("PRIMARY KEY", "CREATE INDEX") if word in text] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (Table("public", "orders_2026_11_21"), "public__orders_2026_11_21"),
        (Table("My Schema", 'a"b.c'), "My_Schema__a_b__c"),
        (Table("1st", "t"), "_1st__t"),
        (Table("größe", "t$"), "größe__t$"),
    ],
)
def test_schema_table_fits_into_an_unquoted_name(table: Table, expected: str) -> None:
    """Dots become `__`, and what would need quotes `_`."""
    assert template.schema_table(table) == expected
