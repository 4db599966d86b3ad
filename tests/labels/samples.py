"""Small shards for tests: smooth maps of two sizes, and a rejected and a failed sample."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from da2ray.errors import Reason
from da2ray.labels.commits import CommitOutcome, commit_shard, list_commits
from da2ray.labels.dataset import Codec, CreatedBy, DatasetInfo, create_or_open
from da2ray.labels.quantise import quantise
from da2ray.labels.schema import INDEX
from da2ray.labels.shards.base import BuiltShard, Masks
from da2ray.labels.shards.formats import build_shard
from da2ray.labels.snapshots import create_snapshot
from da2ray.storage import Store, open_store
from da2ray.teachers.base import Kind

SIZES = [(28, 42), (42, 28)]
FINGERPRINT = "f" * 16
SHARDS = 4


def info(**changes: object) -> DatasetInfo:
    made = DatasetInfo(
        kind=Kind.DISPARITY,
        unit="",
        codec=Codec(name="difference2d+zstd", bits=12),
        format="parquet",
        source="/images",
        created_by=CreatedBy(
            package="da2ray 0",
            teacher="luminance",
            licence="Apache-2.0",
            weights_sha256="0" * 64,
            preprocessing="p1",
            decode="exact",
            precision="fp32",
            fingerprint=FINGERPRINT,
        ),
    )
    return DatasetInfo.model_validate(dict(made) | changes)


def depth_map(height: int, width: int, seed: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.sin(x / 9 + seed) + np.cos(y / 7) + np.float32(0.01) * seed


def content(
    keys: list[str], *, plan: str = "p", shard: int = 0, seed: int = 0, unlabelled: dict[int, Reason] | None = None
) -> tuple[pa.Table, list[np.ndarray | None], list[np.ndarray | None]]:
    """Index rows, their quantised maps, and the float32 maps they were made from."""
    unlabelled = unlabelled or {}
    rows, qs, originals = [], [], []
    for number, key in enumerate(keys):
        row = dict.fromkeys(INDEX.names) | {
            "key": key, "uri": f"/images/{key}", "status": "labelled", "width": 100, "height": 80, "plan": plan,
            "shard": shard, "row": number, "fingerprint": FINGERPRINT,
        }  # fmt: skip
        if number in unlabelled:
            row |= {"status": unlabelled[number].status.value, "reason": unlabelled[number].value}
            qs.append(None)
            originals.append(None)
        else:
            height, width = SIZES[(number + seed) % 2]
            original = depth_map(height, width, number + seed)
            made = quantise(torch.from_numpy(original)[None], 12)
            row |= {
                "network_height": height, "network_width": width, "kind": "disparity", "scale": made.scale.item(),
                "offset": made.offset.item(), "depth_min": float(original.min()), "zero_share": 0.0,
            }  # fmt: skip
            qs.append(made.q[0].numpy())
            originals.append(original)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=INDEX), qs, originals


def mixed(plan: str = "p", shard: int = 0) -> tuple[pa.Table, list[np.ndarray | None], list[np.ndarray | None]]:
    """Seven samples: two sizes, one rejected, one failed."""
    keys = [f"{shard}/{number}.jpg" for number in range(7)]
    return content(keys, plan=plan, shard=shard, unlabelled={0: Reason.TOO_SMALL, 4: Reason.TRUNCATED})


def masks(qs: list[np.ndarray | None], bits: int = 2) -> Masks:
    """A mask for every map but the last."""
    last = max(index for index, q in enumerate(qs) if q is not None)
    levels = [None if q is None or index == last else (q % 2**bits).astype(np.uint8) for index, q in enumerate(qs)]
    return Masks(bits, levels)


def far_classes(rows: pa.Table, qs: list[np.ndarray | None]) -> tuple[pa.Table, list[np.ndarray | None]]:
    """The rows with `far_share`, and their far classes. The first map has no far pixel; the class of the last one is unknown."""
    labelled = [index for index, q in enumerate(qs) if q is not None]
    far = [None if q is None or index in (labelled[0], labelled[-1]) else q > 3000 for index, q in enumerate(qs)]
    shares = [None if each is None else float(each.mean()) for each in far]
    shares[labelled[0]] = 0.0
    field = INDEX.field("far_share")
    return rows.set_column(INDEX.get_field_index("far_share"), field, pa.array(shares, field.type)), far


def built(
    format: str = "parquet",  # noqa: A002 - the option's name
    masked: bool = False,
    with_far: bool = False,
    **arguments: object,
) -> BuiltShard:
    rows, qs, _ = mixed(**arguments)
    rows, far = far_classes(rows, qs) if with_far else (rows, None)
    return build_shard(rows, qs, format, masks(qs) if masked else None, far)


def dataset(path: Path, format: str, shards: int = 1, **arguments: object) -> Store:  # noqa: A002 - the option's name
    """A dataset with shards made by `built`, in one snapshot."""
    store = open_store(str(path))
    create_or_open(store, info(format=format))
    for shard in range(shards):
        commit_shard(store, "p", shard, built(format, shard=shard, **arguments), FINGERPRINT)
    create_snapshot(store, ["p"], FINGERPRINT)
    return store


def commit(store: Store, keys: list[str], *, plan: str = "p", shard: int = 0, seed: int = 0) -> CommitOutcome:
    rows, qs, _ = content(keys, plan=plan, shard=shard, seed=seed)
    return commit_shard(store, plan, shard, build_shard(rows, qs, "parquet"), FINGERPRINT)


def label(store: Store, format: str, shards: Iterable[int] = range(SHARDS)) -> list[int]:  # noqa: A002
    """Label the shards without a commit and make a snapshot, as a run does. Return the labelled shards."""
    create_or_open(store, info(format=format))
    done = {entry.shard for entry in list_commits(store, "p")}
    todo = [shard for shard in shards if shard not in done]
    for shard in todo:
        commit_shard(store, "p", shard, built(format, shard=shard), FINGERPRINT)
    create_snapshot(store, ["p"], FINGERPRINT)
    return todo


class LostAnswers:
    """A store whose creates succeed but report that the object existed, as after a lost response and a retry."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def create(self, key: str, data: bytes) -> bool:
        self._store.create(key, data)
        return False
