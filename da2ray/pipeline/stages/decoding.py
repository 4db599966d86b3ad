"""Decode an image file to pixels whose size is known before. The read stage and the label stage share this."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from da2ray.errors import Reason, SampleError
from da2ray.images.decode import DecodeMode, Format, Header, read_header
from da2ray.pipeline.stages.access import Access
from da2ray.pipeline.stages.batches import decoded_row
from da2ray.pipeline.stages.isolation import IsolatedAccess
from da2ray.teachers.base import SizeRule


@dataclass(frozen=True, slots=True)
class Decoding:
    """How images are decoded. Picklable.

    Attributes:
        mode: at full size, or at a reduced one.
        checker_size: the checker's size rule; it decides only how small an image may be decoded.
    """

    mode: DecodeMode
    checker_size: SizeRule | None = None

    @property
    def scaled(self) -> bool:
        """Whether images are decoded at a reduced size."""
        return self.mode is DecodeMode.SCALED

    def needed(self, header: Header, network: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) that no reduced decoding may go below. `network`: the teacher's, for this image."""
        if self.checker_size is None:
            return network
        height, width = self.checker_size(header.height, header.width)
        return max(network[0], height), max(network[1], width)

    def room(self, header: Header, needed: tuple[int, int]) -> int:
        """Bytes that an image's pixels take at most.

        libjpeg's scales halve at most from one to the next, down to 1/8: a reduced JPEG is below twice the needed sides, or an
        eighth of its own, each rounded up.
        """
        if self.mode is DecodeMode.EXACT or header.format is not Format.JPEG:
            return 3 * header.height * header.width
        reduced = 2 / min(header.height / needed[0], header.width / needed[1])
        share = min(1.0, max(reduced, 1 / 8))
        return 3 * (int(header.height * share) + 2) * (int(header.width * share) + 2)

    def decode(self, data: bytes, header: Header, needed: tuple[int, int], access: Access) -> np.ndarray:
        """The image's pixels: uint8 (H, W, 3), no more bytes than `room`.

        Raises:
            SampleError: the image cannot be decoded, or memory does not suffice.
        """
        try:
            image = access.decode(data, header, needed, self.mode)
        except MemoryError as error:
            raise SampleError(Reason.OUT_OF_MEMORY, f"{header.format}: no memory for its pixels") from error
        if image.size > self.room(header, needed):
            raise SampleError(Reason.CORRUPT, f"{header.format}: header and pixels disagree about the size")
        return image


class LateDecoder:
    """Decodes the images that travelled encoded, in a process beside this one: a crash or a hang costs one image.

    Not for several threads at once.
    """

    def __init__(self, decoding: Decoding, timeout: float) -> None:
        """`timeout`: seconds that decoding one image may take."""
        self._decoding = decoding
        self._access = IsolatedAccess(timeout)

    def decode(self, row: pa.Table) -> pa.Table:
        """See `decoded_row`."""
        return decoded_row(row, self._decode)

    def close(self) -> None:
        """End the process."""
        self._access.close()

    def _decode(self, data: bytes, fields: Mapping[str, Any]) -> np.ndarray:
        header = read_header(data)
        needed = self._decoding.needed(header, (fields["network_height"], fields["network_width"]))
        return self._decoding.decode(data, header, needed, self._access)
