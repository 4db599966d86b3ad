"""Read expressions with DuckDB's own parser, so that there is no second one."""

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
    """A comparison `column operator number`, such as blur > 20.

    Attributes:
        operator: <, <=, > or >=.
        number: the number that DuckDB compares a FLOAT column with. It converts a literal to FLOAT, unless the literal is a
            DOUBLE by itself, such as 1e-1.
    """

    column: str
    operator: str
    number: float


def tree(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """Parse an expression to nested lists and dicts (`json_serialize_sql`); None if it is not a single expression."""
    ((found,),) = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT ({sql}\n)"]).fetchall()
    parsed = json.loads(found)
    if parsed["error"] or len(parsed["statements"]) != 1:
        return None
    return parsed["statements"][0]["node"]["select_list"][0]


def comparisons(connection: duckdb.DuckDBPyConnection, sql: str) -> list[Comparison]:
    """Split an expression into comparisons of columns with numbers, joined by AND; [] for any other expression."""
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
