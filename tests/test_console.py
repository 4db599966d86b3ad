"""Texts that all commands print: counts with their nouns, times, and questions about unknown words."""

import pytest

from da2ray.console import counted, did_you_mean, to_seconds


@pytest.mark.parametrize(
    ("count", "exact", "text"),
    [
        (0, True, "0 shards"),
        (1, True, "1 shard"),
        (2, True, "2 shards"),
        (3200, True, "3,200 shards"),
        (1, False, "about 1 shard"),
    ],
)
def test_a_count_has_its_noun_in_the_right_number(count: int, exact: bool, text: str) -> None:
    assert counted(count, "shard", exact=exact) == text


@pytest.mark.parametrize("moment", ["2026-11-28T06:07:08.123456+00:00", "2026-11-28T06:07:08+00:00"])
def test_a_time_is_shown_to_the_second(moment: str) -> None:
    assert to_seconds(moment) == "2026-11-28T06:07:08+00:00"


def test_an_unknown_word_is_compared_with_the_known_ones() -> None:
    assert did_you_mean("--teach", ["--teacher", "--output"]) == "; did you mean --teacher?"
    assert did_you_mean("--zzz", ["--teacher", "--output"]) == ""
    assert did_you_mean("", ["--teacher"]) == ""
