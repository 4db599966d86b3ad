"""A user's own class of ten lines labels images, and an error in such a class is reported in one line."""

import hashlib
import itertools
import pickle
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import da2ray
from da2ray.errors import UserError
from da2ray.teachers import custom
from da2ray.teachers.base import Camera, Kind, LoadOptions, TeacherSpec
from da2ray.teachers.custom import OfficialSize, PixelBatch, resize
from tests.jobs import JOB, RunJob

TEACHER = """
from da2ray.teachers.custom import LoadOptions, PixelBatch, Prediction, resize


class MyTeacher:
    kind = "disparity"

    def __init__(self, options: LoadOptions) -> None:
        self.gain = 2.0

    def predict(self, batch: PixelBatch) -> Prediction:
        return Prediction(self.gain * resize(batch).mean(1))
"""

Write = Callable[..., TeacherSpec]
_numbers = itertools.count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module with replacements in its text into the current folder, and return the spec of its teacher."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])

    def spec(*changes: tuple[str, str], name: str = "MyTeacher") -> TeacherSpec:
        source = TEACHER
        for old, new in changes:
            assert old in source
            source = source.replace(old, new)
        module = f"own_teacher_{next(_numbers)}"
        Path(f"{module}.py").write_text(source)
        return custom.spec(f"{module}:{name}", {})

    return spec


def batch_of(*shapes: tuple[int, int], size: tuple[int, int] = (28, 42)) -> PixelBatch:
    images = [
        np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8) for seed, shape in enumerate(shapes)
    ]
    return PixelBatch(torch.cat([torch.from_numpy(image).flatten() for image in images]), shapes, size)


def test_a_run_labels_with_a_class_in_the_current_folder(run_alone: RunJob, tmp_path: Path) -> None:
    """The driver and all workers import the module. Read tasks do too, because the size rule is a function in it."""
    size_rule = "def thumbnail(height, width):\n    return 28, 42\n\n\nclass"
    source = TEACHER.replace("class", size_rule, 1).replace('"disparity"', '"disparity"\n    size_rule = thumbnail', 1)
    (tmp_path / "mymod.py").write_text(source)
    (tmp_path / "images").mkdir()
    batch = batch_of((60, 80), (90, 70), (40, 50))
    for number, image in enumerate(batch.images()):
        Image.fromarray(image.numpy()).save(tmp_path / "images" / f"{number}.png")
    script = f'cd {shlex.quote(str(tmp_path))} && exec {sys.executable} {JOB} "$@"'
    options = ("--images", "images", "--output", "labels", "--teacher", "mymod:MyTeacher")
    # Its own Ray: workers start in the folder where the driver starts, which has the module.
    finished = run_alone(*options, command=("sh", "-c", script, "sh"))
    assert finished.code == 0, finished
    labels = list(da2ray.open_labels(str(tmp_path / "labels")))
    assert [label.key for label in labels] == ["0.png", "1.png", "2.png"]
    for label, expected in zip(labels, 2 * resize(batch).mean(1).numpy(), strict=True):
        np.testing.assert_allclose(label.depth, expected, atol=1e-3)  # 12 bits of a range below 2


def test_only_the_kind_is_required(write: Write) -> None:
    spec = write()
    assert (spec.kind, spec.unit, spec.camera) == (Kind.DISPARITY, "", Camera.UNUSED)
    assert (spec.size_rule, spec.licence, spec.preprocessing) == (OfficialSize(), "unknown", "custom-1")
    given = write(('"disparity"', '"metric"\n    licence = "MIT"\n    version = "b"\n    camera = "predicted"'))
    assert (given.kind, given.unit, given.licence) == (Kind.METRIC, "m", "MIT")
    assert (given.preprocessing, given.camera) == ("custom-b", Camera.PREDICTED)
    assert (spec.size_step, write(('"disparity"', '"metric"\n    size_step = 32')).size_step) == (None, 32)
    there = pickle.loads(pickle.dumps(spec))  # noqa: S301
    assert there.identify(LoadOptions()) == spec.identify(LoadOptions())


def test_each_image_is_resized_alone_to_values_from_0_to_1() -> None:
    batch = batch_of((60, 80), (300, 200))
    images = resize(batch)
    assert (images.dtype, images.shape) == (torch.float32, (2, 3, 28, 42))
    assert images.min() >= 0
    assert images.max() <= 1
    for image, pixels in zip(images, batch.images(), strict=True):
        alone = resize(PixelBatch(pixels.flatten(), [tuple(pixels.shape[:2])], batch.size))[0]
        # Fixed: this process. Each image is resized by itself.
        assert torch.equal(image, alone)
        for channel, plane in zip(image, pixels.permute(2, 0, 1), strict=True):
            pillow = Image.fromarray(plane.numpy().astype(np.float32)).resize((42, 28), Image.Resampling.BICUBIC)
            np.testing.assert_allclose(channel * 255, np.asarray(pillow).clip(0, 255), atol=0.01)


