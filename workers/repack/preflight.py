"""Preflight: why a table cannot be rewritten, object by object, decided before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Protocol

from workers.repack.preflight_catalog import Column, Facts, Index, Subject

# pg_class.relkind, apart from r: what it is, and what to do.
_KINDS = {
    "p": "is partitioned: its {leaves} leaf partitions are rewritten one by one; name one, or ask for the whole tree",
    "v": "is a view; repack the tables that it reads",
    "m": "is a materialized view; REFRESH MATERIALIZED VIEW CONCURRENTLY, then VACUUM, or drop and create it",
    "f": "is a foreign table; repack it on the server where its rows are",
    "i": "is an index; name its table",
    "I": "is a partitioned index; name a partition of its table",
    "S": "is a sequence; there is nothing to repack",
    "c": "is a composite type; there is nothing to repack",
    "t": "is a TOAST table; name the table that it belongs to, it is rewritten with that",
}
_NEEDS_ROLE = "GRANT {detail} TO {login}, or run as a member of it"
_REFUSED = {
    "foreign_owner": "{object} belongs to {detail}, of which {login} is not a member, and must be bound to the new"
    " table; " + _NEEDS_ROLE,
    "no_create": "{object} is made anew by CREATE OR REPLACE, and {login} may not create in its schema;"
    " GRANT USAGE, CREATE ON SCHEMA {detail} TO {login}",
    "matview": "{object} reads it and cannot be bound to the new table; drop it, and create it again afterwards",
    "temporary": "{object} is temporary and depends on it; wait until the session that made it ends",
    "row_type": "{object} uses its row type, which stays the old table's; change that, or drop it and create it again"
    " afterwards",
    "reference": "{object} refers to it and cannot be bound to the new table; drop it, and create it again afterwards",
    "own_constant": "{object} names the table itself as a constant, which would go on meaning the old table;"
    " drop it, and create it again afterwards",
    "partitioned_partner": "{object}: {detail} is partitioned, and its partitions would be checked while everybody"
    " waits; drop the foreign key, and create it again afterwards",
    "parent_key": "{object} refers to {detail} and comes from the table that this is a partition of: it would be"
    " checked while everybody waits; drop the foreign key, and create it again afterwards",
    "no_references": "{object} is made anew, and {login} may not refer to {detail};"
    " GRANT REFERENCES ON {detail} TO {login} (and USAGE on its schema)",
    "disabled_trigger": "{object} is switched off by a disabled trigger on {detail}, and that state cannot be kept;"
    " ALTER TABLE {detail} ENABLE TRIGGER ALL, or drop the constraint",
    "no_execute": "{detail} calls {object}, which {login} may not execute;"
    " GRANT EXECUTE ON it (and USAGE on its schema) to {login}",
    "several_parents": "child {object} inherits from other tables, too, and {detail} comes after this one: the order"
    " of its parents would change; ALTER TABLE {object} NO INHERIT and INHERIT again, so that this one is the last",
    "foreign_grant": "a right on {object} was granted by {detail}, not by the owner, and would be the owner's"
    " afterwards; revoke it there, and grant it as the owner",
    "all_tables": "publication {object} is FOR ALL TABLES and would send the copy and the log to its subscribers;"
    " name its tables instead: DROP PUBLICATION and CREATE PUBLICATION .. FOR TABLE",
    "subscription": "subscription {object} fills it and would not go on in the new table; take it out of the"
    " publication, or repack with VACUUM FULL",
    "security_label": "{object} has a security label of {detail}, which cannot be kept; SECURITY LABEL .. IS NULL",
    "extension": "it belongs to extension {object}, which would lose it; leave it, or use VACUUM FULL",
    "needs_extension": "{object} is marked DEPENDS ON EXTENSION {detail}, which cannot be kept; take the mark away"
    " (NO DEPENDS ON EXTENSION)",
    "prepared": "prepared transaction {object} of {detail} holds a lock on it for as long as it is there;"
    " COMMIT PREPARED or ROLLBACK PREPARED {object}",
    "wraparound": "autovacuum ({object}) is saving it from transaction id wraparound and does not give way;"
    " wait for its end",
}
_LOGGED_DDL = "event trigger {object} ({detail}) runs at each of our statements that change the schema"


class Options(Protocol):
    """What is asked for this table: the fields of TableRules."""

    @property
    def order_by(self) -> Sequence[str]:
        """Columns."""

    @property
    def cluster(self) -> str | None:
        """An index's name."""

    @property
    def tablespace(self) -> str | None:
        """Of the table."""

    @property
    def index_tablespace(self) -> str | None:
        """Of its indexes."""

    @property
    def cleanup_nulls(self) -> Sequence[str]:
        """Columns."""

    @property
    def remove_keys(self) -> Mapping[str, Sequence[str]]:
        """By column."""


