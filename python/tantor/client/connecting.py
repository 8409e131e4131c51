"""Where to, and the opening of a WebSocket there."""

import ssl
from collections.abc import Mapping
from typing import Any
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

from tantor.client.errors import ConnectError
from tantor.client.reconnect import is_retried, retry_after
from tantor.client.settings import ClientSettings
from tantor.errors import SettingError

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
        self, url: str, settings: ClientSettings, headers: Mapping[str, str] | None, context: ssl.SSLContext | None
    ) -> None:
        self._url, self.resume = split_url(url)
        if context is not None and not self._url.startswith("wss:"):
            raise SettingError(f"ssl is given, but url is {url!r}; it takes wss://")
        self._settings = settings
        self._headers = headers
        self._context = context

    def __str__(self) -> str:
        parts = urlsplit(self._url)
        # tokens and passwords are not for logs
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))

    async def open(self, query: Mapping[str, str]) -> ClientConnection:
        """Connect. Errors: `RetryError`; `ConnectError` where another attempt makes no sense."""
        settings = self._settings
        options: dict[str, Any] = {} if self._context is None else {"ssl": self._context}
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
            raise explain(str(self), error) from error


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
    final = (InvalidURI, InvalidUpgrade, InvalidHeader, NegotiationError, ssl.SSLCertVerificationError)
    return ConnectError(problem) if isinstance(error, final) else RetryError(problem)