def test_the_identity_covers_the_modules_source_and_the_weights(write: Write, tmp_path: Path) -> None:
    spec = write()
    module = Path(f"{spec.name.partition(':')[0]}.py")
    before = spec.identify(LoadOptions())
    assert before == hashlib.sha256(module.read_bytes()).hexdigest()
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"1")
    first = spec.identify(LoadOptions(weights=str(weights)))
    weights.write_bytes(b"22")
    assert len({before, first, spec.identify(LoadOptions(weights=str(weights)))}) == 3
    module.write_text(module.read_text() + "\n")
    assert spec.identify(LoadOptions()) != before


def test_the_class_gets_its_weights_as_a_local_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"3")
    spec = write(("self.gain = 2.0", "self.gain = float(open(options.weights).read())"))
    teacher = spec.load(LoadOptions(weights=f"file://{tmp_path}/weights.pt"))
    batch = batch_of((60, 80))
    torch.testing.assert_close(teacher.predict(batch).depth, 3 * resize(batch).mean(1))
    with pytest.raises(UserError, match="--device cuda:7"):
        spec.load(LoadOptions(device="cuda:7"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "disparity"', "", r"class attribute kind is missing: set it to one of 'disparity', 'depth', 'metric'"),
        ('"disparity"', '"metres"', "class attribute kind is 'metres': set it to one of"),
        (
            '"disparity"',
            '"depth"\n    camera = "pinhole"',
            "class attribute camera is 'pinhole': set it to one of 'unused'",
        ),
        ("def predict", "def run", "has no method predict"),
        ("class MyTeacher", "class Other", "has no class MyTeacher"),
        ('"disparity"', '"depth"\n    size_rule = lambda h, w: h / 0', "its size_rule fails for .*: ZeroDivisionError"),
        ('"disparity"', '"depth"\n    size_rule = lambda h, w: (14.0, 14)', r"its size_rule returns \(14.0, 14\) for"),
        ('"disparity"', '"depth"\n    size_step = 0', "class attribute size_step is 0: set it to a number of pixels"),
        ("class", "import nowhere_at_all\n\nclass", r"importing own_teacher_\d+ failed \(ModuleNotFoundError"),
        ("class", "1 +\n\nclass", r"importing own_teacher_\d+ failed \(SyntaxError"),
    ],
)
def test_a_class_that_is_not_a_teacher_is_refused_in_one_line(old: str, new: str, message: str, write: Write) -> None:
    with pytest.raises(UserError, match=message) as caught:
        write((old, new))
    assert "\n" not in str(caught.value)


def test_a_missing_module_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=f"there is no module nowhere in {tmp_path} .*run from the folder that holds it"
    ):
        custom.spec("nowhere:MyTeacher", {})
    (tmp_path / "mypkg").mkdir()
    with pytest.raises(UserError, match=r"there is no module mypkg\.nowhere"):
        custom.spec("mypkg.nowhere:MyTeacher", {})
    with pytest.raises(UserError, match="has no options"):
        custom.spec("nowhere:MyTeacher", {"steps": "4"})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            "Prediction(resize(batch).mean(1).double())",
            r"depth torch\.float64 \(2, 28, 42\) on cpu: expected torch\.float32",
        ),
        ("Prediction(resize(batch))", r"depth torch\.float32 \(2, 3, 28, 42\) on cpu: expected .* \(2, 28, 42\)"),
        ("Prediction(resize(batch).mean(1).numpy())", "depth as a ndarray: expected a tensor"),
        ("Prediction(resize(batch).mean(1), confidence=resize(batch))", r"confidence .* \(2, 3, 28, 42\)"),
        ("Prediction(resize(batch).mean(1), images=resize(batch)[:1])", r"images .* \(1, 3, 28, 42\) on cpu: expected"),
        ("resize(batch).mean(1)", "returned a Tensor: expected a Prediction"),
    ],
)
def test_a_prediction_of_another_shape_or_type_is_refused_in_one_line(
    returned: str, message: str, write: Write
) -> None:
    spec = write(("Prediction(self.gain * resize(batch).mean(1))", returned))
    with pytest.raises(UserError, match=message) as caught:
        spec.load(LoadOptions()).predict(batch_of((60, 80), (70, 90)))
    assert "\n" not in str(caught.value)


def test_focal_lengths_must_be_reported_if_the_class_says_that_it_uses_them(write: Write) -> None:
    spec = write(('"disparity"', '"metric"\n    camera = "assumed"'))
    with pytest.raises(UserError, match="focals as a NoneType: expected a tensor"):
        spec.load(LoadOptions()).predict(batch_of((60, 80)))
