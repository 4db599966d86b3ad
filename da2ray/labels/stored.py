"""JSON objects of a dataset as models: what all of them share."""

import json
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from da2ray.errors import UserError
from da2ray.labels.schema import FORMAT_VERSION

Model = TypeVar("Model", bound="Stored")


class Stored(BaseModel):
    """Never changed once it is read; may carry fields that a later release of this format version added."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def parse_stored(model: type[Model], data: bytes, what: str) -> Model:
    """An object with a `format_version`; `what` it is, for people.

    Raises:
        UserError: it is of a later format version.
        ValueError: it is no such object; one line says why.
    """
    try:
        version = json.loads(data)["format_version"]
        if version > FORMAT_VERSION:
            raise UserError(f"{what} has format version {version}: update da2ray")
        return model.model_validate_json(data)
    except (ValueError, TypeError, KeyError) as error:  # pydantic's ValidationError is a ValueError
        raise ValueError(" ".join(str(error).split())[:200]) from error
