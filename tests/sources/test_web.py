"""A signed URL covers its path and query literally, so web servers are asked byte for byte for what is written."""

import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import da2ray
from da2ray.errors import UserError
from da2ray.sources import Member, MemberSource, members_of, open_source
from da2ray.sources.allowed import Allowed
from da2ray.sources.fetch import fetch
from da2ray.storage import open_store
from da2ray.storage.web import request_url
from tests.sources.web_server import WebServer, web_server

PATHS = [
    "/a%3Db%2Cc%28d%29.jpg", "/SIG=/320x0/http%3A%2F%2Fh%2Fx.jpg", "/x.jpg?Policy=p%2Fq%7E&Signature=s%3D", "/x.jpg?token=abc/",
    "/x.jpg?a=%2f%2F&b=+%20", "/%7Ex/~x/x.jpg", "/a/./b/../c.jpg", "/a//b.jpg", "/x.jpg?=&&a", "/a.jpg/",
    "/x?a=b?c=d/../e", "/(a),;'!*@:$&=.jpg", "/%e4%B8%ad.jpg", "/%25.jpg", "/a%.jpg", "/%zz.jpg", '/a|b^c{d}[e]`\\"<f>.jpg',
    "/x.jpg?u=http://h/y.jpg",
]  # fmt: skip


def body_of(web: WebServer, path: str) -> object:
    allowed = Allowed.of("/m.csv", [f"http:127.0.0.1:{web.port}"])
    (sample,) = fetch([Member("k", web.url + path)], 1, allowed=allowed)
    return sample.body


def test_a_url_is_requested_as_it_is_written() -> None:
    with web_server(dict.fromkeys(PATHS, b"x")) as web:
        for path in PATHS:
            web.asked.clear()
            assert body_of(web, path) == b"x"
            assert web.asked == [path]


def test_a_redirect_is_followed_as_it_is_written() -> None:
    with web_server(dict.fromkeys(PATHS, b"x")) as web:
        for path in PATHS:
            web.answers["/from"] = web.url + path
            web.asked.clear()
            assert body_of(web, "/from") == b"x", path
            assert web.asked == ["/from", path]


def test_a_signed_manifest_is_requested_as_it_is_written() -> None:
    for path in ("/m%2Dx.csv?sig=%2f+a/", "/m.csv?Policy=p%7E&Signature=s%3D"):
        with web_server({path: b"uri\na.jpg?t=%2f/\n", "/a.jpg?t=%2f/": b"x"}) as web:
            source = open_source(web.url + path)
            assert isinstance(source, MemberSource)
            members = [member for batch in source.members() for member in members_of(batch)]
            assert [sample.body for sample in source.fetch(members, 1)] == [b"x"]
            assert set(web.asked) == {path, "/a.jpg?t=%2f/"}


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("http://h/a b.jpg", "/a%20b.jpg"),
        ("http://h/ü.jpg?ä", "/%C3%BC.jpg?%C3%A4"),
        ("http://h/a\r\nX: y", "/a%0D%0AX:%20y"),
        ("http://h", "/"),
        ("http://h?a", "/?a"),
        ("http://h//a.jpg", "//a.jpg"),
        ("http://h/a.jpg?", "/a.jpg?"),
    ],
)
def test_only_what_no_request_can_hold_is_quoted(text: str, asked: str) -> None:
    assert request_url(text).raw_path_qs == asked


def test_a_host_outside_ascii_is_asked_by_its_name_in_the_dns() -> None:
    assert request_url("http://bücher.example/ü").raw_host == "xn--bcher-kva.example"


@given(path=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=20))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_printable_path_is_requested_as_it_is_written(path: str) -> None:
    assert request_url(f"http://h/{path}").raw_path_qs == f"/{path}"


def test_the_user_agent_names_the_program_and_can_be_set(tmp_path: Path) -> None:
    with web_server({"/m.csv": b"uri\na.jpg\n", "/a.jpg": b"x"}) as web:
        for agent in (None, "mybot/1.0 (me@example.org)"):
            web.agents.clear()
            source = pickle.loads(pickle.dumps(open_source(f"{web.url}/m.csv", user_agent=agent)))  # noqa: S301
            list(source.fetch([member for batch in source.members() for member in members_of(batch)], 1))
            assert web.agents == {agent or f"da2ray/{da2ray.__version__}"}
        web.agents.clear()
        assert open_store(web.url).get("a.jpg") == b"x"
        assert web.agents == {f"da2ray/{da2ray.__version__}"}


def test_a_web_folder_cannot_have_a_query() -> None:
    with pytest.raises(UserError, match="query"):
        open_store("https://h/folder?sig=x")
