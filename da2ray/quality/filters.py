"""Filters: rules in DuckDB's SQL over the index, and what a list of rules removes.

A rule removes a labelled row if it is FALSE for that row. If it is NULL, because a score was not measured, the row stays.
`flip_p90 below p95` stands for `flip_p90 < 0.0812`, the 95th percentile over the labelled rows that have a value; `above`
likewise.
"""

# ruff: noqa: S608 - users write SQL; `bind` accepts single expressions only, and the catalog reaches nothing but its table

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from typing import Any, Final

import duckdb

from da2ray.errors import UserError
from da2ray.labels.schema import INDEX
from da2ray.labels.scores import SCORES
from da2ray.quality.catalog import FULL, TABLE, blank_catalog
from da2ray.quality.syntax import tree

_TOKENS: Final = re.compile(
    r"""(?P<skipped> '(?:[^']|'')*' | --[^\n]* | /\*.*?\*/ )
    | (?P<column> "(?:[^"]|"")*" | [A-Za-z_]\w* ) \s+ (?P<side> below | above ) \s+ p(?P<percent> \d+(?:\.\d+)? )\b
    | (?P<quoted> "(?:[^"]|"")*" )""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
"""Literals and comments come first: they may hold the words without meaning them."""

_ORDERS: Final = {"below": "<", "above": ">"}
_CHECKED: Final = (*SCORES, "phash")
"""Columns that are empty in a whole dataset only if they were never measured; others may be empty by nature."""

_NO_EXPRESSIONS: Final = {"SUBQUERY": "a subquery", "WINDOW": "a window function", "STAR": "a star"}


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as the user wrote it.

    Attributes:
        name: its name in tables, views and reports.
        where: the expression; a row for which it is FALSE is removed.
    """

    name: str
    where: str


@dataclass(frozen=True, slots=True)
class BoundRule:
    """A rule that was checked against the index.

    Attributes:
        columns: the columns that it names, spelt as in the index.
        resolved: its SQL with percentiles as numbers.
    """

    rule: Rule
    columns: tuple[str, ...]
    resolved: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A rule that was left out: no labelled row has its score, or all have the same value, so that there is no tail."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Effect:
    """What a rule does to the labelled rows.

    Attributes:
        removes: rows that it removes.
        alone: rows that only this rule removes.
        kept_after: rows that stay after it and all rules before it.
    """

    removes: int
    alone: int
    kept_after: int


def bind(rules: Iterable[Rule]) -> list[BoundRule]:
    """Check rules before anything is read. Their `resolved` has 0 for percentiles until `resolve` is called.

    Raises:
        UserError: a rule is not a boolean expression over the columns of the index.
    """
    with blank_catalog() as connection:
        return [_bind(connection, rule) for rule in rules]


def resolve(
    connection: duckdb.DuckDBPyConnection, rules: Sequence[BoundRule], *, skip: bool
) -> tuple[list[BoundRule], list[Skipped]]:
    """Replace the percentiles of rules by numbers.

    Args:
        connection: from `da2ray.quality.catalog.open_catalog`, with the rules' columns.
        rules: from `bind`.
        skip: leave out a rule whose score is missing, or whose percentile is of a constant, instead of raising.

    Returns:
        The rules, and those that were skipped.

    Raises:
        UserError: no labelled row has a value in a column that a rule names, or all have the same value and the rule names a
            percentile of it.
    """
    found, skipped = [], []
    for bound in rules:
        if missing := _empty_columns(connection, bound.columns):
            if not skip:
                raise UserError(f"{bound.rule.where!r}: {_why_empty(missing[0])}")
            skipped.append(Skipped(bound.rule.name, _why_empty(missing[0])))
            continue
        try:
            resolved = _with_percentiles(bound.rule.where, lambda column, share: _percentile(connection, column, share))
        except _NoTailError as error:
            if not skip:
                raise UserError(f"{bound.rule.where!r}: {error}") from None
            skipped.append(Skipped(bound.rule.name, str(error)))
        else:
            found.append(replace(bound, resolved=resolved))
    return found, skipped


def apply(connection: duckdb.DuckDBPyConnection, rules: Sequence[BoundRule]) -> list[Effect]:
    """Count what each rule removes, and make a table `kept` of the rows (`row`) that no rule removes.

    Raises:
        UserError: an expression fails on a row, for example because a cast is impossible.
    """
    verdicts = [f"(({bound.resolved}\n) IS FALSE) AS r{number}" for number, bound in enumerate(rules)]
    try:
        connection.execute(f"CREATE TABLE verdicts AS SELECT {', '.join(['row', *verdicts])} FROM {TABLE}")
    except FULL:
        raise
    except duckdb.Error as error:
        raise UserError(f"a rule fails on this snapshot: {_first_line(error)}") from None
    names = [f"r{number}" for number in range(len(rules))]
    counts = []
    for number, name in enumerate(names):
        others = [other for other in names if other != name]
        alone = " AND ".join([name, *(f"NOT {other}" for other in others)])
        kept = " AND ".join(f"NOT {before}" for before in names[: number + 1])
        counts += [f"count(*) FILTER ({condition})" for condition in (name, alone, kept)]
    none = " AND ".join(f"NOT {name}" for name in names) or "true"
    connection.execute(f"CREATE TABLE kept AS SELECT row FROM verdicts WHERE {none}")
    if not rules:
        return []
    (values,) = connection.execute(f"SELECT {', '.join(counts)} FROM verdicts").fetchall()
    return [Effect(*values[start : start + 3]) for start in range(0, len(values), 3)]


def _bind(connection: duckdb.DuckDBPyConnection, rule: Rule) -> BoundRule:
    sql = _with_percentiles(rule.where, lambda _column, _share: 0.0)
    try:
        duckdb.SQLExpression(sql)  # a single expression: no list, no second statement, no FROM
        columns = _columns(connection, sql)
        connection.execute(f"SELECT 1 FROM {TABLE} WHERE ({sql}\n)")
        kind = str(connection.execute(f"SELECT ({sql}\n) FROM {TABLE}").description[0][1])
    except duckdb.Error as error:
        hint = (
            "\nwrite `below pN` and `above pN` after a column, such as `flip_p90 below p95`"
            if re.search(r"\b(below|above)\b", sql, re.IGNORECASE)
            else ""
        )
        raise UserError(f"{rule.where!r} is not an expression over the index: {_first_line(error)}{hint}") from None
    except _NotAllowedError as error:
        raise UserError(f"{rule.where!r}: {error}") from None
    if kind.upper() not in ("BOOLEAN", "BOOL"):
        raise UserError(f"{rule.where!r} is {kind}, but a rule must be true or false: compare it with something")
    return BoundRule(rule, columns, sql)


class _NotAllowedError(Exception):
    """A rule holds something that is not allowed; the message says what."""


class _NoTailError(Exception):
    """A rule names a percentile of a score with the same value everywhere: no row is below it, so all would be removed."""


def _columns(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[str, ...]:
    """The columns of the index that an expression names, in the order of the index."""
    named: set[str] = set()
    waiting: list[Any] = [tree(connection, sql)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            if what := _NO_EXPRESSIONS.get(node.get("class", "")):
                raise _NotAllowedError(f"a rule sees one row at a time and cannot contain {what}")
            if (name := node.get("function_name")) and name.lower() in _volatile_functions():
                raise _NotAllowedError(f"{name}() changes from run to run, but a view must be reproducible")
            if node.get("class") == "COLUMN_REF":
                named.add(_known(node["column_names"][-1]))
            waiting += node.values()
    return tuple(name for name in INDEX.names if name in named)


@cache
def _volatile_functions() -> frozenset[str]:
    """The functions of DuckDB that need not give the same value twice. The query takes 30 ms."""
    with duckdb.connect() as connection:
        query = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability = 'VOLATILE'"
        return frozenset(name for (name,) in connection.execute(query).fetchall())


def _known(name: str) -> str:
    if name.lower() == "row":
        raise _NotAllowedError("row is a position, not a property of a label: choose by key or by scores")
    if name.lower() in INDEX.names:
        return name.lower()
    close = difflib.get_close_matches(name.lower(), INDEX.names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"scores are {', '.join(SCORES)}"
    raise _NotAllowedError(f"the index has no column {name}\n{hint}")


def _with_percentiles(sql: str, value: Any) -> str:
    """Replace each percentile `pN` of a column in an expression by the number `value(column, N / 100)`."""

    def number(match: re.Match[str]) -> str:
        if match["side"] is None:
            return match[0]
        name = match["column"]
        column = _known_column(sql, name[1:-1] if name.startswith('"') else name)
        percent = float(match["percent"])
        if percent > 100:
            raise UserError(f"{sql!r}: a percentile must be p0 to p100; got p{match['percent']}")
        # 9 digits tell all FLOATs apart. An exponent would make the literal a DOUBLE.
        threshold = Decimal(f"{value(column, percent / 100):.9g}")
        shown = f'"{column}"' if name.startswith('"') else column
        return f"{shown} {_ORDERS[match['side'].lower()]} {threshold:f}"

    return _TOKENS.sub(number, sql)


def _known_column(sql: str, name: str) -> str:
    try:
        column = _known(name)
    except _NotAllowedError as error:
        raise UserError(f"{sql!r}: {error}") from None
    kind = str(INDEX.field(column).type)
    if not re.fullmatch(r"u?int\d+|float|double", kind):
        raise UserError(f"{sql!r}: {column} is {kind} and has no percentiles")
    return column


def _percentile(connection: duckdb.DuckDBPyConnection, column: str, share: float) -> float:
    # As DOUBLE, because a quantile of FLOAT would be interpolated in FLOAT. At p95 of 62M rows it is one sort of one column.
    quoted = f'"{column}"'  # `offset` is a keyword of SQL
    measures = f"quantile_cont({quoted}::DOUBLE, {share!r}), min({quoted}), max({quoted}), count({quoted})"
    ((value, least, most, count),) = connection.execute(f"SELECT {measures} FROM {TABLE}").fetchall()
    if value is None:
        raise UserError(f"no labelled row has {column}, so it has no percentiles")
    if least == most and count > 1:
        raise _NoTailError(f"{column} is {least:g} in every labelled row, so its percentiles say nothing")
    return float(value)


def _empty_columns(connection: duckdb.DuckDBPyConnection, columns: Sequence[str]) -> list[str]:
    checked = [column for column in columns if column in _CHECKED]
    if not checked:
        return []
    (counts,) = connection.execute(
        f"SELECT {', '.join(f'count({column})' for column in checked)} FROM {TABLE}"
    ).fetchall()
    return [column for column, count in zip(checked, counts, strict=True) if not count]


def _why_empty(column: str) -> str:
    option = SCORES[column].option if column in SCORES else None
    if option:
        return f"no labelled row has {column}: label with {option}"
    if column == "jpeg_quality":
        return f"no labelled row has {column}: no image is a JPEG, or they were labelled before it existed"
    return f"no labelled row has {column}: they were labelled before it existed; label again, to another --output"


def _first_line(error: duckdb.Error) -> str:
    line = str(error).splitlines()[0].strip()
    return line[:300]
