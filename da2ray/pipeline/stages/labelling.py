"""The settings of the label stage. Importing this needs neither torch nor weights: the driver does without both."""

from dataclasses import dataclass

from da2ray.pipeline.stages.decoding import Decoding
from da2ray.pipeline.stages.reading import uses_camera
from da2ray.teachers.base import LoadOptions, TeacherSpec


@dataclass(frozen=True, slots=True)
class Labelling:
    """How micro-batches become labels. Picklable.

    Attributes:
        spec, load: the teacher, and how it runs.
        bits: bits of a stored depth value.
        mask_bits: bits of a stored confidence value.
        decoding: how images were decoded, and how those are decoded that did not fit into their shard's block.
        sample_timeout: seconds that labelling one image may take.
        processes: teacher processes that may share a machine's cores.
        checker: the second teacher, and how it runs; None without one.
        consistency: second opinions of the teacher itself: `flip`, `scale`.
    """

    spec: TeacherSpec
    load: LoadOptions
    bits: int
    mask_bits: int
    decoding: Decoding
    sample_timeout: float
    processes: int = 1
    checker: tuple[TeacherSpec, LoadOptions] | None = None
    consistency: tuple[str, ...] = ()

    @property
    def with_focals(self) -> bool:
        """Whether a teacher uses the focal length."""
        return uses_camera(self.spec, self.checker and self.checker[0])
