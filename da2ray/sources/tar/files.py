"""The tars of a source: those below a prefix, those that a pattern matches, or those that a manifest names."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import UserError
from da2ray.sources.allowed import NAME_CHARS
from da2ray.sources.base import Member
from da2ray.sources.manifest import ManifestSource
from da2ray.sources.members import members_of
from da2ray.sources.prefix import HIDDEN, PrefixSource, members_below
from da2ray.sources.tar.index import index_name
from da2ray.storage import Client, join, printable, redact

TAR_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")
COMPRESSED: Final = tuple(suffix for suffix in TAR_SUFFIXES if suffix != ".tar")
_TAR: Final = r"(?i)(" + "|".join(map(re.escape, TAR_SUFFIXES)) + ")$"
_WILD: Final = re.compile(r"[*?\[{]")
_NUMBERS: Final = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
_TOKEN: Final = re.compile(r"\*\*|\*|\?|\[[^\]/]+\]|\{[0-9]+\.\.[0-9]+\}")


class Tars(Protocol):
    """Lists tars. Can be pickled.

    Attributes:
        location: what the user named: a URL, or a pattern.
        root: the URL that most tars lie under.
    """

    location: str
    root: str

    @property
    def passed_over(self) -> Mapping[str, int]: ...

    def describe(self) -> dict[str, str]: ...

    def tars(self) -> Iterator[Member]:
        """The tars, in the same order every time.

        Raises:
            UserError: they cannot be listed.
        """
        ...

    def index_of(self, tar: Member) -> str | None:
        """The URI of the index of a tar that was just listed; None if it has none."""
        ...


class TarFiles(PrefixSource):
    """The tars below a URL; with `pattern` those of them that match it, or with `is_file` the one at the URL."""

    kind = "tar"
    looks_for = " ".join(TAR_SUFFIXES)

    def __init__(self, url: str, client: Client = "auto", *, is_file: bool = False, pattern: str | None = None) -> None:
        """`pattern`: of the path below `url`, see `split_pattern`."""
        super().__init__(url, client, is_file=is_file)
        self.root = url.rpartition("/")[0] or "/" if is_file else url
        self._pattern = pattern
        self._indexes: set[str] = set()
        self.location = url if pattern is None else join(url, pattern)
        if pattern is not None:
            self._matches = matcher(pattern)

    def __getstate__(self) -> dict[str, object]:
        """Without the compiled pattern, and what only planning needs."""
        return {name: value for name, value in self.__dict__.items() if name != "_matches"} | {"_indexes": set()}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        if self._pattern is not None:
            self._matches = matcher(self._pattern)

    def describe(self) -> dict[str, str]:
        return {"kind": self.kind, "url": self.location}

    def tars(self) -> Iterator[Member]:
        for batch in self.members():
            yield from members_of(batch)

    def index_of(self, tar: Member) -> str | None:
        name = index_name(tar.key)
        return join(self.root, name) if name in self._indexes else None

    def images(self, listed: pa.RecordBatch) -> pa.RecordBatch:
        """The tars of a listing, as rows of schema MEMBERS."""
        if not self._name:
            keys = listed.column("key")
            # The name of an index precedes that of its tar.
            self._indexes.update(keys.filter(pc.ends_with(keys, ".idx")).to_pylist())
            tar, hidden = (pc.match_substring_regex(keys, pattern) for pattern in (_TAR, HIDDEN))
            self.passed_over["hidden_files"] += pc.sum(hidden).as_py() or 0
            wanted = pc.and_not(tar, hidden)
            if self._pattern is not None:
                wanted = pc.and_(wanted, pa.array([self._matches(key) for key in keys.to_pylist()], pa.bool_()))
            listed = listed.filter(wanted)
        return members_below(listed, self.root)


class TarManifest:
    """The tars that a manifest names."""

    def __init__(self, manifest: ManifestSource) -> None:
        self.location = manifest.url
        self.root = manifest.root
        self.passed_over: Mapping[str, int] = {}
        self._manifest = manifest

    def describe(self) -> dict[str, str]:
        return self._manifest.describe() | {"kind": "tar", "of": self._manifest.kind}

    def index_of(self, tar: Member) -> str | None:  # noqa: ARG002 - a manifest does not name them
        return None

    def tars(self) -> Iterator[Member]:
        for batch in self._manifest.members():
            for member in members_of(batch):
                if not is_tar(member.uri):
                    shown = printable(redact(member.uri), NAME_CHARS)
                    raise UserError(
                        f"{self.location}: {shown} does not end in {' '.join(TAR_SUFFIXES)}: a manifest names tars or images, "
                        "not both"
                    )
                yield member


def is_tar(uri: str) -> bool:
    """Whether a URI names a tar, by its suffix. The query of a signed URL does not count."""
    return re.search(_TAR, redact(uri)) is not None


def split_pattern(url: str) -> tuple[str, str] | None:
    """The folder and the pattern of a URL such as `s3://b/x/*.tar`; None if it has no pattern.

    `*` stands for any characters but `/`, `**` for any, `?` for one, `[a-c]` for one of some, and `{000..123}` for numbers.
    """
    found = _WILD.search(url)
    if not found:
        return None
    folder = url[: url.rfind("/", 0, found.start())]
    return folder or "/", url[len(folder) + 1 :]


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a path matches a pattern.

    Raises:
        UserError: it is not a pattern.
    """
    text, at, bounds = "", 0, []
    for token in _TOKEN.finditer(pattern):
        text += re.escape(pattern[at : token.start()])
        at = token.end()
        if numbers := _NUMBERS.fullmatch(token[0]):
            low, high = numbers.groups()
            bounds.append((int(low), int(high)))
            text += f"([0-9]{{{len(low)},{max(len(low), len(high))}}})"
        elif token[0].startswith("["):
            text += "[" + token[0][1:-1].replace("\\", "\\\\").replace("!", "^", 1 if token[0][1] == "!" else 0) + "]"
        else:
            text += {"**": ".*", "*": "[^/]*", "?": "[^/]"}[token[0]]
    try:
        compiled = re.compile(text + re.escape(pattern[at:]), re.DOTALL)
    except re.error as error:
        raise UserError(f"{printable(pattern)} is not a pattern: {error}") from None

    def matches(path: str) -> bool:
        found = compiled.fullmatch(path)
        return found is not None and all(
            low <= int(number) <= high for number, (low, high) in zip(found.groups(), bounds, strict=True)
        )

    return matches
