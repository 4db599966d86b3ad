"""The base of the models of a dataset's JSON objects, and how they are parsed."""

import json
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from da2ray.errors import UserError
from da2ray.labels.schema import FORMAT_VERSION

Model = TypeVar("Model", bound="Stored")


class Stored(BaseModel):
    """A JSON object. It is immutable once read; fields that a later release of this format version added are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def parse_stored(model: type[Model], data: bytes, what: str) -> Model:
    """Parse an object that has a `format_version`; `what` names the object in messages.

    Raises:
        UserError: the object is of a later format version.
        ValueError: the data are not such an object; one line says why.
    """
    try:
        version = json.loads(data)["format_version"]
        if version > FORMAT_VERSION:
            raise UserError(f"{what} has format version {version}: update da2ray")
        return model.model_validate_json(data)
    except (ValueError, TypeError, KeyError) as error:  # pydantic's ValidationError is a ValueError
        raise ValueError(" ".join(str(error).split())[:200]) from error
