"""A focal length in a manifest is a positive number or unknown. Any other value is refused, whichever teacher runs."""

import csv
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from da2ray.errors import UserError
from da2ray.sources import MemberSource, members_of, open_source
from tests.jobs import Command

FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
WRONG_TEXTS = [
    "0", "-0.0", "-3", "nan", "NaN", "-nan", "inf", "-inf", "Infinity", "26 mm", "1e300", "1e-300", "0x10", "1_0", "1,5",
    "\u0661", "None", "null", "N/A", "true", "5;", "--5", "1e", ".",
]  # fmt: skip
NUMBER_TYPES = [
    *(pa.int8(), pa.uint8(), pa.int32(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()),
    *(pa.decimal128(9, 2), pa.decimal256(40, 3)),
]

positive = st.floats(min_value=1 / 128, max_value=60_000, width=32)
unknown = st.sampled_from(["", " ", "\t"])
right_text = (
    positive.map(repr) | st.integers(1, 99_999).map(str) | positive.map("{:.3e}".format) | positive.map(" +{} ".format)
)


def is_wrong(value: float | Decimal) -> bool:
    return not (value > 0 and math.isfinite(value))


def write(folder: Path, kind: str, focals: list[Any], type_: pa.DataType | None = None) -> Path:
    path = folder / f"m.{kind}"
    rows = [{"uri": f"{number}.jpg", "Focal ": focal} for number, focal in enumerate(focals)]
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(rows[0])
            writer.writerows(["" if cell is None else cell for cell in row.values()] for row in rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        schema = pa.schema({"uri": pa.string(), "Focal ": type_ or pa.string()})
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


def focals_of(path: Path, limit: int | None = None) -> list[float | None]:
    source = open_source(path)
    assert isinstance(source, MemberSource)
    return [member.focal for batch in source.members(limit) for member in members_of(batch)]


def check(path: Path, expected: list[float | None], wrong: int | None, shown: str = "") -> None:
    """The manifest gives these focal lengths, or is refused for its row `wrong`, counted from 0."""
    if wrong is None:
        assert focals_of(path) == [each and pytest.approx(each, rel=1e-6) for each in expected]
        return
    with pytest.raises(UserError) as caught:
        focals_of(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: row {wrong + 1} has the focal length {shown}")
    assert "in column 'focal'; it must be a positive number of pixels, or empty if unknown" in message
    assert len(focals_of(path, limit=wrong)) == wrong if wrong else True


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@given(cells=st.lists(right_text | unknown, min_size=1, max_size=5), wrong=st.none() | st.sampled_from(WRONG_TEXTS))
@FEW
def test_text_is_a_number_or_refused(kind: str, cells: list[str], wrong: str | None, tmp_path: Path) -> None:
    expected = [float(cell) if cell.strip() else None for cell in cells]
    path = write(tmp_path, kind, cells if wrong is None else [*cells, wrong, "also wrong"])
    check(path, expected, None if wrong is None else len(cells), wrong or "")


@given(values=st.lists(st.none() | st.integers(-3, 10**40) | st.floats(), min_size=1, max_size=5))
@FEW
def test_a_number_of_json_is_a_focal_length_or_refused(values: list[float | None], tmp_path: Path) -> None:
    def narrow(value: float) -> float:
        return pa.array([float(value)]).cast(pa.float32(), safe=False)[0].as_py()

    wrong = next((place for place, value in enumerate(values) if value is not None and is_wrong(narrow(value))), None)
    check(write(tmp_path, "jsonl", values), [value and float(value) for value in values], wrong)


@given(data=st.data(), type_=st.sampled_from(NUMBER_TYPES))
@FEW
def test_a_number_of_parquet_is_a_focal_length_or_refused(
    data: st.DataObject, type_: pa.DataType, tmp_path: Path
) -> None:
    any_value = (
        st.sampled_from([Decimal("0.00"), Decimal("-1.50"), Decimal("12.25")])
        if pa.types.is_decimal(type_)
        else st.integers(0 if "uint" in str(type_) else -1, 100)
        if pa.types.is_integer(type_)
        else st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf, 0.5, 1234.0])
    )
    values = data.draw(st.lists(st.none() | any_value, min_size=1, max_size=4))
    wrong = next((place for place, value in enumerate(values) if value is not None and is_wrong(value)), None)
    path = write(tmp_path, "parquet", values, type_)
    check(path, [None if value is None else float(value) for value in values], wrong)


def test_a_column_without_values_is_unknown(tmp_path: Path) -> None:
    assert focals_of(write(tmp_path, "parquet", [None, None], pa.null())) == [None, None]
    assert focals_of(write(tmp_path, "csv", [None, None])) == [None, None]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("wrong", ["nan", "26 mm"])
def test_a_wrong_focal_length_is_refused_for_a_teacher_that_has_no_use_for_it(
    job_without_ray: Command, kind: str, wrong: str, tmp_path: Path
) -> None:
    path = write(tmp_path, kind, ["5", "", wrong])
    code, _, stderr = job_without_ray(
        "--images", path, "--output", tmp_path / "labels", "--teacher", "luminance", "--dry-run"
    )
    assert code == 2
    assert f"{path}: row 3 has the focal length {wrong} in column 'focal'" in stderr
