"""Checks that a README beside the code is true without running it: its commands parse and its links lead to files."""

import re
import shlex
from pathlib import Path

from da2ray.commands.benchmark import BenchmarkConfig
from da2ray.commands.options import JobConfig, load
from da2ray.commands.pseudolabel import PseudolabelConfig
from da2ray.commands.train_teacher import TrainTeacherConfig

ROOT = Path(__file__).parents[1]
MODELS: dict[str, type[JobConfig]] = {
    "jobs/benchmark.py": BenchmarkConfig,
    "jobs/pseudolabel.py": PseudolabelConfig,
    "jobs/train_teacher.py": TrainTeacherConfig,
}


def blocks(readme: Path, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", readme.read_text(), re.DOTALL | re.MULTILINE)


def commands(readme: Path) -> list[str]:
    """The lines of the shell blocks."""
    return [line for block in blocks(readme, "sh") for line in block.splitlines() if line]


def parse(command: str) -> JobConfig:
    """The configuration of a `python jobs/X.py …` command, parsed as the job does it."""
    python, script, *options = shlex.split(command)
    assert python == "python"
    assert (ROOT / script).is_file()
    return load(MODELS[script], options)


def broken_links(readme: Path) -> list[str]:
    """The targets of relative links that do not exist."""
    targets = re.findall(r"\]\(([^)#]+)", readme.read_text())
    return [target for target in targets if "://" not in target and not (readme.parent / target).exists()]
