"""Focal lengths reach the teacher in its pixels and the index in displayed pixels, from manifest or EXIF."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from da2ray.errors import Reason
from da2ray.images.decode import DecodeMode, Limits
from da2ray.labels.schema import INDEX, NUMBERS
from da2ray.pipeline.stages.batches import HostBatch, LabelledBatch, host_batch, labelled_row
from da2ray.pipeline.stages.decoding import Decoding
from da2ray.pipeline.stages.reading import Reading
from da2ray.pipeline.stages.writing import assemble
from da2ray.sources import Cut, Place, members_of, open_source
from da2ray.sources.manifest import ManifestSource
from da2ray.sources.members import unpack
from da2ray.teachers.depth_anything.size import OfficialSize
from tests.photos import jpeg

FILM = 0xA405
FOCALS = {"a.jpg": 1234.5, "b.jpg": None, "c.jpg": 800.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three JPEGs of 2000 x 1500. b.jpg and c.jpg say 30 mm, as on 35 mm film, which is 1733 pixels."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in FOCALS:
        exif = Image.Exif()
        if name != "a.jpg":
            exif.get_ifd(0x8769)[FILM] = 30
        (folder / name).write_bytes(jpeg(Image.new("RGB", (2000, 1500), "green"), exif=exif))
    return folder


def write_manifest(folder: Path, kind: str, focals: dict[str, object] | None = None) -> Path:
    path = folder.parent / f"images.{kind}"
    rows = [{"uri": str(folder / name), "focal": focal} for name, focal in (focals or FOCALS).items()]
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["uri", "focal"])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema({"uri": pa.string(), "focal": pa.float64()})), path)
    return path


def spec_of(source: ManifestSource) -> bytes:
    """A source as one shard."""
    (batch,) = source.shards(Cut(10, 1 << 40))
    (spec,) = batch["spec"].to_pylist()
    return spec


def reading(source: ManifestSource, mode: DecodeMode = DecodeMode.EXACT, *, with_focals: bool = True) -> Reading:
    return Reading(source, OfficialSize(), Limits(), Decoding(mode), 8, with_focals=with_focals)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_manifests_focal_lengths_reach_the_read_task(folder: Path, kind: str) -> None:
    source = open_source(str(write_manifest(folder, kind)))
    spec = spec_of(source)
    assert [member.focal for member in members_of(unpack(spec, source.root))] == list(FOCALS.values())
    block = reading(source).read(0, spec)
    samples = {sample["key"].rpartition("/")[2]: sample for sample in block["samples"][0].as_py()}
    found = {name: (sample["focal"], sample["focal_source"]) for name, sample in samples.items()}
    expected = {
        "a.jpg": (1234.5, "manifest"),
        "b.jpg": (pytest.approx(1733.4, abs=0.1), "exif"),
        "c.jpg": (800, "manifest"),
    }
    assert found == expected


def test_failed_samples_keep_theirs_when_they_are_tried_again(folder: Path) -> None:
    source = open_source(str(write_manifest(folder, "csv")))
    again = source.select([(spec_of(source), [Place(2), Place(0)])])
    assert [sample.member.focal for sample in source.read(again, concurrency=2)] == [800, 1234.5]


def test_a_teacher_without_use_for_focal_lengths_gets_none(folder: Path) -> None:
    source = open_source(str(write_manifest(folder, "csv")))
    block = reading(source, with_focals=False).read(0, spec_of(source))
    assert all(sample["focal"] is None for sample in block["samples"][0].as_py())
    assert host_batch(block.slice(0, 1)).focals is None


def teacher_says(batch: HostBatch, focals: list[float]) -> LabelledBatch:
    """Labels of a teacher that used these focal lengths, in pixels of the decoded images."""
    numbers = np.full((len(batch), len(NUMBERS)), np.nan, np.float32)
    numbers[:, NUMBERS.get_field_index("focal")] = focals
    flat = np.ones(len(batch), np.float32)
    return LabelledBatch(np.zeros((len(batch), *batch.size), np.uint16), flat, flat, numbers, [None] * len(batch))


@pytest.mark.parametrize(("mode", "share"), [(DecodeMode.EXACT, 1), (DecodeMode.SCALED, 0.375)])
def test_the_teacher_gets_them_in_its_pixels_and_the_index_as_displayed(
    folder: Path, mode: DecodeMode, share: float
) -> None:
    (folder / "b.jpg").write_bytes(jpeg(Image.new("RGB", (2000, 1500))))
    source = open_source(str(write_manifest(folder, "csv")))
    block = reading(source, mode).read(0, spec_of(source))
    batch = host_batch(block, with_focals=True)
    assert batch.shapes[0] == (1500 * share // 1 + (share < 1 and 1500 * share % 1 > 0), 2000 * share)
    assert batch.focals == [pytest.approx(1234.5 * share), None, pytest.approx(800 * share)]
    assert [part.focals for part in batch.parts(2)] == [batch.focals[:2], batch.focals[2:]]
    said = teacher_says(batch, [batch.focals[0], 1000 * share, batch.focals[2]])
    rows, _ = assemble(labelled_row(block, said), plan="p", kind="metric", fingerprint="f", camera="assumed")
    assert rows.schema.equals(INDEX)
    assert rows["focal"].to_pylist() == pytest.approx([1234.5, 1000, 800])
    assert rows["focal_source"].to_pylist() == ["manifest", "assumed", "manifest"]


def test_an_image_that_failed_keeps_what_was_known_of_it(folder: Path) -> None:
    source = open_source(str(write_manifest(folder, "csv")))
    block = reading(source).read(0, spec_of(source))
    failed = LabelledBatch.failed(host_batch(block), Reason.TEACHER_ERROR, "no")
    rows, _ = assemble(labelled_row(block, failed), plan="p", kind="metric", fingerprint="f", camera="predicted")
    assert rows["focal_source"].to_pylist() == ["manifest", "exif", "manifest"]
