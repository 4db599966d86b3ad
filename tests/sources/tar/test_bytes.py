"""Ranges of a tar are read ahead in bounded memory, and what is skipped is not read."""

from da2ray.sources.tar.bytes import Ranges


def test_memory_does_not_grow_with_a_range() -> None:
    chunk, ahead = 4096, 7
    fetched = 0

    def get(offset: int, length: int) -> bytes:
        nonlocal fetched
        fetched = max(fetched, offset + length)
        return bytes(length)

    ranges = Ranges(get, 1 << 30, 0, 1 << 30, ahead, chunk)
    for offset in range(0, 1 << 20, 1000):
        assert len(ranges.take(offset, 1000)) == 1000
        held = sum(len(data) for _, data in ranges._held)
        assert held <= 2 * chunk
        assert fetched <= offset + 1000 + (ahead + 2) * chunk
    ranges.close()


def test_a_member_far_ahead_is_not_read_on_the_way() -> None:
    asked: list[tuple[int, int]] = []

    def get(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return bytes(length)

    ranges = Ranges(get, 1 << 40, 0, 1 << 40, ahead=0)
    ranges.take(0, 512)
    ranges.take(1 << 35, 512)
    ranges.close()
    assert sum(length for _, length in asked) <= 2 * (4 << 20)
