"""A dataset like that of real runs, made without a run: crops of photographs, scores, masks, a far class, hostile names."""

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from da2ray.benchmark.photos import packaged_photos
from da2ray.errors import Reason
from da2ray.labels.commits import commit_shard
from da2ray.labels.dataset import create_or_open
from da2ray.labels.quantise import quantise
from da2ray.labels.runs import RunProgress, SampleCounts, ShardCounts, write_progress
from da2ray.labels.schema import INDEX, SCORE_COLUMNS
from da2ray.labels.shards.base import Masks
from da2ray.labels.shards.formats import build_shard
from da2ray.labels.snapshots import create_snapshot
from da2ray.plan.plan import make_plan
from da2ray.sources import open_source
from da2ray.storage import open_store
from tests.labels.samples import FINGERPRINT, info

SCRIPT_KEY = "</script><script>document.title='owned'</script>.jpg"
IMAGE_KEY = "<img src=x onerror=document.title='owned'>.jpg"
MESSAGE = "<b onmouseover=alert(1)>broken</b> & 'quoted' \"twice\""
GONE, CHANGED, FORBIDDEN = "gone.jpg", "changed.jpg", "forbidden.jpg"
NOT_MEASURED = {"checker_mean", "checker_p90", "metric_residual"}
SHARES = {name for name in SCORE_COLUMNS.names if name.endswith(("share", "_occupancy", "alignment"))}


def write_dataset(folder: Path, images: int = 24, *, scores: bool = True) -> Path:
    """Write the dataset `folder`/labels.

    It has `images` labels of crops, SCRIPT_KEY and IMAGE_KEY among them; three labels whose image cannot be shown (GONE,
    CHANGED, FORBIDDEN); seven truncated images and one that is too small; and two runs with a history, three days apart.
    """
    keys = [
        SCRIPT_KEY,
        IMAGE_KEY,
        *(f"crops/{number:04d}.jpg" for number in range(images - 2)),
        GONE,
        CHANGED,
        FORBIDDEN,
    ]
    photos = [Image.open(io.BytesIO(data)).convert("RGB") for _, data in sorted(packaged_photos().items())]
    photos = [photo for photo in photos if min(photo.size) >= 240]
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    uris, hashes, greys = [], [], []
    for number in range(len(keys)):
        photo = photos[number % len(photos)]
        left, top = (int(random.integers(0, most - 199)) for most in (photo.width, photo.height))
        crop = photo.crop((left, top, left + 200, top + 150 + number % 2 * 50))
        path = folder / "images" / f"{number:04d}.jpg"
        crop.save(path, quality=85)
        uris.append(str(path))
        hashes.append(hashlib.sha256(path.read_bytes()).digest())
        greys.append(np.asarray(crop.convert("L").resize((126, 98 + number % 2 * 28)), np.float32) / 255)
    Path(uris[keys.index(GONE)]).unlink()
    Image.new("RGB", (200, 150)).save(uris[keys.index(CHANGED)])
    uris[keys.index(FORBIDDEN)] = "http://127.0.0.1:9/forbidden.jpg"
    unlabelled = [(f"<i>{number}</i>.jpg", Reason.TRUNCATED) for number in range(7)] + [("tiny.png", Reason.TOO_SMALL)]
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="") as file:
        rows = [*zip(keys, uris, strict=True), *((key, str(folder / "none.jpg")) for key, _ in unlabelled)]
        csv.writer(file).writerows([("key", "uri"), *rows])
    store = open_store(str(folder / "labels"))
    create_or_open(store, info(source=str(manifest)))
    plan = make_plan(open_source(str(manifest)), store, shard_size=1000, limit=None, fingerprint=FINGERPRINT)
    made = [
        _labelled(key, uri, digest, grey, random, scores=scores)
        for key, uri, digest, grey in zip(keys, uris, hashes, greys, strict=True)
    ]
    made += [_unlabelled(key, reason) for key, reason in unlabelled]
    table = [row | {"plan": plan.id, "shard": 0, "row": number} for number, (row, _, _, _) in enumerate(made)]
    index = pa.Table.from_pylist(table, schema=INDEX)
    masks = Masks(2, [mask for _, _, mask, _ in made])
    built = build_shard(index, [q for _, q, _, _ in made], "parquet", masks, [far for _, _, _, far in made])
    commit_shard(store, plan.id, 0, built, FINGERPRINT)
    create_snapshot(store, [plan.id], FINGERPRINT)
    _write_run(store, datetime(2026, 11, 20, 8, tzinfo=UTC), 3600, images)
    _write_run(store, datetime(2026, 11, 23, 8, 30, tzinfo=UTC), 2400, 11)
    return folder / "labels"


def _labelled(
    key: str, uri: str, digest: bytes, grey: np.ndarray, random: np.random.Generator, *, scores: bool
) -> tuple:
    made = quantise(torch.from_numpy(grey.copy())[None], 12)
    found: dict[str, float | None] = {}
    for name in SCORE_COLUMNS.names if scores else ():
        if name not in NOT_MEASURED and not (name == "jpeg_quality" and key.endswith("3.jpg")):
            found[name] = float(
                random.beta(2, 6) if name in SHARES else random.lognormal(1, 1.5 if name == "blur" else 0.3)
            )
    far = grey > 0.85
    found["far_share"] = float(far.mean())
    row = dict.fromkeys(INDEX.names) | {
        "key": key, "uri": uri, "sha256": digest, "status": "labelled", "width": 200,
        "height": 150 + (grey.shape[0] - 98) // 28 * 50,
        "network_height": grey.shape[0], "network_width": grey.shape[1], "kind": "disparity", "scale": made.scale.item(),
        "offset": made.offset.item(), "mask_source": "flip", "fingerprint": FINGERPRINT, **found,
    }  # fmt: skip
    levels = np.clip((1 - np.abs(grey - 0.5) * 2) * 4, 0, 3).astype(np.uint8)
    return row, made.q[0].numpy(), levels, far


def _unlabelled(key: str, reason: Reason) -> tuple:
    row = dict.fromkeys(INDEX.names) | {
        "key": key, "uri": "/none.jpg", "status": reason.status.value, "reason": reason.value, "message": MESSAGE,
        "fingerprint": FINGERPRINT,
    }  # fmt: skip
    return row, None, None, None


def _write_run(store, start: datetime, seconds: int, images: int) -> None:
    name = f"{start:%Y%m%dT%H%M%SZ}-abcdef"
    points = [(start + timedelta(seconds=seconds * at / 60), images * at // 60) for at in range(61)]
    write_progress(store, run_progress(name, points, images))
    # Not by `write_config`, which would remove the password: the page must not trust the file.
    store.put(f"runs/{name}/config.json", json.dumps({"images": "https://user:secret@host/x?sig=1"}).encode())


def run_progress(name: str, points: Sequence[tuple[datetime, int]], images: int) -> RunProgress:
    """The progress of a run that labelled `images` images in one shard."""
    return RunProgress(
        run=name,
        state="labelled",
        updated=points[-1][0],
        elapsed_seconds=(points[-1][0] - points[0][0]).total_seconds(),
        samples=SampleCounts(total=images, done=images, this_run=images, exact=True),
        shards=ShardCounts(total=1, done=1, this_run=1, in_flight=0),
        by_status={"labelled": images},
        by_reason={},
        bytes_out=1,
        images_per_second=1.0,
        eta_seconds=None,
        teacher_actors=1,
        teacher_busy_share=0.4,
        history=tuple(points),
    )
