"""The sources' README: its commands parse, its links lead somewhere, and its lists match the code."""

import re

from da2ray.sources import IMAGE_SUFFIXES, MANIFEST_SUFFIXES, Source
from da2ray.sources.allowed import Allowed
from da2ray.sources.base import Ranged
from da2ray.sources.manifest import URI_COLUMNS
from da2ray.sources.open import KINDS
from da2ray.sources.tar.files import TAR_SUFFIXES
from tests.readmes import ROOT

FILE = ROOT / "da2ray" / "sources" / "README.md"
README = FILE.read_text()


def test_suffixes_columns_and_methods_are_those_of_the_code() -> None:
    named = set(re.findall(r"`(\.\w+(?:\.\w+)?)`", README))
    suffixes = IMAGE_SUFFIXES | MANIFEST_SUFFIXES | {*TAR_SUFFIXES, ".json"}
    assert named - {".name", ".txt"} == suffixes == KINDS.keys()
    (columns,) = re.findall(r"^\| (.*) \| where the image lies", README, re.MULTILINE)
    assert tuple(re.findall(r"`(\w+)`", columns)) == URI_COLUMNS
    for method in re.findall(r"^\| `(\w+)\(", README, re.MULTILINE):
        assert hasattr(Source, method) or hasattr(Ranged, method)


def test_the_examples_of_what_to_allow_are_words_of_the_option() -> None:
    words = re.findall(r"^\| `--allow-scheme (\S+)`", README, re.MULTILINE)
    assert len(words) == 5
    Allowed.of("/m.csv", words)
