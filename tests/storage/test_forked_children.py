"""A forked child reads with file systems of its own, and never ends those of its parent: nothing of it shows on stderr."""

import os
import subprocess
import sys
from pathlib import Path

from da2ray.storage import open_store
from tests.any_key_s3 import any_key_s3
from tests.s3_server import S3Server

SCRIPT = """
import asyncio, gc, os, sys
from fsspec.asyn import get_loop
from da2ray.storage import open_store

async def collect():  # in the loop's thread, where an event loop runs
    gc.collect()

s3, web = sys.argv[1:]
stores = [open_store(s3, "obstore"), *(open_store(s3, "fsspec") for _ in range(2)), open_store(web)]
assert {store.get("a.jpg") for store in stores} == {b"x"}
assert [batch.num_rows for batch in stores[0].list()] == [1]
children = []
for leave in (os._exit, sys.exit):
    children.append(os.fork())
    if not children[-1]:
        for store in (stores[1], open_store(s3, "fsspec"), stores[3]):
            assert store.get("a.jpg") == b"x"
        del stores, store
        asyncio.run_coroutine_threadsafe(collect(), get_loop()).result()
        assert open_store(s3, "fsspec").get("a.jpg") == b"x"
        gc.collect()
        leave(0)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
assert {store.get("a.jpg") for store in stores} == {b"x"}  # the parent's connections still work
"""


def test_a_forked_child_that_drops_its_parents_stores_is_silent(s3: S3Server, tmp_path: Path) -> None:
    url = s3.create_bucket()
    open_store(url).put("a.jpg", b"x")
    (tmp_path / "fork.py").write_text(SCRIPT)
    with any_key_s3({"a.jpg": b"x"}) as web:
        ended = subprocess.run(
            [sys.executable, tmp_path / "fork.py", url, f"http://127.0.0.1:{web.port}/b"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    assert (ended.returncode, ended.stderr) == (0, "")
