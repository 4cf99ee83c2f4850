"""A destination and the routes that lead to it: from cut lines of a batch to the plan of what is to be done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import orjson
from skytools.quoting import quote_copy

from workers.database import Connection
from workers.dispatch import catalog, jsontriga, partitions, periods, store
from workers.dispatch.context import Context
from workers.dispatch.events import Kind, key_columns
from workers.dispatch.iso import is_iso
from workers.dispatch.names import Table
from workers.dispatch.partitions import NoPlace
from workers.dispatch.plans import Failure, Key, Plan, Record, key_text
from workers.dispatch.rules import Rules, stripped
from workers.dispatch.shapes import Place, Shape, Unfit, shape
from workers.dispatch_settings import Partition

Row = dict[str, "str | None"]
_MINUTE = 16  # characters of an ISO time up to its minute: no time zone of today has an offset in seconds


class Refused(Exception):
    """No event of this type and table can be applied; the text is for the person on call."""


class Route:
    """What becomes of the events of one type and one source table."""

    __slots__ = (
        "decode", "destination", "everywhere", "is_encoded", "keyed", "keys", "moment", "names", "op", "policy",
        "rules", "shape", "source", "takes_away", "where",
    )  # fmt: skip

    def __init__(self, destination: Destination, kind: Kind, source: Table, rules: Rules, context: Context) -> None:
        self.destination, self.source, self.rules = destination, source, rules
        self.op, self.keys = kind.op, rules.key or kind.keys
        self.keyed = rules.mode != "keep_all"
        self.policy = {"D": rules.on_delete, "R": rules.on_truncate}.get(kind.op)
        self.takes_away = self.policy in ("delete", "delete_all")
        self.everywhere = rules.mode == "plain" or self.policy == "delete_all"
        self.is_encoded = kind.format == "logutriga"
        self.decode: Callable[[str], Row] = context.decode if self.is_encoded else jsontriga.decode
        named = stripped(context.consumer, source)
        if self.keyed and not self.keys and kind.op != "R":
            raise Refused(
                f"{named} has no key, and mode {rules.mode} needs one: set tables.{named}.key, or mode: keep_all"
            )
        if kind.op == "R" and self.policy != "ignore" and str(kind.table) != str(named):
            raise Refused(f"{kind.table}: a truncate of one part of {named} says nothing of the others' rows")
        if _is_loop(destination, kind, source, rules, context):
            raise Refused(
                f"{source} would be dispatched into itself, and its trigger would log that; set tables.{named}.target,"
                " or another target database"
            )
        # The form of the event before, so that the next one of the same form costs no look-up.
        self.names: list[str] | None = None
        self.where: str | None = None
        self.shape: Shape | None = None
        layout = rules.partition
        is_cut = layout.kind == "native" or (layout.kind == "like" and layout.dateformat)
        self.moment = layout.by if is_cut else "batch_time"

    def value_of_field(self, row: Row) -> str:
        """The text that says where a row belongs. Raises Unfit when it has none."""
        field = self.rules.partition.field
        for name, value in row.items():
            if self.rules.renamed(name) == field:
                if value is None or not (value[4:5] == "-" or is_iso(value)):
                    raise Unfit(f"{field} is {value!r}: no partition of {self.rules.destination} is for that")
                return value
        raise Unfit(f"the event has no column {field!r}, by which {self.rules.destination} is partitioned")


def _is_loop(destination: Destination, kind: Kind, source: Table, rules: Rules, context: Context) -> bool:
    layout = rules.partition
    is_like = layout.kind == "like" and bool(layout.dateformat)
    is_itself = str(rules.destination) in (str(kind.table), str(source)) and not is_like
    return is_itself and context.tables.identity() == catalog.identity(destination.conn)


class Destination:
    """One destination of a batch, whatever source tables and partitions it has."""

    def __init__(self, conn: Connection, context: Context, parent: Table) -> None:
        self.conn, self.context, self.parent = conn, context, parent
        self._places: dict[tuple[Rules, tuple[str, ...], str | None], Place | str] = {}
        self._by_suffix: dict[object, Place] = {}
        self._by_table: dict[object, Place] = {}

    def plan(self, items: Sequence[tuple[Route, Record]], *, plain: bool) -> Plan:
        """What these events come to, in order. Adds partitions and columns where the settings say so.

        `plain` when no event has a backslash, tab or line end unencoded.

        An event that cannot be read, or has no place, is among the plan's failures. psycopg2's errors go through.
        """
        plan = Plan()
        # Rows that are only added, one after the other in one form, need no look at the step in hand.
        added: Shape | None = None
        add = list[str]().append
        for route, record in items:
            if route.policy is not None and self._is_settled(plan, route, record):
                added = None
                continue
            data = record[2]
            row: Row = {}
            try:
                row = route.decode(data)
                names = list(row)
                if "" in row:
                    raise ValueError("a pair of it has no column, or two values")
                where = None if route.moment == "batch_time" else self._where(route, record, row)
                if names != route.names or where != route.where or route.shape is None:
                    route.shape = self._shape(route, names, where, record)
                    route.names, route.where = names, where
                form = route.shape
                values = list(row.values())
                for place in form.times:
                    value = values[place]
                    if value is not None and value[4:5] != "-" and not is_iso(value):
                        raise Unfit(
                            f"{names[place]} is {value!r}: a date in another style than ISO could mean two days; pin"
                            " the trigger's DateStyle (`headrace dispatch triggers`)"
                        )
                if route.takes_away:
                    added = None
                    step = plan.step_of(form, is_new=False)
                    step.replace(form, _key(form, values), None, is_new=False, everywhere=route.everywhere)
                    continue
                picked = values if form.take is None else [values[place] for place in form.take]
                try:
                    # A raw row has no backslash, tab or line end; they come as %5c, %09, %0a and %0d.
                    if not plain or not route.is_encoded or "%0" in data or "%5" in data:
                        raise TypeError
                    line = "\t".join(picked)  # type: ignore[arg-type]
                except TypeError:  # a NULL, or something to escape
                    line = "\t".join(map(quote_copy, picked))
                if form.has_more:
                    line = self._with_more(line, route, record, form, values)
                if route.keyed:
                    is_new = route.op == "I"
                    step = plan.step_of(form, is_new=is_new)
                    step.replace(form, _key(form, values), line, is_new=is_new, everywhere=route.everywhere)
                    added = None
                else:
                    if form is not added:
                        added, add = form, plan.step().lines_of(form).append
                    add(line)
            except (ValueError, OverflowError, Unfit, NoPlace) as error:
                plan.failures[int(record[0])] = self._failure(route, record, row, error)
        return plan

    def forget_places(self, routes: Iterable[Route]) -> None:
        """Ask anew where rows belong: somebody has made a partition meanwhile."""
        self._places.clear()
        self._by_suffix.clear()
        self._by_table.clear()
        for route in routes:
            route.shape = None

    def identity(self, route: Route, record: Record) -> tuple[str | None, str | None]:
        """Where an event's row belongs, and its key, as far as that can be known."""
        if route.op == "R":
            return str(self.parent), None
        try:
            row = route.decode(record[2])
            where = None if route.moment == "batch_time" else self._where(route, record, row)
            form = self._shape(route, list(row), where, record)
            return str(form.place.identity), key_text(_key(form, list(row.values()))) if form.key else None
        except (ValueError, OverflowError, Unfit, NoPlace):
            return str(self.parent), None

    def _is_settled(self, plan: Plan, route: Route, record: Record) -> bool:
        """Deal with a delete or truncate that needs no row; False where it does."""
        event = int(record[0])
        if route.policy == "ignore":
            plan.ignored += 1
        elif route.policy == "error":
            what = "delete" if route.op == "D" else "truncate"
            text = f"{route.source}: on_{what} is `error`; set another policy, or `headrace dispatch drop` the event"
            plan.failures[event] = Failure(text, None, *self.identity(route, record))
        elif route.op == "R" and route.policy == "tombstone" and route.keyed:
            text = f"{route.source}: the tombstone of a truncate has no key; set another on_truncate in this mode"
            plan.failures[event] = Failure(text, None, str(self.parent))
        elif route.op == "R" and route.policy == "delete_all":
            try:
                place = self._place(route, (), None, record) if route.moment == "batch_time" else None
            except NoPlace as error:
                plan.failures[event] = Failure(str(error), None, str(self.parent))
            else:
                plan.empty(event, place.table if place else self.parent, self.parent, everywhere=True)
        elif route.op == "R" and route.moment != "batch_time":
            text = f"{route.source}: a truncate has no row that says which partition; set on_truncate: delete_all"
            plan.failures[event] = Failure(text, None, str(self.parent))
        elif route.op == "R" and route.policy == "delete":
            try:
                plan.empty(event, self._place(route, (), None, record).table, self.parent, everywhere=False)
            except NoPlace as error:
                plan.failures[event] = Failure(str(error), None, str(self.parent))
        else:
            return False
        return True

    def _where(self, route: Route, record: Record, row: Row) -> str:
        """The minute that a row belongs to, as text; with the offset where it has one."""
        if route.moment == "event_time":
            return record[5][:_MINUTE] + "+00"
        value = route.value_of_field(row)
        return value[:_MINUTE] + value[_MINUTE + 3 :].lstrip(".0123456789")

    def _shape(self, route: Route, names: list[str], where: str | None, record: Record) -> Shape:
        key = key_columns(route.keys, names) if names else ()
        place = self._place(route, key, where, record)
        only_key = route.policy in ("delete", "delete_all", "error")
        known = (route.rules, route.source, tuple(names), key, only_key)
        if known not in place.shapes:
            made = shape(
                self.conn, place, route.rules, names=names, key=key if route.keyed else (), only_key=only_key,
                type_of=lambda column: self.context.tables.column_type(route.source, column),
            )  # fmt: skip
            place.shapes[known] = made
        return place.shapes[known]

    def _place(self, route: Route, key: tuple[str, ...], where: str | None, record: Record) -> Place:
        known = (route.rules, key, where)
        if known not in self._places:
            try:
                self._places[known] = self._find(route.rules, key, self._moment(route, where))
            except NoPlace as error:
                self._places[known] = str(error)  # the next event need not ask again
            except (ValueError, OverflowError) as error:
                moment = where or self.context.end
                self._places[known] = f"no partition of {self.parent} can hold {moment}, at the calendar's end: {error}"
        found = self._places[known]
        if isinstance(found, str):
            raise NoPlace(found)
        return found

    def _moment(self, route: Route, where: str | None) -> datetime:
        if where is None:
            return self.context.end
        try:
            return datetime.fromisoformat(where)
        except ValueError:
            raise NoPlace(f"{where!r} is beyond what partitions are made for") from None

    def _find(self, rules: Rules, key: tuple[str, ...], moment: datetime) -> Place:
        layout, fill = rules.partition, None
        suffix = None
        if layout.kind == "native":
            found = catalog.range_key(self.conn, self.parent)
            is_instant = found is not None and found[1] == "timestamp with time zone"
            fill = found if layout.field is None else None
            if layout.field is not None:
                moment = _as_column(moment, is_instant=is_instant)
        elif layout.kind == "like" and layout.dateformat:
            suffix = store.suffix(self.conn, moment, layout.dateformat, layout.timezone)
        columns = tuple(rules.renamed(name) or name for name in key)
        known = (layout, columns, rules.mode, suffix)
        if suffix is not None and known in self._by_suffix:
            return self._by_suffix[known]
        table = partitions.place(
            self.conn, self.context.target, layout, self.parent, moment=moment, suffix=suffix, key=columns,
            mode=rules.mode, lock=self.context.lock,
        )  # fmt: skip
        relation = catalog.relation(self.conn, table)
        if relation is None:
            raise NoPlace(f"{table} is not there; make it at {self.context.target.name}, or map it with `target`")
        identity = self.parent if rules.mode == "plain" else table
        place = self._by_table.setdefault((table, identity, fill), Place(relation, self.parent, identity, fill))
        self._by_suffix[known] = place
        return place

    def _with_more(self, line: str, route: Route, record: Record, form: Shape, values: list[str | None]) -> str:
        """The line with what the event does not say itself: new columns as JSON, the range key, meta columns."""
        parts = [line] if form.width else []
        if form.extra:
            found = {name: values[place] for place, name in form.extra if values[place] is not None}
            parts.append(quote_copy(orjson.dumps(found).decode()) if found else "\\N")
        if form.place.fill:
            moment = self.context.end if route.moment == "batch_time" else datetime.fromisoformat(record[5])
            parts.append(_as_text(moment, form.place.fill[1], route.rules.partition))
        for column in form.meta:
            if column == "_op":
                parts.append(route.op)
            elif column == "_ev_id":
                parts.append(record[0])
            elif column == "_ev_time":
                parts.append(record[5])
            else:
                parts.append(str(self.context.tick))
        return "\t".join(parts)

    def _expected(self, route: Route, moment: datetime) -> Table:
        """What a row's partition will be called once it can be made: newer events of the row are told by that."""
        layout = route.rules.partition
        if route.rules.mode == "plain" or layout.kind == "none" or (layout.kind == "like" and not layout.dateformat):
            return self.parent
        if layout.kind == "like":
            suffix = store.suffix(self.conn, moment, layout.dateformat, layout.timezone)
        else:
            suffix = "p" + periods.period_at(moment, layout.period, ZoneInfo(layout.timezone)).label
        return Table(self.parent.schema, f"{self.parent.name}_{suffix}")

    def _key_value(self, route: Route, place: Place | None, column: str, row: Row) -> str | None:
        there = place.relation.columns.get(route.rules.renamed(column) or column) if place is not None else None
        # Of a destination that is not there the type is not known, and what looks like an instant most likely is one.
        is_instant = there is None or there.type.endswith("with time zone")
        if there is None or there.type.startswith("numeric"):
            return _in_utc(_shortest(row[column]))
        return _in_utc(row[column]) if is_instant else row[column]

    def _failure(self, route: Route, record: Record, row: Row, error: Exception) -> Failure:
        text = str(error) if isinstance(error, (Unfit, NoPlace)) else f"the event cannot be read: {error}"
        destination, key = str(self.parent), None
        try:
            columns = key_columns(route.keys, row)
            where = None if route.moment == "batch_time" else self._where(route, record, row)
            try:
                place = self._place(route, columns, where, record)
                destination = str(place.identity)
            except NoPlace:
                place = None
                destination = str(self._expected(route, self._moment(route, where)))
            values = tuple(
                value for column in columns if (value := self._key_value(route, place, column, row)) is not None
            )
            key = key_text(values) if columns and len(values) == len(columns) else None
        except (KeyError, ValueError, OverflowError, Unfit, NoPlace):
            pass  # it is about a row that nobody can name
        return Failure(text, None, destination, key)


