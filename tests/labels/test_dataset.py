"""A dataset holds one meaning of depth, one format and one fingerprint, and refuses others with a message."""

import json
from pathlib import Path

import pytest

from da2ray.errors import UserError
from da2ray.labels.dataset import (
    KEY,
    CheckedBy,
    Codec,
    DatasetInfo,
    check_same,
    create_or_open,
    fingerprint,
    open_dataset,
)
from da2ray.storage import open_store
from da2ray.teachers.base import Kind, TeacherSpec
from tests.labels.samples import FINGERPRINT, info


def test_the_first_run_creates_it_and_later_runs_get_what_is_stored(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert open_dataset(store) is None
    assert create_or_open(store, info()) == info()
    before = store.get(KEY)
    assert create_or_open(store, info()) == info()
    assert store.get(KEY) == before


def test_a_store_that_overwrites_instead_of_creating_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))

    def overwrite(key: str, data: bytes) -> bool:  # as a server that ignores If-None-Match
        store.put(key, data)
        return True

    monkeypatch.setattr(store, "create", overwrite)
    with pytest.raises(UserError, match="ignores conditional creates"):
        create_or_open(store, info())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "zarr"}, "--format parquet"),
        ({"kind": "metric"}, "kind disparity"),
        ({"unit": "m"}, "another --output"),
        ({"source": "/other/images"}, "source /images; this run would write /other/images"),
        (
            {"created_by": info().created_by.model_copy(update={"precision": "bf16", "fingerprint": "7" * 16})},
            r"luminance fp32 \(fingerprint ffff.*would write fingerprint 7777.*precision fp32 -> bf16",
        ),
    ],
)
def test_labels_of_another_meaning_are_refused_by_name(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_same(info(), info(**changes), "s3://bucket/labels")


def test_bits_are_named_where_they_differ() -> None:
    other = info(
        codec=Codec(name="difference2d+zstd", bits=16),
        created_by=info().created_by.model_copy(update={"fingerprint": "1" * 16}),
    )
    with pytest.raises(UserError, match="bits 12 -> 16"):
        check_same(info(), other, "out")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"format_version": 1}', b'{"format_version": "x"}'])
def test_a_foreign_dataset_json_is_refused(tmp_path: Path, data: bytes) -> None:
    store = open_store(str(tmp_path))
    store.put(KEY, data)
    with pytest.raises(UserError, match="not a da2ray dataset"):
        open_dataset(store)


def test_a_later_format_version_asks_for_an_update(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put(KEY, json.dumps({"format_version": 2, "unheard": "of"}).encode())
    with pytest.raises(UserError, match="update da2ray"):
        open_dataset(store)


def test_every_part_of_the_fingerprint_changes_it() -> None:
    base = ("luminance", "0" * 64, "p1", "exact", "fp32", 12)
    other = ("depth-anything-v2-small", "1" * 64, "p2", "scaled", "bf16", 16)
    found = {fingerprint(*base)} | {fingerprint(*base[:i], other[i], *base[i + 1 :]) for i in range(len(base))}
    assert len(found) == 1 + len(base)
    assert all(len(value) == len(FINGERPRINT) for value in found)


def test_what_came_later_leaves_older_fingerprints_as_they_were() -> None:
    """The release before `--consistency` computed the same one. Only a checker's masks changed, with `local-log-error-v2`."""
    base = ("luminance", "0" * 64, "p1", "exact", "fp32", 12)
    checker = CheckedBy(teacher="x", kind=Kind.METRIC, licence="MIT", weights_sha256="1" * 64, preprocessing="p2")
    assert fingerprint(*base) == "8089bccde852c435"
    assert fingerprint(*base, checker=checker) not in {fingerprint(*base), "264bf1540e4f957b"}
    opinions = [("flip",), ("scale",), ("flip", "scale")]
    found = {fingerprint(*base, consistency=each) for each in opinions}
    found |= {fingerprint(*base, checker=checker, consistency=each) for each in opinions}
    assert len(found | {fingerprint(*base), fingerprint(*base, checker=checker)}) == 8


def test_what_a_run_would_write_follows_from_its_teacher_and_options() -> None:
    def unused(_: object) -> str:
        raise AssertionError

    spec = TeacherSpec("luminance", Kind.METRIC, "m", "Apache-2.0", lambda h, w: (h, w), "p1", unused, unused)
    made = DatasetInfo.make(spec, "0" * 64, source="in", decode="exact", precision="fp32", bits=16, format="zarr")
    assert (made.kind, made.unit, made.format, made.codec.name) == (Kind.METRIC, "m", "zarr", "blosc-zstd")
    assert made.created_by.fingerprint == fingerprint("luminance", "0" * 64, "p1", "exact", "fp32", 16)
    assert DatasetInfo.model_validate_json(made.model_dump_json()) == made
