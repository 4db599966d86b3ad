"""How the read stage gets at samples and pixels: directly, or, in the modules beside this one, under a deadline or isolated."""

from collections.abc import Iterator

import numpy as np

from da2ray.images.decode import DecodeMode, decode_pixels
from da2ray.images.headers import Header
from da2ray.sources.base import Extent, Sample, Source

FETCH_AHEAD = 16
"""Reads in flight for a task: an S3 server gives 16 concurrent readers most of its rate."""


class Access:
    """Reads and decodes directly, in this process."""

    def read(self, source: Source, spec: bytes) -> Iterator[Sample | Extent]:
        """The samples of a shard, and maybe its extent, as `Source.read` yields them."""
        return source.read(spec, concurrency=FETCH_AHEAD)

    def decode(self, data: bytes, header: Header, size: tuple[int, int], mode: DecodeMode) -> np.ndarray:
        """The pixels of an image file, as `decode_pixels` gives them."""
        return decode_pixels(data, header, size, mode)

    def close(self) -> None:
        """Give back what it holds."""
