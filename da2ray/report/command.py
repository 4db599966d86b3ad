"""`da2ray report`: gathers the facts and writes the page."""

import time
from collections.abc import Sequence

from rich.console import Console

from da2ray.errors import Exit
from da2ray.report.gather import gather
from da2ray.report.page import page
from da2ray.storage import Client, canonical_url, open_store, redact, split_uri


def report(
    url: str,
    output: str,
    console: Console,
    *,
    client: Client = "auto",
    view: str | None = None,
    snapshot: int | None = None,
    gallery: int,
    allow: Sequence[str] = (),
) -> int:
    """Write the page of a dataset to `output`, a path or the URL of an object.

    Args:
        view: name of the view whose rules are drawn; None for the preset `default`.
        snapshot: number of a version; None is that of the view, or the newest.
        gallery: labels to show of each end of each score, and at random.
        allow: where a manifest's images may be read, as `--allow-scheme` of the job.

    Raises:
        UserError: there is no dataset, snapshot or view of this name.
        OSError: a store failed.
    """
    began = time.monotonic()
    root, key = split_uri(canonical_url(output))
    html = page(gather(url, client=client, view=view, snapshot=snapshot, gallery=gallery, allow=allow)).encode()
    open_store(root, client).put(key, html)
    console.print(f"{redact(output)}: {len(html) / 1e6:.2f} MB in {time.monotonic() - began:.1f} s")
    return Exit.DONE
