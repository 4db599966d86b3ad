"""Read the images of labels again: only those that the dataset's own sources may read, and only if they are unchanged."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from da2ray.errors import SampleError, UnavailableError, UserError
from da2ray.images.decode import DecodeMode, Pixels, decode_pixels, read_header
from da2ray.plan.plan import PlanInfo
from da2ray.sources.allowed import Allowed, must_be_regular
from da2ray.sources.parquet.source import read_image
from da2ray.storage import Client, Store, join, open_store, printable, split_uri

RETRY_S: Final = 10.0
"""Seconds to retry a store that does not answer. People wait for the page, and it can do without a picture."""


class MissingError(Exception):
    """A picture cannot be shown; the message tells people why."""


class Originals:
    """Reads the images of index rows. Threads may share it.

    The index says where each image lies, but others may have written the index. So an image of a prefix is read only if it
    lies below that prefix, and one of a manifest or a Parquet file only if that may
    name it (`Allowed.of`).

    Args:
        plans: the plans of the dataset by id.
        allow: what else a manifest's images may be read from, like `--allow-scheme` of the job.
    """

    def __init__(self, plans: Mapping[str, PlanInfo], client: Client = "auto", allow: Sequence[str] = ()) -> None:
        self._plans = plans
        self._client = client
        self._allowed = {
            plan: Allowed.of(info.source["url"], allow)
            for plan, info in plans.items()
            if info.source.get("of", info.source["kind"])
            in {"manifest", "parquet"}  # a plan of `--retry-failed` has `of`
        }
        self._stores: dict[tuple[str, str], Store] = {}
        self._down: dict[tuple[str, str], str] = {}

    def read(self, row: Mapping[str, Any], size: tuple[int, int]) -> Pixels:
        """Read an index row's image as displayed: uint8 RGB, decoded at a reduced size not below `size` (height, width).

        Raises:
            MissingError: the image may not be read, no longer exists, or has changed.
        """
        try:
            data = self._get(row)
            if row["sha256"] is not None and hashlib.sha256(data).digest() != row["sha256"]:
                raise MissingError("the image has changed since it was labelled")
            return decode_pixels(data, read_header(data), size, DecodeMode.SCALED)
        except SampleError as error:
            raise MissingError(f"{error.reason}: {error.message}") from error
        except FileNotFoundError as error:
            raise MissingError("the image no longer exists") from error
        except (OSError, ValueError, UserError) as error:
            raise MissingError(printable(error)) from error

    def _get(self, row: Mapping[str, Any]) -> bytes:
        plan, uri = row["plan"], row["uri"]
        if plan not in self._plans:
            raise MissingError(f"plans/{plan}.parquet is missing; it says where the images may be read")
        allowed = self._allowed.get(plan)
        root, key = split_uri(uri)
        if allowed:
            allowed.check(uri)
        elif not join(root, key).startswith(join(self._plans[plan].root, "")):
            raise MissingError(f"the image is not below {self._plans[plan].root}, the root of its plan")
        if root == "/":
            must_be_regular(f"/{key}")
        place = (plan if allowed else "", root)
        if place in self._down:
            raise MissingError(self._down[place])
        if place not in self._stores:
            opened = allowed.open(root, self._client, RETRY_S) if allowed else open_store(root, self._client, RETRY_S)
            self._stores.setdefault(place, opened)
        try:
            if row["image_offset"] is not None:
                return self._stores[place].get_range(key, row["image_offset"], row["image_length"])
            if row["image_row"] is not None:
                return read_image(self._stores[place], key, self._plans[plan].source["image_column"], row["image_row"])
            return self._stores[place].get(key)
        except UnavailableError as error:
            self._down[place] = printable(error)
            raise
