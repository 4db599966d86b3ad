"""The benchmarks' README has commands that parse and names the options that exist."""

import re

from da2ray.commands.benchmark import BenchmarkConfig
from tests.readmes import ROOT

README = ROOT / "da2ray" / "benchmark" / "README.md"


def test_every_option_exists() -> None:
    table = README.read_text().partition("## What is measured")[2].partition("\n\nPlain")[0]
    options = re.findall(r"`--([a-z-]+)", table)
    assert options
    assert {option.replace("-", "_") for option in options} <= set(BenchmarkConfig.model_fields)
