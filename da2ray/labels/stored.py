"""How stored state is read: whatever is wrong with an object, the error names it and says what to do."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

import da2ray
from da2ray.errors import CorruptError, StoreError, UserError
from da2ray.labels.schema import FORMAT_VERSION
from da2ray.parallel import look_ahead
from da2ray.storage import Store, printable

Model = TypeVar("Model", bound="Stored")

MESSAGE_CHARS = 200
"""Length of what a parser says about an object."""
THREADS = 16
"""Small objects that are read at once."""


class Stored(BaseModel):
    """A JSON object. It is immutable once read; fields that a later release of this format version added are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


@contextmanager
def intact(store: Store, key: str, what: str, remedy: str) -> Iterator[None]:
    """Read an object of the dataset within this context.

    Parsers raise errors of any type for bytes that are empty, cut off or foreign (pyarrow even an OSError), so what counts is
    which errors are not theirs: those of the store and of this package.

    Args:
        key, what: of the object, for the message.
        remedy: what the user can do about damage.

    Raises:
        CorruptError: the object is not what its key says.
    """
    try:
        yield
    except (UserError, StoreError, FileNotFoundError, PermissionError, CorruptError):
        raise
    except Exception as error:
        raise CorruptError(f"{store.url}/{key} is not {what} ({_reason(error)}): {remedy}") from error


def read_json(store: Store, key: str, model: type[Model], what: str, remedy: str) -> Model:
    """Fetch and parse a JSON object.

    Raises:
        FileNotFoundError: the object does not exist.
        CorruptError: see `intact`.
    """
    with intact(store, key, what, remedy):
        return model.model_validate_json(store.get(key))


def read_versioned(store: Store, key: str, model: type[Model], what: str, remedy: str) -> Model:
    """Fetch and parse a JSON object that has a `format_version`.

    Raises:
        FileNotFoundError: the object does not exist.
        UserError: it is of a later format version.
        CorruptError: see `intact`.
    """
    with intact(store, key, what, remedy):
        data = store.get(key)
        version = json.loads(data)["format_version"]
        if version > FORMAT_VERSION:
            raise UserError(
                f"{store.url}/{key} has format version {version}, da2ray {da2ray.__version__} reads up to {FORMAT_VERSION}: "
                "update da2ray"
            )
        return model.model_validate_json(data)


def broken(keys: Iterable[str], read: Callable[[str], object], name: str) -> dict[str, str]:
    """The objects that cannot be read: key -> what is wrong. One that was deleted since it was listed is not broken.

    Args:
        keys: of objects that were listed.
        read: reads an object, and raises CorruptError if it is damaged.
        name: of the threads.

    Raises:
        OSError: the store failed.
    """

    def check(key: str) -> tuple[str, str] | None:
        try:
            read(key)
        except CorruptError as error:
            return key, str(error)
        except FileNotFoundError:
            return None
        return None

    return dict(filter(None, look_ahead(check, sorted(keys), THREADS, name)))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return printable(text or type(error).__name__, MESSAGE_CHARS)
