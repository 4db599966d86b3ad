"""Options that several commands have."""

import math
import re
from typing import Annotated, Any, Literal

from da2ray.commands.options import AsText, option

StorageClient = Literal["auto", "obstore", "fsspec"]


def dataset_url_option() -> Any:
    """The dataset that `da2ray X URL` is about."""
    return option(..., "URL or path of a dataset", metavar="URL", positional=True)


def storage_client_option(group: str = "options") -> Any:
    """The library that talks to object stores."""
    return option("auto", "library that talks to object stores; auto: obstore if it knows the scheme", group=group)


def sample_option() -> Any:
    """How much of the dataset `verify` and `repair` read. With the field's type, `Share`."""
    return option(1.0, "check only this share of the shards, such as 0.05 or 5%: always the same ones", metavar="SHARE")


def parse_share(text: str) -> float:
    """Read a share above 0 and at most 1, such as `"0.05"` or `"5%"`.

    Raises:
        ValueError: the text is not one.
    """
    number = re.fullmatch(r"([0-9.eE-]{1,40})(%?)", text)
    try:
        value = float(number[1]) / (100 if number[2] else 1) if number else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise ValueError("must be above 0 and at most 1, such as 0.05 or 5%")
    return value


Share = Annotated[float, AsText(parse_share)]
