"""The settings of the label stage. Importing this needs neither torch nor weights: the driver does without both."""

from dataclasses import dataclass

from da2ray.images.decode import DecodeMode
from da2ray.pipeline.stages.decoding import Decoding
from da2ray.pipeline.stages.reading import uses_camera
from da2ray.teachers.base import LoadOptions, SizeRule, TeacherSpec


@dataclass(frozen=True, slots=True)
class Labelling:
    """How micro-batches become labels. Picklable.

    Attributes:
        spec, load: the teacher, and how it runs.
        bits: bits of a stored depth value.
        mask_bits: bits of a stored confidence value.
        scaled: pixels were decoded at a reduced scale (`--decode scaled`).
        sample_timeout: seconds that labelling one image may take.
        processes: teacher processes that may share a machine's cores.
        checker: the second teacher, and how it runs; None without one.
        consistency: second opinions of the teacher itself: `flip`, `scale`.
    """

    spec: TeacherSpec
    load: LoadOptions
    bits: int
    mask_bits: int
    scaled: bool
    sample_timeout: float
    processes: int = 1
    checker: tuple[TeacherSpec, LoadOptions] | None = None
    consistency: tuple[str, ...] = ()

    @property
    def with_focals(self) -> bool:
        """Whether a teacher uses the focal length."""
        return uses_camera(self.spec, self.checker and self.checker[0])

    @property
    def decoding(self) -> Decoding:
        """How images are decoded that did not fit into their shard's block: as the others were."""
        return Decoding(DecodeMode.SCALED if self.scaled else DecodeMode.EXACT, self.checker_size)

    @property
    def checker_size(self) -> SizeRule | None:
        """The checker's size rule; None without a checker."""
        return self.checker[0].size_rule if self.checker else None
