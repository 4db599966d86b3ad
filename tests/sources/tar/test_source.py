"""Every image of a tar is in exactly one shard, whoever wrote the tar and wherever it is cut."""

import bz2
import gzip
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from da2ray.sources import Place, open_source
from da2ray.sources.base import Cut, Member, Sample
from da2ray.sources.tar import read as reading
from da2ray.sources.tar.bytes import Ranges
from da2ray.storage import open_store
from tests.sources.tar.tars import CUTS, LONG, read_all, read_shard, serial, some_bodies, specs_of, tar_bytes, write_tar


def images(count: int = 12) -> dict[str, bytes]:
    """Members of all kinds: short and long names, not ASCII, nested folders, and what is not an image."""
    names = [f"{number:03d}.jpg" for number in range(count)]
    names[1], names[2], names[4] = f"{LONG}/{names[1]}", f"straße/日本-{names[2]}", f"a/b/c/{'x' * 95}.jpg"
    found = dict(zip(names, some_bodies(count), strict=True))
    return found | {"000.json": b"{}", "001.txt": b"a caption", f"{LONG}/notes.md": b"x" * 600}


def wanted(tar: str, members: dict[str, bytes], prefix: str = "") -> dict[str, bytes]:
    return {f"{tar}/{prefix}{name}": body for name, body in members.items() if name.endswith(".jpg")}


def write_files(folder: Path, members: dict[str, bytes]) -> list[str]:
    for name, body in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    return list(members)


def with_program(program: str, *options: str) -> Callable[[Path, dict[str, bytes]], None]:
    """A writer of tars that runs GNU tar or bsdtar."""

    def write(path: Path, members: dict[str, bytes]) -> None:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")  # apt-get install libarchive-tools
        folder = path.parent.parent / "files"
        names = write_files(folder, members)
        subprocess.run([program, *options, "-cf", path, "-C", folder, *names], check=True)

    return write


def with_tarfile(format_: int, mtime: float = 0) -> Callable[[Path, dict[str, bytes]], None]:
    def write(path: Path, members: dict[str, bytes]) -> None:
        with tarfile.open(path, "w", format=format_) as tar:
            for name, body in members.items():
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(body), mtime
                tar.addfile(info, io.BytesIO(body))

    return write


def with_webdataset(path: Path, members: dict[str, bytes]) -> None:
    with webdataset.TarWriter(str(path), encoder=False) as sink:
        for name, body in members.items():
            folder, _, base = name.rpartition("/")
            key, _, suffix = base.partition(".")
            sink.write({"__key__": f"{folder}/{key}" if folder else key, suffix: body})


WRITERS = {
    "GNU tar, gnu": with_program("tar", "--format=gnu"),
    "GNU tar, oldgnu": with_program("tar", "--format=oldgnu"),
    "GNU tar, pax": with_program("tar", "--format=pax"),
    "bsdtar, pax": with_program("bsdtar", "--format", "pax"),
    "bsdtar, restricted pax": with_program("bsdtar", "--format", "paxr"),
    "bsdtar, gnutar": with_program("bsdtar", "--format", "gnutar"),
    "tarfile, gnu": with_tarfile(tarfile.GNU_FORMAT),
    "tarfile, pax": with_tarfile(tarfile.PAX_FORMAT),
    "tarfile, pax records for each member": with_tarfile(tarfile.PAX_FORMAT, mtime=1.5),
    "webdataset": with_webdataset,
}
SHORT_NAMES = {  # formats that refuse long names, or such that are not ASCII
    "GNU tar, v7": with_program("tar", "--format=v7"),
    "GNU tar, ustar": with_program("tar", "--format=ustar"),
    "bsdtar, ustar": with_program("bsdtar", "--format", "ustar"),
    "bsdtar, v7": with_program("bsdtar", "--format", "v7tar"),
    "tarfile, ustar": with_tarfile(tarfile.USTAR_FORMAT),
}


