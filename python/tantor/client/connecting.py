"""Where to, and the opening of a WebSocket there."""

import contextlib
import ipaddress
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import (
    InvalidHeader,
    InvalidStatus,
    InvalidUpgrade,
    InvalidURI,
    NegotiationError,
    WebSocketException,
)
from websockets.uri import WebSocketURI, parse_uri

from tantor.client.errors import ConnectError
from tantor.client.reconnect import is_retried, retry_after
from tantor.client.settings import ClientSettings
from tantor.errors import SettingError

Proxy = str | Literal[True] | None
"""The URL of a proxy, True for that of the environment, None for none."""

_get_proxy: Callable[[WebSocketURI], str | None] | None = None
_FINAL: tuple[type[Exception], ...] = (
    InvalidURI,
    InvalidUpgrade,
    InvalidHeader,
    NegotiationError,
    ssl.SSLCertVerificationError,
)
with contextlib.suppress(ImportError):  # websockets before 15 knows no proxies
    from websockets.exceptions import InvalidProxy

    try:
        from websockets.proxy import get_proxy
    except ImportError:
        from websockets.uri import get_proxy  # type: ignore[attr-defined, no-redef]  # where websockets 15 has it
    _get_proxy = get_proxy
    _FINAL = (*_FINAL, InvalidProxy)

# what of the query is the session's
_OWN_PARAMETERS = ("resume", "ack")

# frames that wait in the WebSocket's own buffer before it reads no further
_MAX_QUEUE = 16

_SHOWN_BODY = 200


class RetryError(Exception):
    """An attempt failed, and another one makes sense, not before `after` seconds."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class Target:
    """A Tantor's address, with how to connect to it. Errors: `SettingError` for a URL that is none."""

    def __init__(
        self,
        url: str,
        settings: ClientSettings,
        headers: Mapping[str, str] | None,
        context: ssl.SSLContext | None,
        proxy: Proxy = True,
    ) -> None:
        self._url, self.resume = split_url(url)
        if context is not None and not self._url.startswith("wss:"):
            raise SettingError(f"ssl is given, but url is {url!r}; it takes wss://")
        self._settings = settings
        self._headers = headers
        self._context = context
        self._proxy = choose_proxy(self._url, proxy)

    def __str__(self) -> str:
        parts = urlsplit(self._url)
        # tokens and passwords are not for logs
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))

    async def open(self, query: Mapping[str, str]) -> ClientConnection:
        """Connect. Errors: `RetryError`; `ConnectError` where another attempt makes no sense."""
        settings = self._settings
        options: dict[str, Any] = {} if self._context is None else {"ssl": self._context}
        if _get_proxy is not None:
            options["proxy"] = self._proxy
        try:
            return await open_websocket(
                add_query(self._url, query),
                additional_headers=self._headers,
                compression=None,
                open_timeout=settings.open_timeout,
                close_timeout=settings.close_timeout,
                # the server's heartbeat is watched instead
                ping_interval=None,
                max_size=settings.max_message_bytes,
                max_queue=_MAX_QUEUE,
                **options,
            )
        except (WebSocketException, OSError, EOFError) as error:
            raise explain(self._described, error) from error

    @property
    def _described(self) -> str:
        """The address, with the proxy if there is one."""
        return str(self) if self._proxy is None else f"{self} (through the proxy {_without_password(self._proxy)})"


def choose_proxy(url: str, proxy: Proxy) -> str | None:
    """The URL of the proxy to use for a WebSocket's URL. Errors: `SettingError` for a proxy that cannot be."""
    if proxy is None:
        return None
    if _get_proxy is None:
        if proxy is True:
            return None
        raise SettingError(f"proxy is {proxy!r}; proxies need the package websockets from 15 on")
    if isinstance(proxy, str) and proxy:
        return proxy
    if proxy is not True:
        raise SettingError(f"proxy is {proxy!r}; it takes the URL of a proxy, None, or True for the environment's")
    if _is_loopback(urlsplit(url).hostname or ""):
        return None
    return _get_proxy(parse_uri(url))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def split_url(url: str) -> tuple[str, str | None]:
    """A URL without what the session adds, and the resume token that it had. Errors: `SettingError`."""
    takes = "it takes ws://host:port or wss://host:port, with or without a path"
    if not isinstance(url, str):
        raise SettingError(f"url is {url!r}; {takes}")
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0 and not parts.fragment
    except ValueError:
        is_url = False
    if not is_url:
        raise SettingError(f"url is {url!r}; {takes}")
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    resume = next((value for name, value in parameters if name == "resume" and value), None)
    kept = [(name, value) for name, value in parameters if name not in _OWN_PARAMETERS]
    return urlunsplit(parts._replace(query=urlencode(kept))), resume


def add_query(url: str, query: Mapping[str, str]) -> str:
    """A URL with more parameters."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query="&".join(filter(None, [parts.query, urlencode(query)]))))


def explain(target: str, error: Exception) -> ConnectError | RetryError:
    """What an attempt's failure means."""
    if isinstance(error, InvalidStatus):
        response = error.response
        body = bytes(response.body or b"")[:_SHOWN_BODY].decode(errors="replace").strip()
        problem = f"{target} answered {response.status_code} {response.reason_phrase}: {body}"
        if is_retried(response.status_code):
            return RetryError(problem, retry_after(response.headers))
        return ConnectError(problem)
    problem = f"{target}: {error or type(error).__name__}"
    return ConnectError(problem) if isinstance(error, _FINAL) else RetryError(problem)
