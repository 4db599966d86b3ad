"""Make texts that others wrote fit to be shown and stored: no credential of a URL, no control character, a limited length."""

import re
from collections.abc import Mapping
from typing import Any

MESSAGE_CHARS = 500
"""Length of a message column or a line on a terminal. A place and a cause fit; a key of 10 kB is cut in its middle."""

WEB = frozenset({"http", "https"})
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_HOST_END = re.compile(r"[/?#]")
_SIGNED = re.compile(
    r"[?&](x-amz-[a-z-]+|x-goog-[a-z-]+|sig|signature|token|[a-z_]*(access|auth|api)[_-]?(key|token)|"
    r"awsaccesskeyid|key|secret|password|credential)=",
    re.IGNORECASE,
)


def redact(url: str) -> str:
    """The URL without what may be a credential: user and password, and the query of an http URL.

    Other URLs lose a query only if it looks signed, because `?` may be part of an object's name, and keep a name before `@`, as
    in `abfss://container@account`. A URL without a credential comes back unchanged.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    web = scheme.strip().lower().rpartition("::")[2] in WEB
    if not web and "::" in rest:  # zip://a.jpg::https://user:password@host/x.zip
        first, _, others = rest.partition("::")
        return f"{redact(f'{scheme}://{first}')}::{redact(others)}"
    if web:
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    elif signed := _SIGNED.search(rest):
        rest = rest[: signed.start()].partition("?")[0]
    end = found.start() if (found := _HOST_END.search(rest)) else len(rest)
    user, at, host = rest[:end].rpartition("@")
    if at and (web or ":" in user):
        rest = host + rest[end:]
    return f"{scheme}://{rest}"


def scrub(text: str) -> str:
    """The text with each URL in it redacted."""
    return _URL.sub(lambda found: redact(found[0]), text) if "://" in text else text


def printable(text: object, limit: int = MESSAGE_CHARS) -> str:
    """The text as one line of at most `limit` characters for a terminal or a message column, whoever wrote it.

    URLs lose their credentials. Line breaks, escape sequences, changes of direction and the like are escaped as in a Python
    literal. The middle of a long text is left out.
    """
    line = scrub(str(text))
    if len(line) > limit:
        line = _shortened(line, limit)
    if not line.isprintable():
        line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
        line = _shortened(line, limit)
    return line


def redacted(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that may be stored: every string in it is redacted."""
    return {name: _redacted(value) for name, value in values.items()}


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return redacted(value)
    return [_redacted(item) for item in value] if isinstance(value, (list, tuple)) else value


def _shortened(line: str, limit: int) -> str:
    """The line without its middle, because a message begins with the place and ends with the cause."""
    if len(line) <= limit:
        return line
    head = limit * 2 // 3
    return f"{line[:head]}…{line[len(line) - (limit - head - 1) :]}"
