"""Where images come from. `open_source(url)` gives a source: `shards` plans it, `read` reads a shard of it. See README.md."""

from da2ray.sources.base import SHARDS, Cut, Member, Place, Sample, Source
from da2ray.sources.manifest import MANIFEST_SUFFIXES, ManifestSource
from da2ray.sources.members import MEMBERS, MemberSource, members_of
from da2ray.sources.open import open_source
from da2ray.sources.parquet.source import ParquetSource
from da2ray.sources.prefix import IMAGE_SUFFIXES, PrefixSource

__all__ = [
    "IMAGE_SUFFIXES",
    "MANIFEST_SUFFIXES",
    "MEMBERS",
    "SHARDS",
    "Cut",
    "ManifestSource",
    "Member",
    "MemberSource",
    "ParquetSource",
    "Place",
    "PrefixSource",
    "Sample",
    "Source",
    "members_of",
    "open_source",
]
