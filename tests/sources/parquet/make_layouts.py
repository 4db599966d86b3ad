"""Writes `layouts/`: Parquet files as other packages write them.

Run it in an environment of its own: `pip install datasets img2dataset pillow` and `python tests/sources/parquet/make_layouts.py`.
"""

import functools
import http.server
import io
import sys
import tempfile
import threading
from pathlib import Path

from PIL import Image

LAYOUTS = Path(__file__).parent / "layouts"
COUNT = 12


def picture(number: int) -> bytes:
    """A small JPEG that is unlike those of other numbers."""
    out = io.BytesIO()
    Image.new("RGB", (24 + number, 20), (number * 20, 255 - number * 20, 99)).save(out, "JPEG")
    return out.getvalue()


def hugging_face(folder: Path) -> None:
    """`Dataset.to_parquet` with a feature Image: bytes and paths, once embedded, once as paths of files beside it."""
    import pyarrow.parquet as pq
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": Value("int64"), "mask": ImageFeature()})
    rows = [
        {"image": {"bytes": picture(each), "path": "same.jpg" if each % 2 else None}, "label": each, "mask": None}
        for each in range(COUNT)
    ]
    Dataset.from_list(rows, features=features).to_parquet(folder / "hugging_face.parquet", batch_size=5)
    beside = folder / "external" / "beside"
    beside.mkdir(parents=True, exist_ok=True)
    for each in range(3):
        (beside / f"{each}.jpg").write_bytes(picture(each))
    external = [
        {"image": {"bytes": None, "path": f"beside/{each}.jpg"}, "label": each, "mask": None} for each in range(3)
    ]
    external.append({"image": {"bytes": picture(3), "path": None}, "label": 3, "mask": None})
    # Written without embedding, as `datasets` keeps it on disk.
    pq.write_table(Dataset.from_list(external, features=features).data.table, folder / "external" / "data.parquet")


def img2dataset(folder: Path) -> None:
    """`download(output_format="parquet")` of 12 images, two of which are not there."""
    from img2dataset import download

    with tempfile.TemporaryDirectory() as scratch:
        web = Path(scratch) / "web"
        web.mkdir()
        for each in range(COUNT):
            if each not in (4, 9):
                (web / f"{each}.jpg").write_bytes(picture(each))
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(web))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = Path(scratch) / "urls.txt"
        urls.write_text("".join(f"http://127.0.0.1:{server.server_port}/{each}.jpg\n" for each in range(COUNT)))
        download(
            url_list=str(urls),
            input_format="txt",
            output_folder=str(folder / "img2dataset"),
            output_format="parquet",
            processes_count=1,
            thread_count=1,
            number_sample_per_shard=7,
            resize_mode="no",
        )
        server.shutdown()


if __name__ == "__main__":
    LAYOUTS.mkdir(exist_ok=True)
    for make in (hugging_face, img2dataset):
        if len(sys.argv) < 2 or make.__name__ in sys.argv[1:]:
            make(LAYOUTS)
