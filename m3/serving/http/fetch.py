"""Fetches what a request names, if it may: the one place where the server opens a connection
because somebody told it to.

In: an address and the most bytes it may have. Out: its content, or `Refused`.

Only hosts of the list are asked. A name is resolved once, all its addresses must be public, and the
connection goes to the address that was checked, so that a name cannot point elsewhere in the
meantime (DNS rebinding). Redirects go through the same door.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import httpcore2

from m3.serving.engine.requests import Refused

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 3
SAFE = "".join(map(chr, range(0x21, 0x7F)))
"""Characters of a path or query that are sent as they are; others, spaces and letters beyond ASCII,
are escaped as browsers do.
"""
AT_A_TIME = 8
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""NAT64: an IPv4 address, perhaps a private one, in an IPv6 one that looks public."""


def is_public(address: IPAddress) -> bool:
    """Tell whether an address belongs to the internet at large: not this machine, not this network,
    not one in disguise.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in TRANSLATED or address.sixtofour is not None or address.teredo is not None:
            return False
    special = (
        address.is_multicast or address.is_reserved or address.is_link_local or address.is_loopback
    )
    return address.is_global and not address.is_private and not special


class Fetcher:
    """`hosts`: names as they stand in addresses: `images.example.org`, `*.example.org` for all
    below, with `:port` for another
    port than HTTP's own. `permits` says which addresses may be connected to; tests have a network
    of their own."""

    def __init__(
        self, hosts: Iterable[str], permits: Callable[[IPAddress], bool] = is_public
    ) -> None:
        self._hosts = tuple(host.lower() for host in hosts)
        self._backend = _Checked(permits)
        self._places = asyncio.Semaphore(AT_A_TIME)

    async def __call__(self, address: str, max_bytes: int) -> bytes:
        """Whoever calls sets the time limit."""
        async with (
            self._places,
            httpcore2.AsyncConnectionPool(network_backend=self._backend) as pool,
        ):
            for _ in range(MAX_REDIRECTS + 1):
                address_parts = self.check(address)
                try:
                    fetched_bytes, location = await _get(pool, address_parts, max_bytes)
                except (
                    httpcore2.NetworkError,
                    httpcore2.ProtocolError,
                    httpcore2.TimeoutException,
                    OSError,
                ) as error:
                    raise Refused(
                        f"{_shown(address)} could not be fetched ({type(error).__name__})"
                    ) from error
                if location is None:
                    return fetched_bytes
                address = urljoin(address, location)
        raise Refused(f"{_shown(address)}: more than {MAX_REDIRECTS} redirects")

    def check(self, address: str) -> SplitResult:
        """The address in parts, escaped, if its host is one of the list."""
        try:
            address_parts = urlsplit(address)
            port = address_parts.port
        except ValueError as error:
            raise Refused(f"{_shown(address)} is no address ({error})") from error
        if (
            address_parts.scheme not in PORTS
            or not address_parts.hostname
            or not address_parts.netloc.isascii()
            or not address.isprintable()
        ):
            raise Refused(
                f"{_shown(address)}: expected http:// or https://, a host in ASCII alone, and no "
                "control characters"
            )
        if address_parts.username is not None or address_parts.password is not None:
            raise Refused(
                f"{_shown(address_parts.hostname)}: an address with a user name in it is not "
                "fetched"
            )
        host = (
            address_parts.hostname
            if port in (None, PORTS[address_parts.scheme])
            else f"{address_parts.hostname}:{port}"
        )
        if not any(
            host == allowed_host
            or (allowed_host.startswith("*.") and host.endswith(allowed_host[1:]))
            for allowed_host in self._hosts
        ):
            allowed_text = f"those of {', '.join(self._hosts)}" if self._hosts else "none"
            raise Refused(
                f"{_shown(host)} is not among the hosts that this server fetches from "
                f"({allowed_text}): send the content as a data: "
                "address, or have the host added to allowed_hosts",
                code="host_not_allowed",
            )
        return address_parts._replace(
            path=quote(address_parts.path, safe=SAFE), query=quote(address_parts.query, safe=SAFE)
        )


async def _get(
    pool: httpcore2.AsyncConnectionPool, address_parts: SplitResult, max_bytes: int
) -> tuple[bytes, str | None]:
    """The content, or where it has gone to."""
    headers = [
        ("Host", address_parts.netloc),
        ("Accept-Encoding", "identity"),
        ("User-Agent", "m3"),
    ]
    address = address_parts._replace(fragment="").geturl()
    async with pool.stream("GET", address, headers=headers) as response:
        response_headers = {
            header_name.lower(): header_value.decode("latin-1")
            for header_name, header_value in response.headers
        }
        if response.status in REDIRECTS and b"location" in response_headers:
            return b"", response_headers[b"location"]
        if response.status != 200:
            raise Refused(f"{_shown(address)} answered with status {response.status}")
        content_length = response_headers.get(b"content-length", "0")
        received_bytes = bytearray()
        if not content_length.isdigit() or int(content_length[:20]) <= max_bytes:
            async for chunk in response.aiter_stream():
                received_bytes += chunk
                if len(received_bytes) > max_bytes:
                    break
            else:
                return bytes(received_bytes), None
        raise Refused(f"{_shown(address)} has more than this server's limit of {max_bytes:,} bytes")


class _Checked(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that were looked at, never to names."""

    def __init__(self, permits: Callable[[IPAddress], bool]) -> None:
        self._permits, self._backend = permits, httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await _resolve(host, port)
        if not all(self._permits(ipaddress.ip_address(address)) for address in addresses):
            raise Refused(
                f"{_shown(host)} leads to a private or local address, which is never fetched",
                code="private_address",
            )
        return await self._backend.connect_tcp(  # pyright: ignore[reportAttributeAccessIssue]  # it sees a stand-in
            addresses[0], port, timeout, local_address, socket_options
        )

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def _resolve(host: str, port: int) -> Sequence[str]:
    try:
        address_infos = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as error:
        raise Refused(f"{_shown(host)}: no such host") from error
    return [str(socket_address[0]).partition("%")[0] for *_, socket_address in address_infos]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}...")
