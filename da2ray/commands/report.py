"""`da2ray report`: one page about a dataset."""

import time

from pydantic import field_validator
from rich.console import Console

from da2ray.commands.options import Command, CommandConfig, option, split_list
from da2ray.commands.shared import StorageClient, dataset_url_option, storage_client_option
from da2ray.errors import Exit
from da2ray.storage import canonical_url, open_store, redact, split_uri

DEFAULT_GALLERY = 4
"""With 28 scores that makes at most some 200 labels, whose pictures take 2 MB at 300 pixels."""
MOST_GALLERY = 50


class ReportConfig(CommandConfig):
    """Write one HTML page about a dataset: counts, scores, a gallery, throughput and provenance. It needs no network."""

    url: str = dataset_url_option()
    output: str = option("report.html", "where to write the page: a path, or the URL of an object", metavar="URL")
    view: str | None = option(
        None, "show the rules of this view instead of those of the preset `default`", metavar="NAME"
    )
    snapshot: int | None = option(None, "the snapshot to show [the view's, or the newest]", metavar="NUMBER", ge=1)
    gallery: int = option(
        DEFAULT_GALLERY,
        f"labels to show from each end of each score, 1 to {MOST_GALLERY}; pictures shrink until all fit",
        ge=1,
        le=MOST_GALLERY,
    )
    allow_scheme: list[str] = option(
        [],
        "what else the URIs of a manifest may reach, as for the job: https:host, https, file:/folder",
        metavar="SCHEME",
    )
    storage_client: StorageClient = storage_client_option()

    @field_validator("allow_scheme", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split_list(value)


def report(config: ReportConfig, console: Console) -> int:
    """Write the page of a dataset.

    Raises:
        UserError: there is no dataset, snapshot or view of this name.
        OSError: a store failed.
    """
    # OpenCV and Pillow: `--help` does without them.
    from da2ray.report.gather import gather  # noqa: PLC0415
    from da2ray.report.page import page  # noqa: PLC0415

    began = time.monotonic()
    output = canonical_url(config.output)
    root, key = split_uri(output)
    facts = gather(
        config.url,
        client=config.storage_client,
        view=config.view,
        snapshot=config.snapshot,
        gallery=config.gallery,
        allow=config.allow_scheme,
    )
    html = page(facts).encode()
    open_store(root, config.storage_client).put(key, html)
    console.print(f"{redact(output)}: {len(html) / 1e6:.2f} MB in {time.monotonic() - began:.1f} s")
    return Exit.DONE


COMMAND = Command(ReportConfig, report)