def _key(form: Shape, values: Sequence[str | None]) -> Key:
    """The row's key: the text of its one column, or a tuple. Raises Unfit for a NULL in it.

    The same instant is the same text here, in whatever time zone its producer wrote it.
    """
    if form.instants or form.numerics:
        values = list(values)
        for number in form.numerics:
            values[form.key[number]] = _shortest(values[form.key[number]])
        for number in form.instants:
            values[form.key[number]] = _in_utc(values[form.key[number]])
    if len(form.key) == 1:
        only = values[form.key[0]]
        if only is None:
            raise Unfit(f"the key column {form.key_columns[0][0]!r} is NULL")
        return only
    found = tuple(value for place in form.key if (value := values[place]) is not None)
    if len(found) < len(form.key):
        raise Unfit("a column of the key is NULL")
    return found


def _shortest(value: str | None) -> str | None:
    """A number without the zeros at the end of its fraction: 1.0 and 1.00 are one key."""
    if value is None or "." not in value:
        return value
    return value.rstrip("0").rstrip(".") or "0"


def _in_utc(value: str | None) -> str | None:
    if value is None or (value.endswith("+00") and value[10:11] == " "):
        return value
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            return value
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return value  # infinity, or a year at the end of Python's calendar or beyond
    text = moment.strftime("%Y-%m-%d %H:%M:%S")
    fraction = f".{moment.microsecond:06d}".rstrip("0") if moment.microsecond else ""
    return f"{text}{fraction}+00"


def _as_column(moment: datetime, *, is_instant: bool) -> datetime:
    """A field's moment as PostgreSQL's input would read it: without offset it is UTC, and a local clock has none."""
    if is_instant:
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.replace(tzinfo=None)


def _as_text(moment: datetime, type_: str, layout: Partition) -> str:
    """A moment as text for the range key's column: an instant, or the local clock or day of the layout's zone."""
    if type_ == "timestamp with time zone":
        return moment.isoformat()
    local = moment.astimezone(ZoneInfo(layout.timezone)).replace(tzinfo=None)
    return local.date().isoformat() if type_ == "date" else local.isoformat()
