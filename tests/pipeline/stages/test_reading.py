"""The shard alone determines its micro-batches. They hold every sample once, and fit into the memory reserved for them."""

import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from da2ray.errors import Reason, SampleError
from da2ray.images.decode import DecodeMode, Limits, decode, decode_pixels, read_header
from da2ray.pipeline.stages import reading
from da2ray.pipeline.stages.arena import Arena
from da2ray.pipeline.stages.batches import READ, SAMPLE_FIELDS, decoded_row, host_batch, is_encoded
from da2ray.pipeline.stages.decoding import Decoding, LateDecoder
from da2ray.pipeline.stages.device import Device
from da2ray.pipeline.stages.reading import Reading
from da2ray.sources import Cut, Member, open_source
from da2ray.sources.fetch import fetch
from da2ray.storage import open_store
from da2ray.teachers.base import LoadOptions, SizeRule
from da2ray.teachers.depth_anything.size import OfficialSize
from da2ray.teachers.registry import resolve
from tests.photos import EXIF_ORIENTATION, REASONS, jpeg
from tests.sources.web_server import web_server

POISON = Path(__file__).parents[2] / "poison"
LIMITS = Limits(max_aspect=20, max_tokens=1_000_000)
SIZE_RULE = OfficialSize()


def make_reading(
    folder: Path, mode: DecodeMode = DecodeMode.EXACT, batch_size: int = 4, size_rule: SizeRule = SIZE_RULE
) -> Reading:
    return Reading(open_source(str(folder)), size_rule, LIMITS, Decoding(mode), batch_size)


def spec_of(folder: Path) -> bytes:
    """A folder as one shard."""
    (batch,) = open_source(str(folder)).shards(Cut(1000, 1 << 40))
    (spec,) = batch["spec"].to_pylist()
    return spec


def samples_of(block: pa.Table) -> list[list[dict]]:
    """The samples of each row."""
    return block["samples"].to_pylist()


def images_of(block: pa.Table) -> dict[str, np.ndarray]:
    """The image of each key that has pixels: uint8 (H, W, 3)."""
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
def test_every_planned_sample_is_in_exactly_one_row_with_its_reason(photos: Path, mode: DecodeMode) -> None:
    block = make_reading(photos, mode).read(7, spec_of(photos))
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
    assert block["shard"].unique().to_pylist() == [7]


def versions_of(block: pa.Table) -> dict[str, tuple[str | None, bool | None]]:
    """(etag, etag_listed) of each sample, by key."""
    samples = [sample for row in samples_of(block) for sample in row]
    return {sample["key"]: (sample["etag"], sample["etag_listed"]) for sample in samples}


def test_the_version_in_the_index_is_that_of_the_bytes_that_were_read(photos: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(photos, tmp_path / "images"))
    spec = spec_of(images)
    before = {key: open_store(str(images)).stat(key).etag for key in REASONS}
    names = sorted(key for key, reason in REASONS.items() if reason is None)
    changed, gone = names[0], names[1]
    (images / changed).write_bytes((photos / names[2]).read_bytes() + b"changed after planning")
    (images / gone).unlink()
    versions = versions_of(make_reading(images).read(0, spec))
    assert versions[changed] == (open_store(str(images)).stat(changed).etag, False)
    assert versions[changed][0] != before[changed]
    # Nothing was read, so the version is the listed one, and says so.
    assert versions[gone] == (before[gone], True)
    assert all(version == (before[key], False) for key, version in versions.items() if key not in {changed, gone})


def test_a_version_that_the_answer_does_not_have_is_the_listed_one_or_none(photos: Path, tmp_path: Path) -> None:
    image = next(key for key, reason in sorted(REASONS.items()) if reason is None)
    data = (photos / image).read_bytes()
    with web_server({"/a.jpg": data, "/b.jpg": data, "/c.jpg": data}) as web:
        web.etags = {"/b.jpg": '"v1"', "/c.jpg": 'W/"v2"'}
        manifest = tmp_path / "m.csv"
        manifest.write_text("uri,key\n" + "".join(f"{web.url}/{name}.jpg,{name}\n" for name in "abc"))
        source = open_source(str(manifest), allow=[f"http:127.0.0.1:{web.port}"])
        (batch,) = source.shards(Cut(1000, 1 << 40))
        block = Reading(source, SIZE_RULE, LIMITS, Decoding(DecodeMode.EXACT), 4).read(0, batch["spec"][0].as_py())
    assert versions_of(block) == {"a": (None, None), "b": ("v1", False), "c": ("W/v2", False)}

    (memory := open_store("memory://versions", "fsspec")).put("a.jpg", data)
    members = [Member("a.jpg", "memory://versions/a.jpg", len(data), "listed")]
    (sample,) = fetch(members, 1)
    assert sample.body == memory.get("a.jpg")
    assert sample.etag is None
    assert reading._fields(0, sample)["etag"] == "listed"
    assert reading._fields(0, sample)["etag_listed"] is True