@pytest.mark.parametrize("writer", [*WRITERS, *SHORT_NAMES])
def test_the_images_of_every_writer_and_format_are_read_once_at_any_cut(tmp_path: Path, writer: str) -> None:
    members = images()
    if writer in SHORT_NAMES:
        members = {name: body for name, body in members.items() if name.isascii() and len(name) < 90}
    folder = tmp_path / "tars"
    folder.mkdir()
    (WRITERS | SHORT_NAMES)[writer](folder / "a.tar", members)
    assert serial(folder / "a.tar") == wanted("a.tar", members)
    data = (folder / "a.tar").read_bytes()
    source = open_source(str(folder))
    for shard_bytes in CUTS:
        read = read_all(source, shard_bytes)
        assert read.bodies == wanted("a.tar", members)
        assert not read.reasons
        for sample in read.samples.values():
            member = sample.member
            assert data[member.image_offset :][: member.image_length] == sample.body
            assert member.uri == str(folder / "a.tar")
            assert sample.etag == open_store(str(folder)).stat("a.tar").etag


BODIES = st.integers(0, 3).flatmap(
    lambda blocks: st.binary(min_size=max(0, 512 * blocks - 2), max_size=512 * blocks + 2)
)
NAMES = st.sampled_from(["a.jpg", "b.jpg", "c/d.jpg", "e.txt", "f.tar", f"{LONG}/g.jpg", ".h.jpg", "i.JPG.jpg"])
MEMBERS = st.lists(st.tuples(NAMES, BODIES), max_size=7)
FORMATS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Archives, one after another, with archives among their members."""
    data = b""
    for _ in range(draw(st.integers(1, 2))):
        members = draw(MEMBERS)
        for place in draw(st.lists(st.integers(0, 6), max_size=2)):
            members.insert(place, (draw(NAMES), tar_bytes(draw(MEMBERS), draw(FORMATS))))
        data += tar_bytes(members, draw(FORMATS))
    return data


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=archives(), shard_bytes=st.sampled_from([512, 1024, 2048, 7 * 512, 20_000]))
def test_any_cut_of_any_archive_reads_what_a_walk_from_its_beginning_reads(
    tmp_path: Path, data: bytes, shard_bytes: int
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    hidden = {key: body for key, body in serial(path).items() if "/.h.jpg" not in key}
    assert read_all(open_source(str(path)), shard_bytes).bodies == hidden


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=archives(), at=st.integers(0, 100), shard_bytes=st.sampled_from([512, 2048, 20_000]))
def test_a_cut_off_archive_keeps_its_whole_members_and_says_where_it_breaks(
    tmp_path: Path, data: bytes, at: int, shard_bytes: int
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    whole = read_all(open_source(str(path)), 1 << 30).samples
    path.write_bytes(data[: max(1, len(data) * at // 100)])
    read = read_all(open_source(str(path)), shard_bytes)
    assert {key: whole[key].body for key in read.bodies} == read.bodies
    ends = {key: sample.member.image_offset + sample.member.image_length for key, sample in whole.items()}
    assert set(read.bodies) == {key for key, end in ends.items() if end <= path.stat().st_size}
    assert list(read.reasons.values()) in ([], ["truncated"])
    assert read.reasons == read_all(open_source(str(path)), 1 << 30).reasons


@pytest.mark.parametrize("blocks", [1, 3, 16])
def test_a_tar_in_a_tar_is_a_member_and_its_images_are_not_read(tmp_path: Path, blocks: int) -> None:
    inner = tar_bytes({f"inner-{number}.jpg": body for number, body in enumerate(some_bodies(9))})
    outer = {"a.jpg": b"a" * 700, "inner.tar": inner, "b.jpg": b"b" * 700, "second.tar": inner, "c.jpg": b"c"}
    path = write_tar(tmp_path / "a.tar", outer)
    source = open_source(str(path))
    read = read_all(source, blocks * 512)
    assert read.bodies == wanted("a.tar", outer)
    assert read.corrected, "the ranges did not meet an inner header, so the test tests nothing"
    blind = {sample.member.key for spec in specs_of(source, blocks * 512) for sample in read_shard(source, spec)[0]}
    assert any("inner-" in key for key in blind)


def test_each_image_of_one_name_has_a_key_whatever_the_cut(tmp_path: Path) -> None:
    bodies = some_bodies(6)
    members = [("a.jpg", bodies[0]), ("b.jpg", bodies[1]), *(("a.jpg", body) for body in bodies[2:])]
    path = write_tar(tmp_path / "a.tar", members)
    with tarfile.open(path) as tar:
        offsets = [info.offset for info in tar]
    keys = ["a.tar/a.jpg", "a.tar/b.jpg", *(f"a.tar/a.jpg@{offset}" for offset in offsets[2:])]
    for shard_bytes in CUTS:
        assert read_all(open_source(str(path)), shard_bytes).bodies == dict(zip(keys, bodies, strict=True))


def test_a_hard_link_has_the_bytes_of_the_member_it_points_to(tmp_path: Path) -> None:
    bodies = some_bodies(3)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, body in (
            ("a.jpg", b"an older one"),
            ("a.jpg", bodies[0]),
            ("x.bin", bodies[1]),
            ("b.jpg", bodies[2]),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
        for name, target in (("c.jpg", "a.jpg"), ("d.jpg", "x.bin"), ("e.jpg", "gone.jpg")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            tar.addfile(info)
    data = (tmp_path / "a.tar").read_bytes()
    for shard_bytes in CUTS:
        read = read_all(open_source(str(tmp_path / "a.tar")), shard_bytes)
        assert (read.bodies["a.tar/c.jpg"], read.bodies["a.tar/d.jpg"]) == (bodies[0], bodies[1])
        assert read.reasons == {"a.tar/e.jpg": "not_found"}
        member = read.samples["a.tar/c.jpg"].member
        assert data[member.image_offset :][: member.image_length] == bodies[0]


@pytest.mark.parametrize(
    "format_", ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"]
)
def test_a_sparse_member_is_a_row_that_says_so(tmp_path: Path, format_: str) -> None:
    folder = tmp_path / "files"
    write_files(folder, {"a.jpg": b"a", "z.jpg": b"z"})
    with (folder / "s.jpg").open("wb") as file:
        for hole in range(30):  # more than the header's own map holds
            file.seek(hole * 64 << 10)
            file.write(b"x" * 4096)
        file.truncate(4 << 20)
    options = [format_] if "gnu" in format_ else ["--format=pax", format_]
    path = tmp_path / "a.tar"
    subprocess.run(["tar", *options, "-S", "-cf", path, "-C", folder, "a.jpg", "s.jpg", "z.jpg"], check=True)
    assert path.stat().st_size < 1 << 20, "the file system keeps no holes"
    for shard_bytes in CUTS:
        read = read_all(open_source(str(path)), shard_bytes)
        assert read.bodies == {"a.tar/a.jpg": b"a", "a.tar/z.jpg": b"z"}
        assert read.reasons == {"a.tar/s.jpg": "unreadable"}
        assert "sparse" in str(read.samples["a.tar/s.jpg"].body)
        assert read.samples["a.tar/s.jpg"].member.image_offset is None


def test_numbers_in_base_256_and_of_pax_records_count(tmp_path: Path) -> None:
    body, other = some_bodies(2)
    plain = bytearray(tar_bytes({"a.jpg": body, "b.jpg": other}))

    def sized(block: bytearray, field: bytes) -> bytes:
        block[124:136] = field
        block[148:156] = b" " * 8
        block[148:156] = f"{sum(block):06o}\0 ".encode()
        return bytes(block)

    base256 = sized(plain[:512], b"\x80" + len(body).to_bytes(11, "big"))
    (tmp_path / "a.tar").write_bytes(base256 + plain[512:])
    record = f"{len(f'00 size={len(body)}') + 1} size={len(body)}\n".encode()
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = b"x", len(record)
    head = pax.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
    (tmp_path / "b.tar").write_bytes(head + sized(plain[:512], b"00000000000\0") + plain[512:])
    for name in ("a.tar", "b.tar"):
        for shard_bytes in CUTS:
            read = read_all(open_source(str(tmp_path / name)), shard_bytes)
            assert read.bodies == {f"{name}/a.jpg": body, f"{name}/b.jpg": other}


def test_a_global_pax_header_counts_in_later_ranges_too(tmp_path: Path) -> None:
    bodies = some_bodies(4)
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "all.jpg"}) as tar:
        for body in bodies:
            info = tarfile.TarInfo("x.bin")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    (tmp_path / "a.tar").write_bytes(sink.getvalue())
    for shard_bytes in CUTS:
        assert list(read_all(open_source(str(tmp_path / "a.tar")), shard_bytes).bodies.values()) == bodies


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.zst"])
@pytest.mark.parametrize("packed", ["gzip", "gzip, two members", "zstd", "zstd, two frames"])
def test_a_compressed_tar_is_read_in_sequence_whatever_its_name(
    tmp_path: Path, packed: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = images() | {"big.bin": b"0" * 3_000_000}
    data = tar_bytes(members, tarfile.PAX_FORMAT)
    pack = gzip.compress if packed.startswith("gzip") else zstandard.ZstdCompressor().compress
    path = tmp_path / f"a{suffix}"
    half = len(data) // 2 + 7
    path.write_bytes(pack(data[:half]) + pack(data[half:]) if "two" in packed else pack(data))
    for slice_bytes in (1 << 30, 9000):
        monkeypatch.setattr(reading, "SLICE", slice_bytes)
        for shard_bytes in CUTS[1:]:
            read = read_all(open_source(str(path)), shard_bytes)
            assert read.bodies == wanted(path.name, members)
            assert all(sample.member.image_offset is None for sample in read.samples.values())
    cut = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(cut)
    read = read_all(open_source(str(path)), 1 << 30)
    assert set(read.reasons.values()) == {"truncated"}
    assert read.bodies.items() <= wanted(path.name, members).items()


def test_what_is_not_a_tar_or_cannot_be_read_is_a_row(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    write_tar(folder / "good.tar", {"a.jpg": b"a"})
    (folder / "empty.tar").write_bytes(b"")
    (folder / "page.tar").write_bytes(b"<html>no such file</html>" * 999)
    (folder / "bz2.tar").write_bytes(bz2.compress(tar_bytes({"a.jpg": some_bodies(1, most=9000)[0] * 3})))
    (folder / "gone.tar").write_bytes(bytes(5000))
    (folder / "link.tar").symlink_to("nowhere")
    damaged = bytearray(tar_bytes({"a.jpg": b"a" * 600, "b.jpg": b"b" * 600, "c.jpg": b"c" * 600}))
    damaged[1536 : 1536 + 512] = b"\xff" * 512  # the header of b.jpg
    (folder / "damaged.tar").write_bytes(damaged)
    source = open_source(str(folder))
    for shard_bytes in CUTS[1:]:
        specs = specs_of(source, shard_bytes)
        gone = folder / "gone.tar"
        gone.unlink()
        found = [sample for spec in specs for sample in read_shard(source, spec)[0]]
        gone.write_bytes(bytes(5000))
        reasons = {each.member.key: getattr(each.body, "reason", None) for each in found}
        gone_rows = {key for key in reasons if key.startswith("gone.tar/")}
        assert {reasons.pop(key) for key in gone_rows} == {"not_found"}
        assert reasons == {
            "good.tar/a.jpg": None,
            "empty.tar/@0": "empty",
            "page.tar/@0": "corrupt",
            "bz2.tar/@0": "corrupt",
            "link.tar/@0": "not_found",
            "damaged.tar/a.jpg": None,
            "damaged.tar/@1536": "corrupt",
            "damaged.tar/c.jpg": None,
        }


def test_a_limit_takes_the_first_images_and_counts_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", [*images().items(), ("000.jpg", b"again")], tarfile.PAX_FORMAT)
    source = open_source(str(tmp_path))
    every = list(read_all(source, 1 << 30).bodies)
    assert len(every) == 26
    for limit in (1, 5, 13, 14, 26, 99):
        for shard_bytes in CUTS[1:]:
            rows = [row for batch in source.shards(Cut(1 << 20, shard_bytes, limit)) for row in batch.to_pylist()]
            assert sum(row["samples"] for row in rows) == min(limit, 26)
            assert all(row["exact"] and row["samples"] for row in rows)
            read = read_all(source, shard_bytes, limit)
            assert list(read.bodies) == every[:limit]
            assert [len(shard) for shard in read.shards] == [row["samples"] for row in rows]


def test_skip_leaves_out_rows_and_keeps_the_others(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", images(), tarfile.PAX_FORMAT)
    source = open_source(str(path))
    (spec,) = specs_of(source, 1 << 30)
    every, extent = read_shard(source, spec)
    for skip in range(len(every) + 1):
        *samples, last = source.read(spec, concurrency=4, skip=skip)
        assert samples == every[skip:]
        assert last == extent


def test_a_row_is_read_again_by_its_range_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = images(30)
    path = write_tar(tmp_path / "a.tar", members, tarfile.PAX_FORMAT)
    source = open_source(str(path))
    specs = specs_of(source, 30_000)
    read = read_all(source, 30_000)
    places = []
    for spec, shard in zip(read.specs, read.shards, strict=True):
        rows = range(0, len(shard), 3)
        places.append((spec, [Place(row, in_index(shard[row])) for row in rows]))
    asked: list[tuple[int, int]] = []
    real = Ranges.__init__

    def noting(self: Ranges, get: Callable[[int, int], bytes], *args: object, **more: object) -> None:
        def noted(offset: int, length: int) -> bytes:
            asked.append((offset, length))
            return get(offset, length)

        real(self, noted, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Ranges, "__init__", noting)
    again = source.select(places)
    samples = list(source.read(again, concurrency=3))
    expected = [shard[row] for shard in read.shards for row in range(0, len(shard), 3)]
    assert [(sample.member.key, sample.body) for sample in samples] == [
        (each.member.key, each.body) for each in expected
    ]
    assert sorted(asked) == sorted((each.member.image_offset, each.member.image_length) for each in expected)
    assert [source.member(again, row).key for row in range(len(expected))] == [each.member.key for each in expected]
    # Places can be selected again, and without the index by their rows alone.
    twice = source.select([(again, [Place(2), Place(0)])])
    assert len(list(source.read(twice, concurrency=1))) == 2
    (one,) = source.read(source.select([(specs[0], [Place(1)])]), concurrency=1)
    assert one == read.shards[0][1]


def in_index(sample: Sample) -> Member:
    """What the index keeps of a sample."""
    member = sample.member
    return Member(
        member.key,
        member.uri,
        image_offset=member.image_offset,
        image_length=member.image_length,
        image_row=member.image_row,
    )


def test_a_mended_tar_gives_its_lost_members_when_its_break_is_read_again(tmp_path: Path) -> None:
    members = dict(zip([f"{number}.jpg" for number in range(5)], some_bodies(5), strict=True))
    data = tar_bytes(members)
    path = tmp_path / "a.tar"
    path.write_bytes(data[: len(data) // 2])
    source = open_source(str(path))
    read = read_all(source, 1 << 30)
    (key,) = read.reasons
    path.write_bytes(data)
    row = list(read.samples).index(key)
    again = source.select([(read.specs[0], [Place(row, in_index(read.shards[0][row]))])])
    (sample,) = source.read(again, concurrency=1)
    assert sample.body == members[key.removeprefix("a.tar/")]
    # A tar that was not there at all is read whole.
    path.unlink()
    (spec,) = read.specs
    ((missing,), _) = read_shard(source, spec)
    assert missing.body.reason == "not_found"
    path.write_bytes(data)
    again = source.select([(spec, [Place(0, in_index(missing))])])
    assert [each.body for each in source.read(again, concurrency=1)] == list(members.values())


def test_a_row_of_a_tar_that_was_replaced_is_not_another_member(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.jpg": b"a" * 600, "b.jpg": b"b" * 600})
    source = open_source(str(path))
    (spec,) = specs_of(source, 1 << 30)
    samples, _ = read_shard(source, spec)
    again = source.select([(spec, [Place(row, in_index(sample)) for row, sample in enumerate(samples)])])
    write_tar(path, {"a.jpg": b"A" * 600, "x.jpg": b"x" * 600})
    first, second = source.read(again, concurrency=1)
    assert first.body == b"A" * 600
    assert first.etag == open_store(str(tmp_path)).stat("a.tar").etag != samples[0].etag
    assert second.body.reason == "not_found"


def test_a_changed_tar_is_read_as_it_is(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", images(), tarfile.PAX_FORMAT)
    source = open_source(str(path))
    specs = specs_of(source, 4096)
    larger = images(40)
    write_tar(path, larger, tarfile.PAX_FORMAT)
    found = [read_shard(source, spec) for spec in specs]
    assert {extent.version for _, extent in found} == {source.version(specs[0])}
    keys = [sample.member.key for samples, _ in found for sample in samples]
    assert set(keys) == set(wanted("a.tar", larger))
