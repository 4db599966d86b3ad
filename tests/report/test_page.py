"""The page needs nothing else, runs only its own script, and shows only images that the dataset's own sources may read."""

import json
import re
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

import da2ray
from da2ray.cli import main
from da2ray.labels.kept_rows import KEPT
from da2ray.labels.reader import open_labels
from da2ray.labels.snapshots import open_snapshot
from da2ray.labels.views import Dedupe, Rule, View, write_view
from da2ray.plan.plan import PlanInfo, list_plans
from da2ray.report.originals import MissingError, Originals
from da2ray.report.page import environment
from da2ray.report.pictures import STEPS, pictures_of
from da2ray.storage import open_store
from tests.jobs import Command
from tests.report.conftest import Page
from tests.report.sample import CHANGED, FORBIDDEN, GONE, IMAGE_KEY, MESSAGE, SCRIPT_KEY, write_dataset
from tests.s3_server import S3Server

MOST_BYTES = 5_000_000
TEMPLATES = Path(da2ray.__file__).parent / "report" / "templates"


def data_of(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def label_of(data: dict, key: str) -> dict:
    return next(label for label in data["labels"] if label["key"] == key)


class Elements(HTMLParser):
    """The page as a browser parses it: its elements, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_and_messages_from_datasets_are_shown_as_text(page: Page) -> None:
    found = Elements(page.html)
    assert sum(tag == "script" for tag, _ in found.elements) == 2
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert not {"i", "img", "iframe", "object", "link"} & {tag for tag, attributes in found.elements} - {"link"}
    assert "<i>0</i>.jpg" in found.text
    assert MESSAGE in found.text
    keys = {label["key"] for label in data_of(page.html)["labels"]}
    assert {SCRIPT_KEY, IMAGE_KEY} <= keys


def test_data_cannot_leave_its_script_element() -> None:
    evil = {"a": "</script><!--<script>&\u2028"}
    written = environment().from_string("{{ evil | tojson }}").render(evil=evil)
    assert not set("<>&\u2028") & set(written)
    assert json.loads(written) == evil


def test_templates_escape_every_value_and_remove_credentials_and_control_characters() -> None:
    value = "<b>&\x1b[31m\n https://user:secret@host/x?sig=1"
    written = environment().from_string('<p title="{{ value }}">{{ value }}</p>').render(value=value)
    shown = "&lt;b&gt;&amp;\\x1b[31m\\n https://host/x"
    assert written == f'<p title="{shown}">{shown}</p>'


def test_templates_trust_nothing_but_our_own_style_and_script() -> None:
    trusted = [
        expression.strip()
        for template in TEMPLATES.iterdir()
        for expression in re.findall(r"{[{%](.*?)[}%]}", template.read_text(encoding="utf-8"))
        if re.search(r"\bsafe\b|autoescape|Markup", expression)
    ]
    assert sorted(trusted) == ["script | safe", "style | safe"]


def test_the_package_data_holds_every_template_and_static_file() -> None:
    root = Path(da2ray.__file__).parent
    project = tomllib.loads((root.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["da2ray"]
    packed = {path for pattern in patterns for path in root.glob(pattern)}
    needed = [path for folder in (TEMPLATES, TEMPLATES.parent / "static") for path in folder.iterdir()]
    assert len(needed) > 10
    assert set(needed) <= packed


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    found = Elements(page.html).elements
    for _, attributes in found:
        for name in ("src", "href", "action", "style", "srcset", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), attributes
    (policy,) = [each["content"] for tag, each in found if tag == "meta" and "http-equiv" in each]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"@import|url\(", re.search(r"<style>(.*?)</style>", page.html, re.DOTALL)[1])


def test_a_default_report_of_all_scores_is_below_five_megabytes(page: Page) -> None:
    assert page.path.stat().st_size < MOST_BYTES


def test_pictures_shrink_until_all_of_them_fit(page: Page) -> None:
    labels = open_labels(str(page.dataset))
    rows = [row for row in labels.index.to_pylist() if row["status"] == "labelled"]
    originals = Originals({plan.id: plan.info for plan in list_plans(labels.store)})

    def total(budget: int) -> int:
        return sum(
            len(each.data) for one in pictures_of(labels, rows, originals, budget) for each in one.pictures.values()
        )

    large = total(100 * MOST_BYTES)
    assert total(large * 2 // 3) <= large * 2 // 3
    smallest = pictures_of(labels, rows, originals, 1)
    assert max(max(each.width, each.height) for one in smallest for each in one.pictures.values()) == STEPS[-1][0]


def test_each_picture_is_there_once_however_many_galleries_show_it(page: Page) -> None:
    data = data_of(page.html)
    numbers = [number for label in data["labels"] for number in label["pictures"].values()]
    assert sorted(numbers) == list(range(len(data["pictures"])))
    places = [at for score in data["scores"] for _, row in score["rows"] for at in row]
    assert len(places) > 3 * len(data["labels"]) > 3 * len(set(places)) - 1
    assert set(places) == set(range(len(data["labels"])))


def test_an_image_that_cannot_be_shown_says_why_and_its_depth_is_there(page: Page, tmp_path: Path) -> None:
    assert main(["report", str(page.dataset), "--output", str(tmp_path / "all.html"), "--gallery", "40"]) == 0
    data = data_of((tmp_path / "all.html").read_text())
    for key, why in (
        (GONE, "no longer exists"),
        (CHANGED, "changed since"),
        (FORBIDDEN, "--allow-scheme http:127.0.0.1:9"),
    ):
        label = label_of(data, key)
        assert why in label["problems"]["image"]
        assert set(label["pictures"]) == {"depth", "confidence"}


def test_configurations_are_shown_without_credentials(page: Page) -> None:
    assert "https://host/x" in page.html
    assert "secret" not in page.html
    assert "sig=1" not in page.html


def test_the_page_says_in_words_what_to_look_at(page: Page) -> None:
    text = Elements(page.html).text
    assert "27 of 35 images (77 %) have a label." in text
    assert "20 % failed, all truncated." in text
    assert "2.9 % were rejected by a policy, all too_small." in text
    assert "its teacher was busy 40% of the time: reading or writing held it up" in text
    assert "Not measured: the scores of --checker NAME." in text


def test_a_dataset_without_scores_or_runs_still_has_a_page(tmp_path: Path, command: Command) -> None:
    dataset = write_dataset(tmp_path, 2, scores=False)
    for path in sorted((dataset / "runs").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    code, text, _ = command("report", dataset, "--output", tmp_path / "deep" / "page.html")
    assert code == 0
    assert "page.html" in text
    assert "No run has written its progress." in (tmp_path / "deep" / "page.html").read_text()


def test_a_report_can_be_written_to_a_bucket(page: Page, s3: S3Server, command: Command) -> None:
    url = s3.create_bucket()
    assert command("report", page.dataset, "--output", f"{url}/a/report.html", "--gallery", 1)[0] == 0
    assert b"<!doctype html>" in open_store(url).get("a/report.html")


@pytest.mark.parametrize(
    ("options", "why"), [(["--gallery", "0"], "--gallery: must be at least 1"), (["--snapshot", "9"], "no snapshot 9")]
)
def test_wrong_options_are_explained(
    page: Page, capsys: pytest.CaptureFixture[str], options: list[str], why: str
) -> None:
    assert main(["report", str(page.dataset), *options]) == 2
    assert why in capsys.readouterr().err


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A web server on loopback, and the paths that clients requested."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", asked
    running.shutdown()


def plan(kind: str, url: str, root: str) -> PlanInfo:
    return PlanInfo({"kind": kind, "url": url}, root, 1, 1, None, "", 1, 1, None)


def test_only_images_that_the_source_allows_are_requested(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    url, asked = server
    (tmp_path / "outside.jpg").write_bytes(b"secret")
    plans = {"m": plan("manifest", "s3://bucket/m.csv", "s3://bucket"), "p": plan("prefix", "/images", "/images")}
    # A plan of `--retry-failed`, as `da2ray.plan.retry` makes it.
    plans["r"] = replace(plans["m"], source={"kind": "retry", "of": "manifest", "url": "s3://bucket/m.csv"})
    row = {"sha256": None, "height": 9, "width": 9, "image_offset": None, "image_row": None}
    for name, uri in (
        ("m", f"{url}/x.jpg"),
        ("m", str(tmp_path / "outside.jpg")),
        ("p", str(tmp_path / "outside.jpg")),
        ("p", f"/images/../{tmp_path}/outside.jpg"),
        ("p", f"{url}/x.jpg"),
        ("gone", f"{url}/x.jpg"),
    ):
        with pytest.raises(MissingError, match=r"not allowed|not a public|not below|is missing"):
            Originals(plans).read(row | {"plan": name, "uri": uri}, (9, 9))
    assert asked == []
    for name in ("m", "r"):
        with pytest.raises(MissingError, match="no longer exists"):
            Originals(plans, allow=[f"http:{url.removeprefix('http://')}"]).read(
                row | {"plan": name, "uri": f"{url}/x.jpg"}, (9, 9)
            )
    assert set(asked) == {"/x.jpg"}


def test_an_image_within_a_file_is_read_by_its_range(page: Page, tmp_path: Path) -> None:
    labels = open_labels(str(page.dataset))
    row = next(row for row in labels.index.to_pylist() if row["status"] == "labelled")
    image = Path(row["uri"]).read_bytes()
    (tmp_path / "a.tar").write_bytes(b"x" * 512 + image + b"y" * 99)
    inside = row | {"plan": "t", "uri": str(tmp_path / "a.tar"), "image_offset": 512, "image_length": len(image)}
    originals = Originals({"t": plan("tar", str(tmp_path), str(tmp_path))})
    assert originals.read(inside, (9, 9)).shape[2] == 3
    with pytest.raises(MissingError, match="has changed"):
        originals.read(inside | {"image_offset": 511}, (9, 9))


def test_a_report_of_a_view_draws_its_rules_and_says_what_it_keeps(tmp_path: Path, command: Command) -> None:
    dataset = write_dataset(tmp_path, 12)
    store = open_store(str(dataset))
    rows = open_snapshot(store).rows
    kept = pa.table({"row": [0, 2], "key": [SCRIPT_KEY, "crops/0000.jpg"], "split": ["train", "val"]}, schema=KEPT)
    rules = (Rule(name="<b>even</b>", where="flip_p90 below p40", resolved="flip_p90 < 2.5", removes=9, alone=1),)
    made = View(name="few", created="2026-11-25T00:00:00", snapshot=1, rows=rows, rules=rules, val_share=0.5)
    made = made.model_copy(update={"dedupe": Dedupe(distance=4, clusters=3, removed=5)})
    write_view(store, made, kept)
    page = tmp_path / "page.html"
    assert command("report", dataset, "--output", page, "--view", "few")[0] == 0
    found = Elements(page.read_text())
    assert "The view few keeps 2 labels (13 %); its rule <b>even</b>, flip_p90 < 2.5, removes most (60 %)" in found.text
    assert [tag for tag, each in found.elements if each.get("class") == "threshold"] == ["path"]
    values = [row["flip_p90"] for row in open_labels(str(dataset)).index.to_pylist() if row["status"] == "labelled"]
    assert "dedupe no better look-alike within 4 bits 5 5 33 %" in " ".join(found.text.split())
    removed = sum(not value < 2.5 for value in values)
    assert f"(<b>even</b>: {removed})" in found.text
    code, _, text = command("report", dataset, "--output", page, "--view", "few", "--snapshot", 2)
    assert (code, "view few is of snapshot 1" in text) == (2, True)
    assert "no view 'none'" in command("report", dataset, "--output", page, "--view", "none")[2]
