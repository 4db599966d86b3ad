"""The read stage: micro-batches are fixed by the plan, hold every sample once, and fit into the room that was taken."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from da2ray.errors import Reason
from da2ray.images.decode import DecodeMode, Limits, decode, decode_pixels, read_header
from da2ray.pipeline.stages import reading
from da2ray.pipeline.stages.batches import READ, host_batch
from da2ray.pipeline.stages.reading import Arena, Reading
from da2ray.plan.plan import Shard, make_plan
from da2ray.sources import open_source
from da2ray.storage import open_store
from da2ray.teachers.base import SizeRule
from da2ray.teachers.depth_anything.size import OfficialSize
from tests.photos import EXIF_ORIENTATION, REASONS, jpeg

LIMITS = Limits(max_aspect=20, max_tokens=1_000_000)
SIZE_RULE = OfficialSize()


def make_reading(
    folder: Path, mode: DecodeMode = DecodeMode.EXACT, batch_size: int = 4, size_rule: SizeRule = SIZE_RULE
) -> Reading:
    return Reading(open_source(str(folder)), size_rule, LIMITS, mode, batch_size)


def shard_of(folder: Path, tmp_path: Path) -> Shard:
    """All of a folder as one shard."""
    plan = make_plan(
        open_source(str(folder)), open_store(str(tmp_path / "plan")), shard_size=1000, limit=None, fingerprint="f"
    )
    (shard,) = plan.shards(np.arange(len(plan)))
    return shard


def samples_of(block: pa.Table) -> list[list[dict]]:
    """The samples of each row."""
    return block["samples"].to_pylist()


def images_of(block: pa.Table) -> dict[str, np.ndarray]:
    """key -> uint8 (H, W, 3), of all that has pixels."""
    found = {}
    for row in range(block.num_rows):
        batch = host_batch(block.slice(row, 1))
        if batch is None:
            continue
        samples = samples_of(block)[row]
        assert len(samples) == len(batch)
        for sample, image in zip(samples, batch.parts(1), strict=True):
            found[sample["key"]] = image.pixels.reshape(*image.shapes[0], 3)
    return found


@pytest.mark.parametrize("mode", DecodeMode)
def test_every_planned_sample_is_in_exactly_one_row_with_its_reason(
    photos: Path, tmp_path: Path, mode: DecodeMode
) -> None:
    block = make_reading(photos, mode).read(shard_of(photos, tmp_path))
    assert block.schema.equals(READ)
    samples = [sample for row in samples_of(block) for sample in row]
    assert sorted((sample["row"], sample["key"]) for sample in samples) == list(enumerate(REASONS))
    assert {sample["key"]: sample["reason"] for sample in samples} == REASONS
    for sample in samples:
        reason = REASONS[sample["key"]]
        assert sample["status"] == (reason.status if reason else "labelled")
        assert (sample["network_height"] is None) == (sample["network_width"] is None) == bool(reason)
        assert bool(sample["message"]) == bool(reason)
        assert sample["uri"] == str(photos / sample["key"])
        assert sample["etag"]
    assert block["planned"].unique().to_pylist() == [len(REASONS)]
    assert block["shard"].unique().to_pylist() == [0]


def write_sizes(folder: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """A JPEG of each (width, height), none like another."""
    folder.mkdir()
    for number, (width, height) in enumerate(sizes):
        ramp = np.add.outer(np.arange(height), np.arange(width) + 17 * number).astype(np.uint8)
        (folder / f"{number:03d}.jpg").write_bytes(
            jpeg(Image.fromarray(np.stack([ramp, ramp.T.reshape(ramp.shape), ramp], 2)))
        )
    return folder


def test_micro_batches_are_even_and_of_one_network_size(tmp_path: Path) -> None:
    sizes = [(80, 60), (60, 80)] * 5 + [(80, 60)] * 4 + [(64, 64)]  # 9 landscape, 5 portrait, 1 square
    folder = write_sizes(tmp_path / "images", sizes)
    block = make_reading(folder, batch_size=4).read(shard_of(folder, tmp_path))
    lengths = defaultdict(list)
    for row in samples_of(block):
        (size,) = {(sample["network_width"], sample["network_height"]) for sample in row}
        assert [sample["row"] for sample in row] == sorted(sample["row"] for sample in row)
        lengths[size].append(len(row))
    assert lengths == {(686, 518): [3, 3, 3], (518, 686): [2, 3], (518, 518): [1]}


@pytest.mark.parametrize("mode", DecodeMode)
def test_the_same_plan_gives_the_same_micro_batches(photos: Path, tmp_path: Path, mode: DecodeMode) -> None:
    shard = shard_of(photos, tmp_path)
    first = make_reading(photos, mode).read(shard)
    assert first.equals(make_reading(photos, mode).read(shard))
    arena = Arena()
    arena.take(50_000_000)[:] = 7  # what an earlier block left there
    assert first.equals(make_reading(photos, mode).read(shard, arena))


@pytest.mark.parametrize("mode", DecodeMode)
@pytest.mark.parametrize("reused", [False, True], ids=["own memory", "reused arena"])
def test_pixels_are_those_of_each_file_whatever_its_neighbours(
    photos: Path, tmp_path: Path, mode: DecodeMode, reused: bool
) -> None:
    arena = Arena() if reused else None
    shard = shard_of(photos, tmp_path)
    for batch_size in (1, 16):  # in 16, corrupt and truncated files share a micro-batch with their neighbours
        images = images_of(make_reading(photos, mode, batch_size).read(shard, arena))
        assert sorted(images) == [name for name, reason in REASONS.items() if reason is None]
        for name, pixels in images.items():
            alone = decode((photos / name).read_bytes(), size_rule=SIZE_RULE, limits=LIMITS, mode=mode)
            np.testing.assert_array_equal(pixels, alone.pixels, err_msg=name)


def test_an_arena_gives_its_memory_again_and_grows_only_where_it_must() -> None:
    arena = Arena()
    first = arena.take(100)
    assert first.size == 100
    assert np.shares_memory(arena.take(60), first)
    assert arena.take(200).size == 200


def test_a_shard_of_nothing_but_failures_is_one_row_without_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(b"")
    block = make_reading(folder).read(shard_of(folder, tmp_path))
    assert block.num_rows == 1
    assert host_batch(block) is None
    assert [sample["reason"] for sample in samples_of(block)[0]] == ["empty", "empty"]


def test_images_that_vanish_after_the_plan_become_not_found_rows(tmp_path: Path) -> None:
    folder = write_sizes(tmp_path / "images", [(80, 60)] * 4)
    shard = shard_of(folder, tmp_path)
    (folder / "001.jpg").unlink()
    (folder / "003.jpg").unlink()
    block = make_reading(folder).read(shard)
    reasons = {sample["key"]: sample["reason"] for row in samples_of(block) for sample in row}
    assert reasons == {"000.jpg": None, "001.jpg": Reason.NOT_FOUND, "002.jpg": None, "003.jpg": Reason.NOT_FOUND}
    for key, pixels in images_of(block).items():
        alone = decode((folder / key).read_bytes(), size_rule=SIZE_RULE, limits=LIMITS, mode=DecodeMode.EXACT)
        np.testing.assert_array_equal(pixels, alone.pixels)


# Around each step of libjpeg's scales for a network side of 518, where a side just fits and where it just does not, plus
# panoramas and cameras.
_SHORT = (33, 259, 517, 518, 519, 1035, 1036, 1037, 1381, 1382, 2071, 2072, 2073, 4143, 4144, 4145)
_SIZES = [(short * 4 // 3 + 1, short) for short in _SHORT] + [
    (9000, 600), (600, 9000), (6000, 4500), (1037, 1036), (519, 519), (7000, 520), (523, 4001), (40, 320), (5001, 1037),
]  # fmt: skip


@pytest.mark.parametrize("size", _SIZES, ids=lambda size: "{}x{}".format(*size))
def test_no_jpeg_takes_more_room_than_was_counted_for_it(size: tuple[int, int]) -> None:
    width, height = size
    blank = Image.new("RGB", (width, height), (200, 30, 90))
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        data = jpeg(blank, exif=exif, quality=30)
        header = read_header(data)
        network = SIZE_RULE(header.height, header.width)
        for mode in DecodeMode:
            sample = reading._Sample({}, data, header, network)
            room = make_reading(Path("/"), mode)._room(sample)
            taken = decode_pixels(data, header, network, mode).size
            assert taken <= room, f"{mode} {size} orientation {orientation}: {taken} > {room}"
            # Counted with care, or arenas would be several times what they hold.
            assert room <= 4.5 * taken + 50_000


def test_headers_that_promise_too_much_cost_their_own_rows_and_no_memory(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    good = jpeg(Image.new("RGB", (60, 60), "teal"))
    frame = good.index(b"\xff\xc0") + 5
    bomb = good[:frame] + (14_000).to_bytes(2) * 2 + good[frame + 4 :]  # 588 MB of pixels, below --max-pixels
    for number in range(20):
        (images / f"{number:02d}.jpg").write_bytes(good if number in {3, 19} else bomb)
    block = make_reading(images).read(shard_of(images, tmp_path))
    samples = sorted((found for row in samples_of(block) for found in row), key=lambda found: found["row"])
    reasons = [sample["reason"] for sample in samples]
    admitted = reading.BLOCK_BYTES // (3 * 14_000**2)
    assert reasons[3] is reasons[19] is None
    assert sum(reason == Reason.OUT_OF_MEMORY for reason in reasons) == 18 - admitted
    assert sum(reason in {Reason.TRUNCATED, Reason.CORRUPT} for reason in reasons) == admitted
