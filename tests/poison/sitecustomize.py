"""Make marked images harmful in every Python process of a job whose PYTHONPATH names this folder.

A file whose bytes hold `POISON:<fault>` causes that fault (DECODING) in the process that decodes it. An image whose first pixel
is (254, 1, n) causes the fault `TEACHER[n]` in the process in which the teacher `luminance` sees it. A shard with a key that
begins with `hang-write` hangs the process that writes it. Long deadlines are short here.
"""

import ctypes
import importlib.abc
import importlib.util
import re
import sys
import time
from collections.abc import Callable
from typing import Any

TEACHER = {10: "raise", 20: "nan", 30: "memory", 40: "segfault", 50: "hang", 60: "lock"}


def segfault() -> None:
    ctypes.string_at(0)


def hang() -> None:
    time.sleep(3600)


def hang_with_lock() -> None:
    """Hang and hold Python's lock, like a C extension that never releases it."""
    ctypes.PyDLL(None).sleep(3600)


DECODING = {b"segfault": segfault, b"hang": hang, b"lock": hang_with_lock}


def poison_decoding(module: Any) -> None:
    decode = module.decode_pixels

    def decode_pixels(data: bytes, *args: Any) -> Any:
        if marker := re.search(rb"POISON:(\w+)", data):
            DECODING[marker[1]]()
        return decode(data, *args)

    module.decode_pixels = decode_pixels


def poison_teacher(module: Any) -> None:
    predict = module.Luminance.predict

    def predict_poisoned(self: Any, batch: Any) -> Any:
        import torch

        faults = {TEACHER.get(int(image[0, 0, 2])) for image in batch.images() if image[0, 0, :2].tolist() == [254, 1]}
        if "segfault" in faults:
            segfault()
        if "hang" in faults:
            hang()
        if "lock" in faults:
            hang_with_lock()
        if "raise" in faults:
            raise ValueError("the teacher cannot stand this image")
        if "memory" in faults:
            raise torch.OutOfMemoryError("out of memory")
        prediction = predict(self, batch)
        for depth, image in zip(prediction.depth, batch.images(), strict=True):
            if image[0, 0].tolist() == [254, 1, 20]:
                depth[0, 0] = float("nan")
        return prediction

    module.Luminance.predict = predict_poisoned


def poison_writing(module: Any) -> None:
    build = module.build_shard

    def build_shard(rows: Any, *args: Any) -> Any:
        if any(key.startswith("hang-write") for key in rows["key"].to_pylist()):
            hang_with_lock()
        return build(rows, *args)

    module.build_shard = build_shard


def shorten_write(module: Any) -> None:
    module.WRITE_SECONDS = 3


def shorten_lock(module: Any) -> None:
    module.LOCK_SECONDS = 2


PATCHES: dict[str, Callable[[Any], None]] = {
    "da2ray.images.decode": poison_decoding,
    "da2ray.teachers.luminance_teacher": poison_teacher,
    "da2ray.labels.shards.formats": poison_writing,
    "da2ray.pipeline.stages.watchdog": shorten_write,
    "da2ray.pipeline.ray_data.labeler": shorten_lock,
}


class Poisoner(importlib.abc.MetaPathFinder):
    """Patches a module right after its import, so that no module is imported earlier than without the patch."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:  # noqa: ARG002
        if name not in PATCHES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            PATCHES[name](module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Poisoner())
