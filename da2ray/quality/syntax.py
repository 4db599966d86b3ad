"""Expressions as DuckDB parses them: whoever asks what one says asks its parser, so that there is no second one."""

import json
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import numpy as np

_OPERATORS: Final = {
    "COMPARE_LESSTHAN": "<",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
}
_TURNED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True, slots=True)
class Comparison:
    """`column operator number`, such as blur > 20.

    Attributes:
        operator: <, <=, > or >=.
        number: that a FLOAT column is compared with: DuckDB makes a FLOAT of a literal, but for one that is a DOUBLE by
            itself, such as 1e-1.
    """

    column: str
    operator: str
    number: float


def tree(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """An expression as nested lists and dicts (`json_serialize_sql`); None where it is none."""
    ((found,),) = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT ({sql}\n)"]).fetchall()
    parsed = json.loads(found)
    if parsed["error"] or len(parsed["statements"]) != 1:
        return None
    return parsed["statements"][0]["node"]["select_list"][0]


def comparisons(connection: duckdb.DuckDBPyConnection, sql: str) -> list[Comparison]:
    """What an expression demands, where it is comparisons of columns with numbers joined by AND; [] where it is anything else."""
    node = tree(connection, sql)
    if node is None:
        return []
    parts = node["children"] if node["type"] == "CONJUNCTION_AND" else [node]
    found = [_comparison(connection, part) for part in parts]
    return [each for each in found if each] if all(found) else []


def _comparison(connection: duckdb.DuckDBPyConnection, node: Any) -> Comparison | None:
    operator = _OPERATORS.get(node["type"])
    if operator is None:
        return None
    column, constant = node["left"], node["right"]
    if column["class"] == "CONSTANT":
        column, constant, operator = constant, column, _TURNED[operator]
    literal = constant.get("literal", {})
    if column["class"] != "COLUMN_REF" or literal.get("kind") not in ("NUMERIC", "INTEGER"):
        return None
    ((kind,),) = connection.execute(f"SELECT typeof({literal['text']})").fetchall()
    number = float(literal["text"])
    return Comparison(
        column["column_names"][-1].lower(), operator, number if kind == "DOUBLE" else float(np.float32(number))
    )