def refusals(facts: Facts, options: Options) -> list[str]:
    """Every reason why this table cannot be rewritten as asked, a line each: what, which, what to do."""
    subject = facts.subject
    if subject is None:
        advice = f"did you mean {facts.near}?" if facts.near else "check schema and spelling"
        reasons: Iterable[str] = [f"there is no such table; {advice}"]
    elif other := _other_than_a_table(facts, subject):
        reasons = [other]
    else:
        reasons = [
            *_rights(subject), *_key(facts), *_invalid(facts.indexes), *_obstacles(facts, subject, options),
            *_types(facts.columns, subject), *_options(facts, options),
        ]  # fmt: skip
    return [_line(facts, reason) for reason in reasons]


def warnings(facts: Facts) -> list[str]:
    """What a person should know although it is no reason to refuse, a line each."""
    found = [_LOGGED_DDL.format(object=one.object, detail=one.detail) for one in facts.obstacles
             if one.kind == "event_trigger"]  # fmt: skip
    if facts.key and facts.key.is_deferrable:
        found.append(f"its only key, index {facts.key.quoted_index}, is deferrable")
    return [_line(facts, reason) for reason in found]


def _other_than_a_table(facts: Facts, subject: Subject) -> str | None:
    if subject.is_ours:
        return "is one of Headrace's own; leave it to Headrace"
    if subject.is_catalog:
        return "is one of PostgreSQL's own; VACUUM FULL it if it must be"
    if subject.persistence == "t":
        whose = "of this session" if subject.is_own_temporary else "of another session"
        return f"is a temporary table {whose}; only its session has its rows"
    kind = _KINDS.get(subject.kind)
    return kind.format(leaves=facts.leaves) if kind else None


def _rights(subject: Subject) -> Iterator[str]:
    login, owner, schema = subject.login, subject.owner, subject.schema
    if subject.is_standby:
        yield "the server is a standby in recovery; connect to its primary"
    if not subject.owns and subject.is_member:
        yield (f"belongs to {owner}, of which {login} is a member that does not inherit its rights;"
               f" ALTER ROLE {login} INHERIT, or GRANT {owner} TO {login} WITH INHERIT TRUE")  # fmt: skip
    elif not subject.owns:
        yield f"belongs to {owner}, of which {login} is not a member; GRANT {owner} TO {login}, or run as the owner"
    if not subject.may_create_schemas:
        yield (f"{login} may not create schemas in database {subject.database};"
               f" GRANT CREATE ON DATABASE {subject.database} TO {login}")  # fmt: skip
    if not subject.may_create_here:
        yield f"{login} may not create in schema {schema}; GRANT USAGE, CREATE ON SCHEMA {schema} TO {login}"
    if subject.owns and not subject.is_owner and not subject.is_superuser:
        if not subject.may_become_owner:
            yield f"{login} may not give tables to {owner}; GRANT {owner} TO {login} WITH SET TRUE"
        if not subject.owner_may_create_here:
            yield (f"its owner {owner} may not create in schema {schema}, so the new table cannot be given to it;"
                   f" GRANT CREATE ON SCHEMA {schema} TO {owner}")  # fmt: skip
    if subject.owns:
        missing = [
            right
            for right, is_there in [
                ("SELECT", subject.may_select), ("TRIGGER", subject.may_trigger), ("UPDATE", subject.may_lock),
            ]
            if not is_there
        ]  # fmt: skip
        if missing:
            rights = ", ".join(missing)
            yield f"{login} has no {rights} on it; GRANT {rights} ON {subject.label} TO {login}"
    if subject.has_row_security:
        yield (f"row level security hides rows of it from {login} (FORCE ROW LEVEL SECURITY); run as a role with"
               f" BYPASSRLS, or ALTER TABLE {subject.label} NO FORCE ROW LEVEL SECURITY")  # fmt: skip
    if not subject.has_plpgsql:
        yield f"{login} may not use the language plpgsql, in which changes are logged; GRANT USAGE ON LANGUAGE plpgsql"


def _key(facts: Facts) -> Iterator[str]:
    if facts.key is None:
        unfit = [f"{index.quoted} {_unfit(index)}" for index in facts.indexes if index.is_unique or index.is_primary]
        because = f" ({'; '.join(unfit)})" if unfit else ""
        yield f"has no usable key{because}; add a primary key, or a unique index over columns that are all NOT NULL"


