"""Signed CloudEvents to a receiver's URL (Standard Webhooks 1.0)."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from domain.outbox import (
    CLOUDEVENTS_CONTENT_TYPE,
    Endpoint,
    ErrorClass,
    Message,
    blame_of_status,
    webhook_signature,
)
from sinks import SendFailed

TIMEOUT_SECONDS = 10.0
_ERROR_BODY_BYTES = 200


Lookup = Callable[..., Awaitable[list[tuple[Any, ...]]]]
"""Finds a name's addresses: `getaddrinfo` of the event loop."""


class ForbiddenAddress(OSError):
    """The target is in a range that webhooks may not reach."""


@lru_cache
def url_problem(url: str, *, allow_private: bool) -> str | None:
    """What is wrong with a webhook's URL as it is written, in one sentence; None when nothing is.

    A name is only resolved when a message is sent, and then connected to by the very address that was checked.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        # As aiohttp reads it: a host in full-width digits becomes an address, which it connects to unresolved.
        connected = URL(url).raw_host or host
    except ValueError:
        return "The URL cannot be read."
    if parts.scheme not in ("http", "https"):
        return "The URL's scheme is neither http nor https."
    if not host or not connected:
        return "The URL names no host."
    if not _may_be_named(connected):
        return "The URL's host cannot be a host's name."
    if parts.username is not None or parts.password is not None:
        return "The URL carries credentials; messages are signed instead."
    if not allow_private and (address := _literal_address(connected)) is not None and not _is_public(address):
        return f"The address {address} is private; WAYBILL_WEBHOOK_ALLOW_PRIVATE=1 allows such targets."
    return None


def _may_be_named(host: str) -> bool:
    try:
        return len(host.encode("idna")) <= 253
    except UnicodeError:
        return ":" in host  # an IPv6 address


def _literal_address(host: str) -> str | None:
    """The address that a host is a spelling of (`127.1`, `0x7f000001`, `2130706433`, `::1`), if it is one at all."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # An IPv4 address in IPv6 clothes (mapped, 6to4, NAT64) goes where the IPv4 address goes.
        embedded = ip.ipv4_mapped or ip.sixtofour
        if embedded is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if embedded is not None:
            ip = embedded
        elif ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast


class _CheckedResolver(AbstractResolver):
    """Resolves a name once, and hands out only addresses that may be connected to."""

    def __init__(self, lookup: Lookup, *, allow_private: bool) -> None:
        self._lookup = lookup
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            found = await self._lookup(host, port, type=socket.SOCK_STREAM, family=family)
        except ValueError as error:  # not even a name: an empty or an overlong label
            raise ForbiddenAddress(f"{host} cannot be a host's name") from error
        results = [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=found_family,
                proto=proto,
                flags=socket.AI_NUMERICHOST,
            )
            for found_family, _, proto, _, address in found
            if self._allow_private or _is_public(str(address[0]))
        ]
        if not results:
            raise ForbiddenAddress(f"{host} resolves to private addresses only")
        return results

    async def close(self) -> None:
        """Nothing is kept."""


class WebhookSink:
    """POSTs each message to its endpoint's URL, signed with its live secrets. Open it inside an event loop."""

    def __init__(
        self, *, allow_private: bool, timeout_seconds: float = TIMEOUT_SECONDS, lookup: Lookup | None = None
    ) -> None:
        self._allow_private = allow_private
        self._timeout_seconds = timeout_seconds
        connector = aiohttp.TCPConnector(
            limit=0,  # each endpoint's pumps have a limit of their own: a slow one takes nobody's connections
            resolver=_CheckedResolver(lookup or asyncio.get_running_loop().getaddrinfo, allow_private=allow_private),
            use_dns_cache=False,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def send(self, endpoint: Endpoint, message: Message) -> None:
        """Deliver one message; any 2xx is success. Raises SendFailed."""
        url = endpoint.url or ""
        if problem := url_problem(url, allow_private=self._allow_private):
            raise SendFailed(ErrorClass.ENDPOINT, problem)
        body = message.body
        try:
            async with self._session.post(
                url, data=body, headers=_headers(endpoint, message, body), allow_redirects=False
            ) as response:
                if 200 <= response.status < 300:
                    return
                answer = await _explanation(response)
        except TimeoutError:
            raise SendFailed(None, f"no answer within {self._timeout_seconds:g} s") from None
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL, ForbiddenAddress) as error:
            raise SendFailed(_blame_of_connect(error), _described(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise SendFailed(None, _described(error)) from error
        raise SendFailed(
            blame_of_status(response.status),
            f"HTTP {response.status}",
            answer.decode(errors="replace"),
            retry_after_seconds=retry_after_seconds(response.headers.get("Retry-After"), message.claimed_at),
            gone=response.status == HTTPStatus.GONE,
        )


async def _explanation(response: aiohttp.ClientResponse) -> bytes:
    """The beginning of what the receiver says; its status counts even if that never comes."""
    try:
        return await response.content.read(_ERROR_BODY_BYTES)
    except (aiohttp.ClientError, OSError, TimeoutError):
        return b""


def retry_after_seconds(header: str | None, now: float) -> float:
    """What a `Retry-After` header asks for at `now` (RFC 9110, section 10.2.3: seconds, or a date); 0 for nonsense."""
    if header is None:
        return 0.0
    if header.isascii() and header.isdigit():
        return float(header[:9])
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    # A date without a zone is meant as UTC.
    return max(0.0, at.replace(tzinfo=at.tzinfo or UTC).timestamp() - now)


def _headers(endpoint: Endpoint, message: Message, body: bytes) -> dict[str, str]:
    # The database's clock: receivers refuse what is signed by one that is minutes off.
    timestamp = int(message.claimed_at)
    signatures = (webhook_signature(secret, message.event_id, timestamp, body) for secret in endpoint.secrets)
    return {
        "content-type": CLOUDEVENTS_CONTENT_TYPE,
        "user-agent": "Waybill",
        "webhook-id": message.event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def _blame_of_connect(error: Any) -> ErrorClass | None:
    """Refused, unresolvable, untrusted or forbidden is the endpoint's; one that breaks off may be anybody's."""
    cause = getattr(error, "os_error", None)
    if isinstance(cause, ConnectionResetError | TimeoutError):
        return None
    return ErrorClass.ENDPOINT


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
