"""`dataset.json`: what a dataset holds. It is created conditionally and never changed; every later run is checked against it."""

import hashlib
import json
from typing import Any

from pydantic import Field

import da2ray
from da2ray.errors import CorruptError, RejectedError, UserError
from da2ray.labels.schema import FORMAT_VERSION
from da2ray.labels.shards.base import ShardFormat
from da2ray.labels.shards.formats import FORMATS
from da2ray.labels.stored import Stored, read_versioned
from da2ray.storage import Store
from da2ray.teachers.base import Kind, TeacherSpec

KEY = "dataset.json"
DEFAULT_MASK_BITS = 2
COMPARISON = "local-log-error-v2"
"""A word in the fingerprint that changes whenever `da2ray.quality.consistency` would give other scores or masks. It is here
because that module needs torch."""

_FINGERPRINT_DIGITS = 16


class Codec(Stored):
    """How a label's bytes become integers, of `bits` bits (8 to 16); a mask's integers have `mask_bits` (1 to 8)."""

    name: str
    bits: int = Field(ge=8, le=16)
    mask_bits: int = Field(DEFAULT_MASK_BITS, ge=1, le=8)


class CheckedBy(Stored):
    """The second teacher. Labels have scores of the disagreement with it, and masks if the first teacher gives no confidence."""

    teacher: str
    kind: Kind
    licence: str
    weights_sha256: str
    preprocessing: str

    @classmethod
    def make(cls, spec: TeacherSpec, weights_sha256: str) -> "CheckedBy":
        return cls(
            teacher=spec.name,
            kind=spec.kind,
            licence=spec.licence,
            weights_sha256=weights_sha256,
            preprocessing=spec.preprocessing,
        )

    def __str__(self) -> str:
        return f"{self.teacher} {self.weights_sha256[:12]}"


class CreatedBy(Stored):
    """What decided the labels: everything in the fingerprint, and the package that wrote the first shard.

    `consistency` names the teacher's own second opinions, from which labels have scores and masks: "flip", "scale".
    """

    package: str
    teacher: str
    licence: str
    weights_sha256: str
    preprocessing: str
    decode: str
    precision: str
    fingerprint: str
    checker: CheckedBy | None = None
    consistency: tuple[str, ...] = ()

    def describe(self) -> str:
        return f"{self.teacher} {self.precision} (fingerprint {self.fingerprint})"


class DatasetInfo(Stored):
    """The content of `dataset.json`.

    Attributes:
        kind, unit: of the depth (`da2ray.teachers.base.Kind`); the unit is "m" for metric, else "".
        format: of its shards.
        source: URL of the images that the first run labelled.
        options: of that run, without credentials; a refresh uses them. Empty in a dataset that no run made.
    """

    format_version: int = FORMAT_VERSION
    kind: Kind
    unit: str
    codec: Codec
    format: ShardFormat
    source: str
    created_by: CreatedBy
    options: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def make(
        cls,
        spec: TeacherSpec,
        weights_sha256: str,
        *,
        source: str,
        decode: str,
        precision: str,
        bits: int,
        format: ShardFormat,  # noqa: A002 - the option's name
        mask_bits: int = DEFAULT_MASK_BITS,
        checker: CheckedBy | None = None,
        consistency: tuple[str, ...] = (),
    ) -> "DatasetInfo":
        """The content that a run of this teacher with these options would write."""
        found = fingerprint(
            spec.name, weights_sha256, spec.preprocessing, decode, precision, bits, mask_bits, checker, consistency
        )
        return cls(
            kind=spec.kind,
            unit=spec.unit,
            codec=Codec(name=FORMATS[format].codec, bits=bits, mask_bits=mask_bits),
            format=format,
            source=source,
            created_by=CreatedBy(
                package=f"da2ray {da2ray.__version__}",
                teacher=spec.name,
                licence=spec.licence,
                weights_sha256=weights_sha256,
                preprocessing=spec.preprocessing,
                decode=decode,
                precision=precision,
                fingerprint=found,
                checker=checker,
                consistency=consistency,
            ),
        )


