"""An S3 on loopback whose objects may have any key. SeaweedFS keeps objects in folders, so it can hold no `//` and no `..`.

It does not check signatures. Listings come in pages, in the order of the keys' UTF-8 bytes, as S3 gives them.
"""

import hashlib
import html
import http.server
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

PAGE = 3
"""Keys in an answer to a listing, so few that a test has several pages."""


@dataclass
class AnyKeyS3:
    """`objects` is the content of the bucket `b`; `asked` holds the method and target of each request, byte for byte."""

    port: int
    objects: dict[str, bytes]
    asked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "y",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def any_key_s3(objects: Mapping[str, bytes]) -> Iterator[AnyKeyS3]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            key, query = self.target()
            if not key:
                options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
                self.answer(200, listing(s3.objects, options))
            elif key not in s3.objects:
                self.answer(404, b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>")
            elif wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                body = s3.objects[key]
                first, last = int(wanted[1]), min(int(wanted[2]), len(body) - 1)
                self.answer(206, body[first : last + 1], f"bytes {first}-{last}/{len(body)}")
            else:
                self.answer(200, s3.objects[key])

        def do_DELETE(self) -> None:
            s3.objects.pop(self.target()[0], None)
            self.answer(204)

        def do_POST(self) -> None:
            """Delete the objects that the body names."""
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            named = re.findall("<Key>(.*?)</Key>", body, re.DOTALL)
            for key in named:
                s3.objects.pop(html.unescape(key), None)
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in named)
            self.answer(
                200, f'<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{deleted}</DeleteResult>'.encode()
            )

        def target(self) -> tuple[str, str]:
            """The key and the query."""
            s3.asked.append((self.command, self.path))
            path, _, query = self.path.partition("?")
            return urllib.parse.unquote(path.removeprefix("/").partition("/")[2]), query

        do_HEAD = do_GET  # noqa: N815

        def answer(self, status: int, body: bytes = b"", part: str | None = None) -> None:
            self.send_response(status)
            if part:
                self.send_header("Content-Range", part)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{_etag(body)}"')
            self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        s3 = AnyKeyS3(server.server_port, dict(objects))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield s3
        server.shutdown()
        thread.join()


def listing(objects: Mapping[str, bytes], options: Mapping[str, str]) -> bytes:
    """A page of ListObjectsV2. Keys are quoted if the client asks for it, because XML has no control characters."""
    prefix = options.get("prefix", "")
    after = options.get("start-after", "").encode()
    if "continuation-token" in options:
        after = bytes.fromhex(options["continuation-token"])
    keys = sorted((key for key in objects if key.startswith(prefix) and key.encode() > after), key=str.encode)
    page = keys[:PAGE]
    quoted = options.get("encoding-type") == "url"
    rows = "".join(
        f"<Contents><Key>{urllib.parse.quote(key, safe='/') if quoted else _escaped(key)}</Key>"
        f"<LastModified>2025-01-01T00:00:00.000Z</LastModified><ETag>&quot;{_etag(objects[key])}&quot;</ETag>"
        f"<Size>{len(objects[key])}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for key in page
    )
    more = len(keys) > len(page)
    token = f"<NextContinuationToken>{page[-1].encode().hex()}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>'
        f"{'<EncodingType>url</EncodingType>' if quoted else ''}<KeyCount>{len(page)}</KeyCount>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"
    ).encode()


def _escaped(text: str) -> str:
    return "".join(char if char.isalnum() or char in "/.-_ " else f"&#{ord(char)};" for char in text)


def _etag(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()  # noqa: S324 - as S3 does
