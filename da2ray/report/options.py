"""The options of `da2ray report`. What it takes (OpenCV, Pillow) is imported when it runs: `da2ray status` starts without."""

import argparse

from rich.console import Console

from da2ray.storage import canonical_url

DEFAULT_OUTPUT = "report.html"
DEFAULT_GALLERY = 4
"""With 28 scores some 200 labels at most, whose pictures are 2 MB at 300 pixels."""
MOST_GALLERY = 50


def add_report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", default=DEFAULT_OUTPUT, metavar="FILE", help="path or URL of the page (default %(default)s)"
    )
    parser.add_argument("--view", metavar="NAME", help="draw this view's rules, not those of the preset `default`")
    parser.add_argument(
        "--snapshot", type=int, metavar="N", help="version to show (default: the view's, or the newest)"
    )
    parser.add_argument(
        "--gallery",
        type=_gallery,
        default=DEFAULT_GALLERY,
        metavar="K",
        help="labels of each end of each score (default %(default)s); pictures shrink until all fit",
    )
    parser.add_argument(
        "--allow-scheme",
        nargs="+",
        default=[],
        metavar="SCHEME",
        help="what else a manifest's images may be read from, as of the job: https:host, https, file:/folder",
    )


def run_report(options: argparse.Namespace, console: Console) -> int:
    from da2ray.report.command import report  # noqa: PLC0415 - see above

    return report(
        options.url,
        canonical_url(options.output),
        console,
        client=options.storage_client,
        view=options.view,
        snapshot=options.snapshot,
        gallery=options.gallery,
        allow=options.allow_scheme,
    )


def _gallery(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MOST_GALLERY:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 to {MOST_GALLERY}")
    return value
