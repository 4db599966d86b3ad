"""Integers <-> bytes <-> depth: `encode` in the write stage, `decode` and `dequantise` in a reader, none with torch.

A label is `offset + scale * q` with uint16 `q`. Twelve bits lie 20x under the teacher's own noise for losses on
disparity (error 2.2e-4 against 4.6e-3, shared/facts/storage.md); logarithms and metres need sixteen. Bytes are `q`
differenced along both axes modulo 2^16, then zstd level 3: a reader in any language needs zstd and two cumulative sums.
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


def dequantise(q: np.ndarray, scale: float, offset: float) -> np.ndarray:
    """float32 `offset + scale * q` of uint16 `q` of any shape; finite where scale and offset come from `quantise`."""
    largest = float(np.finfo(np.float32).max)
    if float(scale) * 0xFFFF + abs(float(offset)) < largest:
        depth = q.astype(np.float32)
        depth *= np.float32(scale)
        depth += np.float32(offset)
        return depth
    # Only ranges near the limits of float32 come here: scale * q alone may overflow.
    wide = q.astype(np.float64) * float(scale) + float(offset)
    return np.clip(wide, -largest, largest).astype(np.float32)


class _PerThread(threading.local):
    """zstd contexts and a work buffer: contexts serve one thread, and building one takes as long as a map."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor()
        self._work = np.empty(0, dtype=np.uint16)

    def work(self, size: int) -> np.ndarray:
        """Two uint16 buffers of `size` values each, kept between calls: a fresh one costs a page fault every 4 kB."""
        if self._work.size < 2 * size:
            self._work = np.empty(2 * size, dtype=np.uint16)
        return self._work[: 2 * size].reshape(2, size)


_thread = _PerThread()


def encode(q: np.ndarray) -> bytes:
    """Bytes of one map, the same for the same `q` and zstd version.

    Args:
        q: uint16 (h, w); a view of a micro-batch is fine.

    Raises:
        ValueError: not uint16 or not 2-D.
    """
    if q.dtype != np.uint16 or q.ndim != 2:
        raise ValueError(f"q must be uint16 (h, w), not {q.dtype} {q.shape}")
    flat = np.ascontiguousarray(q).reshape(-1)
    along, both = _thread.work(q.size)
    # Along x, over row ends too: one long loop runs twice as fast as one for each row. Then each row's first value is
    # put right.
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
    wanted = 2 * height * width
    try:
        # Asked first, so that a broken header cannot make us allocate what it likes.
        declared = zstandard.frame_content_size(data)
        if declared != wanted:
            raise ValueError(f"a label of {height} x {width} has {wanted} bytes, this one declares {declared}")
        raw = _thread.decompressor.decompress(data, max_output_size=wanted, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"not a label: {error}") from error
    differences = np.frombuffer(raw, dtype="<u2")
    if differences.size != height * width:
        raise ValueError(f"a label of {height} x {width} has {wanted} bytes, this one {len(raw)}")
    q = np.empty((height, width), dtype=np.uint16)
    np.cumsum(differences.reshape(height, width), axis=1, dtype=np.uint16, out=q)
    return np.cumsum(q, axis=0, dtype=np.uint16, out=q)
