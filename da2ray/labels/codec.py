"""Integers <-> bytes <-> depth: the write stage encodes, readers decode and dequantise. Nothing here needs torch.
`encode_mask` and `decode_mask` do the same for masks and the far class, which is stored as a mask of one bit.

A label is `offset + scale * q` with uint16 `q`. For losses on disparity, the error of twelve bits is a twentieth of the teacher's
own noise (2.2e-4 against 4.6e-3); logarithms and metres need sixteen. The bytes are `q` differenced
along both axes modulo 2^16, then zstd level 3, so a reader in any language needs zstd and two cumulative sums.

A mask holds a confidence of `bits` bits for each pixel. 8 // width neighbours share a byte, with a width of 1, 2, 4 or 8 bits;
then zstd level 3 follows. A rough error map of 518 x 686 at 2 bits takes 43 kB and 0.7 ms. Without sharing it takes 59 kB, as
bit planes 53 kB, differenced 60 kB. At 8 bits differences would save a quarter, but nobody keeps that many bits.
"""

import threading
from typing import Final

import numpy as np
import zstandard

from da2ray.teachers.base import Kind

CODEC: Final = "difference2d+zstd"
"""Name of the bytes that `encode` writes, as `dataset.json` and Parquet shards state it."""

LEVEL: Final = 3
_BITS: Final = {Kind.DISPARITY: 12, Kind.DEPTH: 12, Kind.METRIC: 16}


def default_bits(kind: Kind | str) -> int:
    """Bits of `q` for a kind of depth: 12 for disparity and depth, 16 for metric."""
    return _BITS[Kind(kind)]


def mask_width(bits: int) -> int:
    """Bits that a pixel of a packed mask takes: the smallest of 1, 2, 4 and 8 that holds `bits`."""
    return next(width for width in (1, 2, 4, 8) if width >= bits)


def dequantise(q: np.ndarray, scale: float, offset: float) -> np.ndarray:
    """float32 `offset + scale * q` of uint16 `q` of any shape; finite if scale and offset come from `quantise`."""
    largest = float(np.finfo(np.float32).max)
    if float(scale) * 0xFFFF + abs(float(offset)) < largest:
        depth = q.astype(np.float32)
        depth *= np.float32(scale)
        depth += np.float32(offset)
        return depth
    # Only ranges near the limits of float32 come here, because scale * q alone may overflow.
    wide = q.astype(np.float64) * float(scale) + float(offset)
    return np.clip(wide, -largest, largest).astype(np.float32)


class _PerThread(threading.local):
    """zstd contexts and a work buffer. A context serves one thread, and building one takes as long as encoding a map."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor()
        self._work = np.empty(0, dtype=np.uint16)

    def work(self, size: int) -> np.ndarray:
        """Two uint16 buffers of `size` values each, kept between calls because a fresh one costs a page fault every 4 kB."""
        if self._work.size < 2 * size:
            self._work = np.empty(2 * size, dtype=np.uint16)
        return self._work[: 2 * size].reshape(2, size)


_thread = _PerThread()


def encode(q: np.ndarray) -> bytes:
    """The bytes of one map, which are the same for the same `q` and zstd version.

    Args:
        q: uint16 (h, w); a view of a micro-batch is fine.

    Raises:
        ValueError: `q` is not uint16, or not 2-D.
    """
    if q.dtype != np.uint16 or q.ndim != 2:
        raise ValueError(f"q must be uint16 (h, w), not {q.dtype} {q.shape}")
    flat = np.ascontiguousarray(q).reshape(-1)
    along, both = _thread.work(q.size)
    # Along x, across row ends too, because one long loop runs twice as fast as one for each row. Then the first value of each
    # row is corrected.
    np.subtract(flat[1:], flat[:-1], out=along[1:])
    rows, differences = along.reshape(q.shape), both.reshape(q.shape)
    rows[:, :1] = q[:, :1]
    np.subtract(rows[1:], rows[:-1], out=differences[1:])
    differences[:1] = rows[:1]
    return _thread.compressor.compress(both)


def decode(data: bytes | memoryview, height: int, width: int) -> np.ndarray:
    """The uint16 (height, width) map of `encode`, bit for bit.

    Raises:
        ValueError: the bytes are corrupt, cut off, or of another size.
    """
    differences = np.frombuffer(_decompress(data, 2 * height * width, f"label of {height} x {width}"), dtype="<u2")
    q = np.empty((height, width), dtype=np.uint16)
    np.cumsum(differences.reshape(height, width), axis=1, dtype=np.uint16, out=q)
    return np.cumsum(q, axis=0, dtype=np.uint16, out=q)


def encode_mask(levels: np.ndarray, bits: int) -> bytes:
    """The bytes of one mask, which are the same for the same levels and zstd version.

    Args:
        levels: uint8 (h, w), at most 2^bits - 1.
        bits: 1 to 8.
    """
    width = mask_width(bits)
    per_byte = 8 // width
    flat = np.ascontiguousarray(levels).reshape(-1)
    padded = np.pad(flat, (0, -flat.size % per_byte)).reshape(-1, per_byte)
    packed = padded[:, 0].copy()
    for place in range(1, per_byte):  # the first pixel in the lowest bits
        packed |= padded[:, place] << (place * width)
    return _thread.compressor.compress(packed.data)


def decode_mask(data: bytes | memoryview, height: int, width: int, bits: int) -> np.ndarray:
    """The uint8 (height, width) levels of `encode_mask`.

    Raises:
        ValueError: the bytes are corrupt, cut off, or of another size, or a level is above 2^bits - 1.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"a mask has 1 to 8 bits, not {bits}")
    step = mask_width(bits)
    per_byte = 8 // step
    raw = _decompress(data, -(-height * width // per_byte), f"mask of {height} x {width}, {bits} bits,")
    packed = np.frombuffer(raw, dtype=np.uint8)
    levels = np.empty((packed.size, per_byte), dtype=np.uint8)
    for place in range(per_byte):
        levels[:, place] = packed >> (place * step) & (2**step - 1)
    return checked_levels(levels.reshape(-1)[: height * width].reshape(height, width), bits)


def checked_levels(levels: np.ndarray, bits: int) -> np.ndarray:
    """The same levels, once they are checked.

    Raises:
        ValueError: a level is above 2^bits - 1.
    """
    highest = int(levels.max(initial=0))
    if highest >= 2**bits:
        raise ValueError(f"not a mask of {bits} bits: it holds {highest}")
    return levels


def _decompress(data: bytes | memoryview, wanted: int, what: str) -> bytes:
    """The content of a zstd frame, `wanted` bytes.

    Raises:
        ValueError: the frame is corrupt, cut off, or of another size.
    """
    try:
        # Checked first, so that a broken header cannot make us allocate any amount of memory.
        declared = zstandard.frame_content_size(data)
        if declared != wanted:
            raise ValueError(f"a {what} has {wanted} bytes, this one declares {declared}")
        raw = _thread.decompressor.decompress(data, max_output_size=wanted, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"not a {what}: {error}") from error
    if len(raw) != wanted:
        raise ValueError(f"a {what} has {wanted} bytes, this one {len(raw)}")
    return raw