def write_sizes(folder: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """A JPEG of each (width, height); all differ."""
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
    block = make_reading(folder, batch_size=4).read(7, spec_of(folder))
    lengths = defaultdict(list)
    for row in samples_of(block):
        (size,) = {(sample["network_width"], sample["network_height"]) for sample in row}
        assert [sample["row"] for sample in row] == sorted(sample["row"] for sample in row)
        lengths[size].append(len(row))
    assert lengths == {(686, 518): [3, 3, 3], (518, 686): [2, 3], (518, 518): [1]}


@pytest.mark.parametrize("mode", DecodeMode)
def test_the_same_plan_gives_the_same_micro_batches(photos: Path, mode: DecodeMode) -> None:
    spec = spec_of(photos)
    first = make_reading(photos, mode).read(7, spec)
    assert first.equals(make_reading(photos, mode).read(7, spec))
    arena = Arena()
    arena.take(50_000_000)[:] = 7  # the values of an earlier block
    assert first.equals(make_reading(photos, mode).read(7, spec, arena))


@pytest.mark.parametrize("mode", DecodeMode)
@pytest.mark.parametrize("reused", [False, True], ids=["own memory", "reused arena"])
def test_pixels_are_those_of_each_file_whatever_its_neighbours(photos: Path, mode: DecodeMode, reused: bool) -> None:
    arena = Arena() if reused else None
    spec = spec_of(photos)
    for batch_size in (1, 16):  # with 16, corrupt and truncated files share a micro-batch with good ones
        images = images_of(make_reading(photos, mode, batch_size).read(7, spec, arena))
        assert sorted(images) == [name for name, reason in REASONS.items() if reason is None]
        for name, pixels in images.items():
            alone = decode((photos / name).read_bytes(), size_rule=SIZE_RULE, limits=LIMITS, mode=mode)
            # Equal on every machine: integers, computed by one library.
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
    block = make_reading(folder).read(7, spec_of(folder))
    assert block.num_rows == 1
    assert host_batch(block) is None
    assert [sample["reason"] for sample in samples_of(block)[0]] == ["empty", "empty"]


def test_images_that_vanish_after_the_plan_become_not_found_rows(tmp_path: Path) -> None:
    folder = write_sizes(tmp_path / "images", [(80, 60)] * 4)
    spec = spec_of(folder)
    (folder / "001.jpg").unlink()
    (folder / "003.jpg").unlink()
    block = make_reading(folder).read(7, spec)
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
            room = Decoding(mode).room(header, network)
            taken = decode_pixels(data, header, network, mode).size
            assert taken <= room, f"{mode} {size} orientation {orientation}: {taken} > {room}"
            # The estimate must not be too generous, or arenas would be several times as large as their contents.
            assert room <= 4.5 * taken + 50_000


def late_decoded(block: pa.Table, late: LateDecoder) -> pa.Table:
    """The block after late decoding, with which the label stage begins."""
    return pa.concat_tables([late.decode(block.slice(row, 1)) for row in range(block.num_rows)])


@pytest.fixture(params=DecodeMode)
def late(request: pytest.FixtureRequest) -> Iterator[LateDecoder]:
    made = LateDecoder(Decoding(request.param), timeout=20)
    yield made
    made.close()


def test_headers_that_promise_too_much_cost_their_own_rows_and_no_memory(
    tmp_path: Path, late: LateDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 200 << 20)  # with the real limit, bombs take 588 MB and seconds each
    images = tmp_path / "images"
    images.mkdir()
    good = jpeg(Image.new("RGB", (60, 60), "teal"))
    frame = good.index(b"\xff\xc0") + 5
    bomb = good[:frame] + (4_000).to_bytes(2) * 2 + good[frame + 4 :]  # 48 MB of pixels
    for number in range(12):
        (images / f"{number:02d}.jpg").write_bytes(good if number in {3, 11} else bomb)
    block = make_reading(images).read(7, spec_of(images))
    admitted = reading.BLOCK_BYTES // (3 * 4_000**2)
    encoded = [row for row in range(block.num_rows) if is_encoded(block.slice(row, 1))]
    assert len(encoded) == 10 - admitted > 0
    samples = [found for row in samples_of(late_decoded(block, late)) for found in row]
    reasons = {sample["row"]: sample["reason"] for sample in samples}
    assert reasons.pop(3) is reasons.pop(11) is None
    assert len(reasons) == 10
    assert set(reasons.values()) <= {Reason.TRUNCATED, Reason.CORRUPT}


@pytest.mark.parametrize("mode", DecodeMode)
def test_images_beyond_the_block_limit_are_labelled_as_in_an_undivided_block(
    photos: Path, monkeypatch: pytest.MonkeyPatch, mode: DecodeMode
) -> None:
    teacher = resolve("random-tiny")
    device = Device(teacher.load(LoadOptions()), 12, kind=teacher.kind, scaled=mode is DecodeMode.SCALED)
    late = LateDecoder(Decoding(mode), timeout=20)
    spec, read = spec_of(photos), make_reading(photos, mode, size_rule=teacher.size_rule)

    def labels() -> tuple[int, dict[str, np.ndarray], dict[str, str | None]]:
        """The number of images that travelled encoded, the depth of each labelled image, and the reasons of the others."""
        block = read.read(7, spec)
        encoded = sum(is_encoded(block.slice(row, 1)) for row in range(block.num_rows))
        depths, reasons = {}, {}
        for row in range(block.num_rows):
            one = late.decode(block.slice(row, 1))
            batch = host_batch(one)
            (samples,) = samples_of(one)
            reasons |= {sample["key"]: sample["reason"] for sample in samples}
            if batch is not None:
                labelled = device.submit(batch).result()
                maps = zip(labelled.depths, labelled.scales, labelled.offsets, strict=True)
                depths |= {
                    sample["key"]: (offset + scale * q, scale)
                    for sample, (q, scale, offset) in zip(samples, maps, strict=True)
                }
        return encoded, depths, reasons

    try:
        none, whole, reasons = labels()
        monkeypatch.setattr(reading, "BLOCK_BYTES", 100_000)
        some, divided, again = labels()
    finally:
        device.close()
        late.close()
    assert none == 0 < some
    assert again == reasons == REASONS
    assert divided.keys() == whole.keys()
    for key, (depth, scale) in whole.items():
        # One step of quantisation, plus the float32 rounding of another batch size.
        np.testing.assert_allclose(divided[key][0], depth, rtol=0, atol=1.05 * scale, err_msg=key)


@pytest.mark.parametrize(("what", "reason"), [("segfault", Reason.CRASHED), ("hang", Reason.TIMEOUT)])
def test_an_image_that_kills_or_hangs_its_decoder_in_the_label_stage_costs_its_row(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, reason: Reason
) -> None:
    monkeypatch.syspath_prepend(str(POISON))
    monkeypatch.setattr(reading, "BLOCK_BYTES", 1)
    images = tmp_path / "images"
    images.mkdir()
    good = (photos / "astronaut.jpg").read_bytes()
    for number in range(4):
        (images / f"{number}.jpg").write_bytes(good + (b"POISON:" + what.encode() if number == 2 else b""))
    late = LateDecoder(Decoding(DecodeMode.EXACT), timeout=2)
    block = late_decoded(make_reading(images).read(7, spec_of(images)), late)
    late.close()
    samples = {sample["key"]: sample for row in samples_of(block) for sample in row}
    assert {key: sample["reason"] for key, sample in samples.items()} == {
        "0.jpg": None, "1.jpg": None, "2.jpg": reason, "3.jpg": None
    }  # fmt: skip
    assert samples["2.jpg"]["status"] == "failed"
    alone = decode(good, size_rule=SIZE_RULE, limits=LIMITS, mode=DecodeMode.EXACT).pixels
    assert {key: np.array_equal(pixels, alone) for key, pixels in images_of(block).items()} == dict.fromkeys(
        ["0.jpg", "1.jpg", "3.jpg"], True
    )


def test_an_image_that_the_late_decoder_rejects_is_rejected() -> None:
    """Raise what Pillow raises for a WebP above its own limit."""

    def decode(data: bytes, fields: Mapping[str, object]) -> np.ndarray:
        raise SampleError(Reason.TOO_MANY_PIXELS, f"{fields['key']}: {len(data)}")

    sample = dict.fromkeys(SAMPLE_FIELDS) | {"key": "a", "uri": "a", "status": "labelled", "row": 0}
    row = {"shard": 1, "planned": 1, "samples": [sample], "shapes": [], "pixels": b"", "encoded": b"body"}
    made = decoded_row(pa.Table.from_pylist([row], schema=READ), decode)
    assert made.schema == READ
    assert not is_encoded(made)
    assert host_batch(made) is None
    ((found,),) = samples_of(made)
    assert (found["status"], found["reason"], found["message"]) == ("rejected", "too_many_pixels", "a: 4")


def test_reading_and_what_it_rests_on_need_neither_ray_nor_torch() -> None:
    names = ("reading", "decoding", "access", "arena", "isolation", "watchdog", "batches")
    code = "import sys; import " + ", ".join(f"da2ray.pipeline.stages.{name}" for name in names)
    code += ", da2ray.plan.plan, da2ray.sources; print({'ray', 'torch'} & set(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "set()"