def fingerprint(
    teacher: str,
    weights_sha256: str,
    preprocessing: str,
    decode: str,
    precision: str,
    bits: int,
    mask_bits: int = DEFAULT_MASK_BITS,
    checker: CheckedBy | None = None,
    consistency: tuple[str, ...] = (),
) -> str:
    """16 hexadecimal digits that change whenever the label of an unchanged image would: the sha256 of canonical JSON.

    Options that were added later enter only if they are not the default, so that older datasets keep their fingerprint.
    """
    decides: dict[str, str | int] = {
        "format_version": FORMAT_VERSION,
        "teacher": teacher,
        "weights_sha256": weights_sha256,
        "preprocessing": preprocessing,
        "decode": str(decode),
        "precision": str(precision),
        "bits": bits,
    }
    if mask_bits != DEFAULT_MASK_BITS:
        decides["mask_bits"] = mask_bits
    if checker:
        decides |= {
            f"checker_{name}": getattr(checker, name) for name in ("teacher", "weights_sha256", "preprocessing")
        }
    if consistency:
        decides["consistency"] = "+".join(consistency)
    if checker or consistency:
        decides["comparison"] = COMPARISON
    canonical = json.dumps(decides, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(canonical).hexdigest()[:_FINGERPRINT_DIGITS]


def open_dataset(store: Store) -> DatasetInfo | None:
    """The dataset at the store; None if there is none.

    Raises:
        UserError: the dataset is of a later format version, or `dataset.json` is not one of ours.
    """
    try:
        return read_versioned(store, KEY, DatasetInfo, "a da2ray dataset", "restore it, or choose another --output")
    except FileNotFoundError:
        return None
    except CorruptError as error:
        raise UserError(str(error)) from error


def require_dataset(store: Store) -> DatasetInfo:
    """The store's dataset.

    Raises:
        UserError: there is no dataset, or one that this version cannot read.
    """
    dataset = open_dataset(store)
    if dataset is None:
        raise UserError(f"no dataset at {store.url}: nothing is there, or da2ray did not write it")
    return dataset


def create_or_open(store: Store, info: DatasetInfo) -> DatasetInfo:
    """Create the dataset, or open the one that exists if it holds the same kind of labels; return what is stored.

    Raises:
        UserError: the dataset holds other labels (`check_same`) or cannot be read (`open_dataset`), or the store has no
            conditional create, so that two attempts could both commit: it rejects the request, or overwrites an object.
    """
    data = f"{info.model_dump_json(indent=1)}\n".encode()
    try:
        created = store.create(KEY, data)
    except RejectedError as error:
        raise UserError(
            f"cannot write to {store.url}: {error}\n"
            "commits need conditional creates (If-None-Match: *), which this store may lack: choose another --output"
        ) from error
    if created:
        if store.create(KEY, data):
            raise UserError(
                f"{store.url} ignores conditional creates (If-None-Match: *), which commits need: choose another --output"
            )
        return info
    stored = open_dataset(store)
    if stored is None:
        raise OSError(f"{store.url}/{KEY} exists, so it cannot be created, but reading it finds nothing")
    check_same(stored, info, store.url)
    return stored


def check_same(stored: DatasetInfo, wanted: DatasetInfo, url: str) -> None:
    """Refuse to mix labels of another meaning, codec or fingerprint into a dataset.

    Raises:
        UserError: the labels differ; the message says in what.
    """
    for name in ("format_version", "kind", "unit", "format", "source"):
        there, here = getattr(stored, name), getattr(wanted, name)
        if there != here:
            change = f"--format {there} or another --output" if name == "format" else "another --output"
            raise UserError(f"{url} holds labels with {name} {there!s}; this run would write {here!s}: choose {change}")
    old, new = stored.created_by, wanted.created_by
    if old.fingerprint != new.fingerprint:
        names = ("teacher", "weights_sha256", "preprocessing", "decode", "precision", "checker", "consistency")
        differing = [
            f"{name} {_as_text(getattr(old, name))} -> {_as_text(getattr(new, name))}"
            for name in names
            if getattr(old, name) != getattr(new, name)
        ]
        if stored.codec.bits != wanted.codec.bits:
            differing.append(f"bits {stored.codec.bits} -> {wanted.codec.bits}")
        if stored.codec.mask_bits != wanted.codec.mask_bits:
            differing.append(f"mask_bits {stored.codec.mask_bits} -> {wanted.codec.mask_bits}")
        raise UserError(
            f"{url} holds labels by {old.describe()}; this run would write fingerprint {new.fingerprint} "
            f"({', '.join(differing)}): choose another --output"
        )


def _as_text(value: object) -> str:
    return ("+".join(value) or "none") if isinstance(value, tuple) else str(value)