def _unfit(index: Index) -> str:
    if not index.is_valid:
        return "is invalid"
    if not index.is_btree:
        return "is no btree index"
    if index.is_partial:
        return "is partial"
    if index.has_expressions:
        return "is over an expression"
    if index.nullable:
        return f"allows nulls in {', '.join(index.nullable)}"
    return "has an operator class or collation of its own"


def _invalid(indexes: Iterable[Index]) -> Iterator[str]:
    for index in indexes:
        if not index.is_valid:
            yield (f"its index {index.quoted} is invalid (a concurrent build that failed or is still running);"
                   " REINDEX INDEX CONCURRENTLY or DROP INDEX it")  # fmt: skip


def _obstacles(facts: Facts, subject: Subject, options: Options) -> Iterator[str]:
    for one in facts.obstacles:
        if one.kind in _REFUSED:
            yield _REFUSED[one.kind].format(object=one.object, detail=one.detail, login=subject.login)
        elif one.kind == "tablespace" and options.tablespace is None:
            yield f"it is in {one.object}, where {subject.login} may not create; GRANT CREATE ON it TO {subject.login}"
    if options.index_tablespace is None:
        for index in facts.indexes:
            if not index.may_create_there:
                yield (f"its index {index.quoted} is in tablespace {index.tablespace}, where {subject.login} may not"
                       f" create; GRANT CREATE ON it TO {subject.login}")  # fmt: skip


def _types(columns: Iterable[Column], subject: Subject) -> Iterator[str]:
    for column in columns:
        if not column.may_use_type:
            yield (f"{subject.login} may not use the type {column.type} of column {column.name};"
                   f" GRANT USAGE ON TYPE {column.type} TO {subject.login}")  # fmt: skip


def _options(facts: Facts, options: Options) -> Iterator[str]:
    columns = {column.name: column for column in facts.columns}
    key = facts.key.columns if facts.key else ()
    for option, names in [
        ("order_by", options.order_by), ("cleanup_nulls", options.cleanup_nulls), ("remove_keys", options.remove_keys),
    ]:  # fmt: skip
        for name in names:
            column = columns.get(name)
            if column is None:
                yield f"{option}: it has no column {name}{_meant(name, columns)}"
            elif wrong := _unfit_column(option, column, key):
                yield f"{option}: column {name} {wrong}"
    if options.cluster is not None:
        yield from _cluster(options.cluster, {index.name: index for index in facts.indexes})
    spaces = {space.name: space for space in facts.tablespaces}
    for option, wanted in [("tablespace", options.tablespace), ("index_tablespace", options.index_tablespace)]:
        if wanted is None:
            continue
        if wanted not in spaces or spaces[wanted].is_global:
            usable = [name for name, space in spaces.items() if not space.is_global]
            yield f"{option}: there is no tablespace {wanted} for tables{_meant(wanted, usable)}"
        elif not spaces[wanted].may_create_there:
            login = facts.subject.login if facts.subject else ""
            yield f"{option}: {login} may not create in tablespace {wanted}; GRANT CREATE ON TABLESPACE it TO {login}"


def _unfit_column(option: str, column: Column, key: Sequence[str]) -> str | None:
    if option == "order_by":
        return None if column.is_orderable else f"is of type {column.type}, which has no order; take it out"
    allowed = ("jsonb",) if option == "remove_keys" else ("json", "jsonb")
    if column.type not in allowed:
        return f"is of type {column.type}, not {' or '.join(allowed)}; take it out"
    if column.is_generated:
        return "is generated; change its expression instead"
    return "is part of the key, which must stay as it is; take it out" if column.name in key else None


def _cluster(name: str, indexes: Mapping[str, Index]) -> Iterator[str]:
    index = indexes.get(name)
    if index is None:
        yield f"cluster: it has no index {name}{_meant(name, indexes)}"
    elif not index.is_btree or index.is_partial or index.has_expressions:
        yield f"cluster: index {name} is not a btree index of whole columns over all rows; take another, or order_by"


def _meant(word: str, known: Iterable[str]) -> str:
    choices = sorted(known)
    near = get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(choices) or 'none'}"


def _line(facts: Facts, reason: str) -> str:
    """One line, whatever line breaks the names in it have."""
    return f"{facts.label}: {reason}".replace("\r", "\\r").replace("\n", "\\n")
