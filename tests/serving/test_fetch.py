"""What the server fetches because a request says so, on a small internet of this process: hosts
by name, all on the loopback.
"""

import asyncio
import http.server
import ipaddress
import socket
import threading
from collections.abc import Iterator

import pytest
from serving_files import data_address, png

from m3.serving.engine.requests import Refused
from m3.serving.http.api import read_chat
from m3.serving.http.fetch import Fetcher, is_public
from m3.serving.http.schema import ChatRequest
from m3.serving.settings import Settings

FORBIDDEN = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fd12:3456::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "2002:a00:1::1",
    "2001:0:53aa:64c:0:0:f5ff:fffe",
    "2001:db8::1",
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_addresses_of_this_machine_and_network_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


class Answers(http.server.BaseHTTPRequestHandler):
    """/image, /to?ADDRESS (a redirect), /large, /endless (without a length), /slow, anything
    else: 404.
    """

    def do_GET(self) -> None:
        kind, _, rest = self.path[1:].partition("?")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
        elif kind == "image":
            self.answer(png(), len(png()))
        elif kind == "large":
            self.answer(b"x" * 100, 10**12)
        elif kind == "endless":
            self.answer(b"x" * 5000, None)
        elif kind == "slow":
            threading.Event().wait(3)
        else:
            self.send_error(404)

    def answer(self, content: bytes, length: int | None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


NAMES = {
    "good.example": "127.0.0.1",
    "private.example": "10.0.0.1",
    "metadata.example": "169.254.169.254",
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that were resolved; the loopback stands for the internet."""
    names: list[str] = []

    async def resolve(_: object, host: str, port: int, **__: object) -> list[tuple]:
        names.append(host)
        if host not in NAMES:
            raise socket.gaierror("no such host")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (NAMES[host], port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
    return names


def get(address: str, hosts: list[str], max_bytes: int = 4000, seconds: float = 60.0) -> bytes:
    async def fetch() -> bytes:
        fetcher = Fetcher(hosts, permits=lambda one: is_public(one) or str(one) == "127.0.0.1")
        async with asyncio.timeout(seconds):
            return await fetcher(address, max_bytes)

    return asyncio.run(fetch())


def test_an_allowed_host_is_fetched_from(port: int, asked: list[str]) -> None:
    assert get(f"http://good.example:{port}/image", [f"good.example:{port}"]) == png()
    assert get(f"http://GOOD.example:{port}/image", [f"*.example:{port}"]) == png()
    assert asked == ["good.example", "good.example"]


@pytest.mark.parametrize("query", ["a b", "größe", "%20", "a=b&c[]=d+e"])
def test_spaces_and_letters_in_an_address_are_escaped(
    port: int, asked: list[str], query: str
) -> None:
    assert get(f"http://good.example:{port}/image?{query}", [f"good.example:{port}"]) == png()


def test_a_redirect_is_followed_where_it_may_lead(port: int, asked: list[str]) -> None:
    assert get(f"http://good.example:{port}/to?/image", [f"good.example:{port}"]) == png()
    assert asked == ["good.example"] * 2  # checked again


REFUSED = [
    ("http://other.example/a.png", "'other.example' is not among the hosts"),
    ("http://good.example/a.png", "'good.example' is not among the hosts"),  # another port
    ("http://good.example:PORT@evil.example/a", "evil.example|user name"),
    ("http://user:secret@good.example:PORT/image", "user name"),
    ("http://private.example/a.png", "private or local address, which is never fetched"),
    (
        "http://metadata.example/latest/meta-data",
        "private or local address, which is never fetched",
    ),
    (
        "http://good.example:PORT/to?http://private.example/a.png",
        "private or local address, which is never fetched",
    ),
    (
        "http://good.example:PORT/to?http://169.254.169.254/",
        "'169.254.169.254' is not among the hosts",
    ),
    ("http://good.example:PORT/to?http://127.0.0.1:PORT/image", "is not among the hosts"),
    ("http://good.example:PORT/to?file:///etc/passwd", "expected http:// or https://"),
    ("http://good.example:PORT/to?/to?/to?/to?/to?/image", "more than 3 redirects"),
    ("http://good.example:PORT/missing", "answered with status 404"),
    ("http://good.example:PORT/large", "more than this server's limit of 4,000 bytes"),
    ("http://good.example:PORT/endless", "more than this server's limit of 4,000 bytes"),
    ("http://nowhere.example/a.png", "no such host"),
    ("http://good.example:1/a.png", "could not be fetched \\(ConnectError\\)"),
    ("http://good.example:99999/a.png", "is no address"),
    ("http://[::1/a.png", "is no address"),
    ("http:///a.png", "expected http:// or https://, a host"),
    ("http://gööd.example/a.png", "a host in ASCII alone"),
    ("http://good.example:PORT/\r\nX: y", "no control characters"),
    ("ftp://good.example/a.png", "expected http:// or https://"),
]


@pytest.mark.parametrize(("address", "words"), REFUSED, ids=[address for address, _ in REFUSED])
def test_what_is_not_fetched(port: int, asked: list[str], address: str, words: str) -> None:
    hosts = [
        f"good.example:{port}",
        "good.example:1",
        "private.example",
        "metadata.example",
        "nowhere.example",
    ]
    with pytest.raises(Refused, match=words):
        get(address.replace("PORT", str(port)), hosts)


def test_a_host_that_is_not_allowed_is_not_even_resolved(asked: list[str]) -> None:
    with pytest.raises(Refused, match="none"):
        get("http://good.example/a.png", [])
    assert asked == []


def test_the_connection_goes_to_the_address_that_was_checked(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that answers differently the second time is not asked a second time."""
    answers = iter(["127.0.0.1", "10.0.0.1"])

    async def resolve(_: object, host: str, port: int, **__: object) -> list[tuple]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
    assert get(f"http://good.example:{port}/image", [f"good.example:{port}"]) == png()
    assert next(answers) == "10.0.0.1"


def test_waiting_ends(port: int, asked: list[str]) -> None:
    with pytest.raises(TimeoutError):
        get(f"http://good.example:{port}/slow", [f"good.example:{port}"], seconds=0.2)


def test_who_asks_is_told_which_address_did_not_come(port: int, asked: list[str]) -> None:
    """The third of three files, of which the first one stands in the request."""
    host = f"good.example:{port}"
    urls = [data_address(png()), f"http://{host}/image", f"http://{host}/slow"]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    body = ChatRequest.model_validate(
        {"model": "tiny", "messages": [{"role": "user", "content": parts}]}
    )
    fetch = Fetcher([host], permits=lambda _: True)
    with pytest.raises(
        Refused, match=r"messages\.0\.content\.2: this could not be fetched"
    ) as refused:
        asyncio.run(read_chat(body, Settings(fetch_seconds=0.5), fetch))
    assert (refused.value.param, refused.value.code) == ("messages.0.content.2", "fetch_timeout")
