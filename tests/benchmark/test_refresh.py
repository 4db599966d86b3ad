"""A refresh reads and writes a small part of the index, counted by a simulated store."""

from da2ray.benchmark.refresh import refreshes

ROWS = 600_000
"""A hundredth of the dataset that the figures are for. Footers and listings take a larger share of a small index."""


def test_what_a_refresh_reads_and_writes_is_a_small_part_of_the_index() -> None:
    idle, folder, scattered = refreshes(ROWS)
    assert idle.read["index"] == 0
    assert not idle.written
    assert folder.read_share <= 0.015  # 1 % at 60 million rows, where two footers of 70 kB do not count
    assert scattered.read_share <= 0.2
    assert max(folder.written_share, scattered.written_share) <= 0.01
