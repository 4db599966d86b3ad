"""Filters: expressions of DuckDB's SQL over the index, and what a list of them removes.

A rule removes a labelled row where it is FALSE. Where it is NULL, because a score was not measured on that row, it removes
nothing. `flip_p90 below p95` stands for `flip_p90 < 0.0812`, the 95th percentile over the labelled rows that have a value;
`above` likewise.
"""

# ruff: noqa: S608 - expressions are the users' SQL; `bind` lets one expression through, the catalog reaches nothing else

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
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
"""What may hold the words and not mean them comes first: literals and comments."""

_ORDERS: Final = {"below": "<", "above": ">"}
_CHECKED: Final = (*SCORES, "phash")
"""Columns that may be empty in a whole dataset because they were never measured; others may be so by nature."""

_NO_EXPRESSIONS: Final = {"SUBQUERY": "a subquery", "WINDOW": "a window function", "STAR": "a star"}


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as it was given.

    Attributes:
        name: what it is called in tables, views and reports.
        where: the expression: a row it is FALSE for is removed.
    """

    name: str
    where: str


@dataclass(frozen=True, slots=True)
class BoundRule:
    """A rule that was checked against the index: its columns, spelt as in the index, and the SQL with percentiles as numbers."""

    rule: Rule
    columns: tuple[str, ...]
    resolved: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A rule that was left out, since no labelled row has its score, or all have the same and there is no tail."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Effect:
    """What a rule does to the labelled rows: removes them by itself; those that no other rule removes; kept after it and all
    rules before it.
    """

    removes: int
    alone: int
    kept_after: int


def bind(rules: Iterable[Rule]) -> list[BoundRule]:
    """Check expressions before anything is read; `resolved` has 0 for percentiles until `resolve`.

    Raises:
        UserError: one is no boolean expression over the columns of the index.
    """
    with blank_catalog() as connection:
        return [_bind(connection, rule) for rule in rules]


def resolve(
    connection: duckdb.DuckDBPyConnection, rules: Sequence[BoundRule], *, skip: bool
) -> tuple[list[BoundRule], list[Skipped]]:
    """Rules with their percentiles as numbers, and those that were skipped.

    Args:
        connection: of `da2ray.quality.catalog.open_catalog`, with the rules' columns.
        rules: of `bind`.
        skip: leave out rules that a score is missing for, or whose percentile is that of a constant, instead of raising.

    Raises:
        UserError: no labelled row has a value in a column that a rule names, or all have the same and it names a percentile.
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
    """What each rule removes; makes the table `kept` of the rows (`row`) that none of them does.

    Raises:
        UserError: an expression fails on a row, such as a cast that is not possible.
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
        duckdb.SQLExpression(sql)  # one expression: no list, no statement after it, no FROM
        columns = _columns(connection, sql)
        connection.execute(f"SELECT 1 FROM {TABLE} WHERE ({sql}\n)")
        kind = str(connection.execute(f"SELECT ({sql}\n) FROM {TABLE}").description[0][1])
    except duckdb.Error as error:
        hint = (
            "\n`below pN` and `above pN` take a column and a percentile, such as `flip_p90 below p95`"
            if re.search(r"\b(below|above)\b", sql, re.IGNORECASE)
            else ""
        )
        raise UserError(f"{rule.where!r} is no expression over the index: {_first_line(error)}{hint}") from None
    except _NotAllowedError as error:
        raise UserError(f"{rule.where!r}: {error}") from None
    if kind.upper() not in ("BOOLEAN", "BOOL"):
        raise UserError(f"{rule.where!r} is {kind}, and a rule is true or false: compare it with something")
    return BoundRule(rule, columns, sql)


class _NotAllowedError(Exception):
    """An expression holds something that a rule may not; the message says what."""


class _NoTailError(Exception):
    """A percentile of a score that is the same everywhere: no row is below it, and a rule that says so would remove them all."""


def _columns(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[str, ...]:
    """The index's columns that an expression names, in their order."""
    functions = connection.execute(
        "SELECT function_name FROM duckdb_functions() WHERE stability = 'VOLATILE'"
    ).fetchall()
    named: set[str] = set()
    waiting: list[Any] = [tree(connection, sql)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            if what := _NO_EXPRESSIONS.get(node.get("class", "")):
                raise _NotAllowedError(f"{what} cannot be in a rule, which sees one row")
            if (name := node.get("function_name")) and (name.lower(),) in functions:
                raise _NotAllowedError(f"{name}() is another each time, and a view must be the same again")
            if node.get("class") == "COLUMN_REF":
                named.add(_known(node["column_names"][-1]))
            waiting += node.values()
    return tuple(name for name in INDEX.names if name in named)


def _known(name: str) -> str:
    if name.lower() == "row":
        raise _NotAllowedError("row is a place and says nothing of a label: choose by key or by scores")
    if name.lower() in INDEX.names:
        return name.lower()
    close = difflib.get_close_matches(name.lower(), INDEX.names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"scores are {', '.join(SCORES)}"
    raise _NotAllowedError(f"the index has no column {name}\n{hint}")


def _with_percentiles(sql: str, value: Any) -> str:
    """The expression with `value(column, share)` where it says `column below pN`."""

    def number(match: re.Match[str]) -> str:
        if match["side"] is None:
            return match[0]
        name = match["column"]
        column = _known_column(sql, name[1:-1] if name.startswith('"') else name)
        percent = float(match["percent"])
        if percent > 100:
            raise UserError(f"{sql!r}: p{match['percent']} is no percentile: p0 to p100")
        # 9 digits tell all FLOATs apart. No exponent, which would make a DOUBLE of the literal.
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
    # As double: a quantile of FLOAT would be interpolated in FLOAT. At p95 of 62M rows that is one sort of one column.
    quoted = f'"{column}"'  # `offset` is a word of SQL
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
        return f"no labelled row has {column}: none is a JPEG, or they were labelled before there was this score"
    return f"no labelled row has {column}: labelled before there was this score; label again, to another --output"


def _first_line(error: duckdb.Error) -> str:
    line = str(error).splitlines()[0].strip()
    return line[:300]
