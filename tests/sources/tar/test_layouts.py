"""Which tars a URL names, and what lies beside them: img2dataset's Parquet, DALI's index."""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from da2ray.errors import UserError
from da2ray.sources import open_source
from da2ray.sources.tar.files import matcher
from da2ray.sources.tar.source import TarSource
from tests.sources.tar.tars import CUTS, LONG, read_all, some_bodies, tar_bytes, write_tar


def write_img2dataset(folder: Path, bodies: Sequence[bytes], failed: Sequence[int]) -> dict[str, bytes]:
    """The output of img2dataset with `output_format=webdataset`: its writer writes just these files and members."""
    folder.mkdir()
    made = {}
    for shard in (0, 2):  # gaps in the numbers are normal
        rows = []
        with (folder / f"{shard:05d}.tar").open("wb") as file, webdataset.TarWriter(file) as sink:
            for number, body in enumerate(bodies):
                key = f"{shard:05d}{number:04d}"
                bad = number in failed
                meta = {
                    "url": f"https://example.com/{key}.jpg", "key": key, "status": "failed_to_download" if bad else "success",
                    "error_message": "404" if bad else None, "width": None if bad else 8, "height": None if bad else 6,
                    "original_width": None, "original_height": None, "exif": None, "sha256": "0" * 64,
                }  # fmt: skip
                if not bad:
                    sink.write({"__key__": key, "jpg": body, "txt": "a caption", "json": json.dumps(meta, indent=4)})
                    made[f"{shard:05d}.tar/{key}.jpg"] = body
                rows.append(meta)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text("{}")
    return made


def test_the_output_of_img2dataset_is_read_without_what_failed_to_download(tmp_path: Path) -> None:
    made = write_img2dataset(tmp_path / "data", some_bodies(9), failed=[0, 4])
    source = open_source(str(tmp_path / "data"))
    assert isinstance(source, TarSource), "the Parquet files beside the tars are not a manifest"
    for shard_bytes in CUTS:
        assert read_all(source, shard_bytes).bodies == made


def write_index(tar: Path, shift: int = 0) -> None:
    """The index that DALI's wds2idx writes: of regular files whose names do not begin with a dot, a line for each sample."""
    samples: dict[str, list[str]] = {}
    with tarfile.open(tar) as archive:
        for info in archive:
            folder, _, name = info.name.rpartition("/")
            key, _, suffix = name.partition(".")
            if info.isreg() and key:
                line = f"{suffix} {info.offset_data + shift} {info.size} {info.name}"
                samples.setdefault(f"{folder}/{key}", []).append(line)
    lines = [f"v1.2 {len(samples)}", *(" ".join(files) for files in samples.values())]
    tar.with_name(f"{tar.name.partition('.')[0]}.idx").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_index_beside_a_tar_saves_reading_again_and_is_not_trusted(tmp_path: Path, format_: int) -> None:
    bodies = some_bodies(20)
    inner = tar_bytes({f"inner-{number}.jpg": body for number, body in enumerate(bodies)})
    members = {
        "a.jpg": bodies[0],
        f"{LONG}/inner.tar": inner,
        ".hidden": b"h" * 2000,
        "b.jpg": bodies[1],
        "z.tar": inner,
    }
    path = write_tar(tmp_path / "a.tar", members, format_)
    source = open_source(str(tmp_path))
    without = read_all(source, 2048)
    assert without.corrected
    write_index(path)
    indexed = read_all(open_source(str(tmp_path)), 2048)
    assert (indexed.bodies, indexed.corrected) == (without.bodies, 0)
    for damage in (lambda: write_index(path, 512), lambda: (tmp_path / "a.idx").write_bytes(b"\0" * 99)):
        damage()
        assert read_all(open_source(str(tmp_path)), 2048).bodies == without.bodies
    # The index of another tar of the same length.
    write_index(write_tar(tmp_path / "other" / "a.tar", {"x.jpg": inner, **members}, format_))
    (tmp_path / "other" / "a.idx").replace(tmp_path / "a.idx")
    (tmp_path / "other" / "a.tar").unlink()
    assert read_all(open_source(str(tmp_path)), 2048).bodies == without.bodies


def test_which_tars_a_url_names(tmp_path: Path) -> None:
    for name in ("a0.tar", "a1.tar", "b/a2.tar", ".hidden.tar", "c.tgz", "notes.txt"):
        write_tar(tmp_path / name, {"x.jpg": name.encode()})
    manifest = tmp_path / "m.csv"

    def keys(url: object) -> set[str]:
        return set(read_all(open_source(str(url)), 1 << 30).bodies)

    assert keys(tmp_path / "b") == keys(f"{tmp_path}/b/*.tar") == {"a2.tar/x.jpg"}
    assert keys(tmp_path / "a0.tar") == {"a0.tar/x.jpg"}
    assert keys(f"{tmp_path}/*.tar") == {"a0.tar/x.jpg", "a1.tar/x.jpg"}
    assert keys(f"{tmp_path}/a[1-2].tar") == keys(f"{tmp_path}/a{{1..9}}.tar") == {"a1.tar/x.jpg"}
    assert keys(f"{tmp_path}/**/*.tar") == {"b/a2.tar/x.jpg"}
    assert keys(f"{tmp_path}/**.tar") == {"a0.tar/x.jpg", "a1.tar/x.jpg", "b/a2.tar/x.jpg"}
    assert "b/a2.tar/x.jpg" in keys(tmp_path)
    manifest.write_text("path,key\na0.tar,one\nb/a2.tar,two\n")
    assert keys(manifest) == {"one/x.jpg", "two/x.jpg"}
    manifest.write_text("path\na0.tar\nx.jpg\n")
    with pytest.raises(UserError, match="tars or images, not both"):
        keys(manifest)
    write_tar(tmp_path / "literal" / "[a]*.tar", {"x.jpg": b"x"})
    assert keys(f"{tmp_path}/literal/[a]*.tar") == {"[a]*.tar/x.jpg"}
    assert matcher("{008..011}.tar")("010.tar")
    assert not matcher("{008..011}.tar")("10.tar")
    assert not matcher("{008..011}.tar")("012.tar")
