"""What can go wrong for a client."""

from typing import Any

from tantor.errors import TantorError


class ClientError(TantorError):
    """The root of what a client raises of its own, but for `SettingError`."""


class ConnectError(ClientError, ConnectionError):
    """No connection came about; the message says to where, and why."""


class ConnectTimeoutError(ConnectError, TimeoutError):
    """No connection came about in time; the message has what the last attempt ran into."""


class DisconnectedError(ClientError, ConnectionError):
    """The connection has ended for good, and the client does not come back by itself."""

    def __init__(self, message: str, code: int | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        """The close code: 3503 when another connection has resumed this client; None when it was no close."""
        self.reason = reason
        """The reason that came with the code."""


class ClosedError(ClientError):
    """The client was closed by its application, or not opened yet."""


class CommandError(ClientError):
    """The server refused a command."""

    def __init__(self, message: str, code: int, answer: dict[str, Any]) -> None:
        super().__init__(message)
        self.code = code
        """Its number, as in docs/protocol.md, "Errors"."""
        self.answer = answer
        """The whole answer."""


class UncertainError(ClientError):
    """No answer came to a command; the server may have carried the command out."""

    resume: str | None = None
    """Of `send`: the token with which the next attempt connects as the same client; None if the server gave none."""


class CommandTimeoutError(UncertainError, TimeoutError):
    """No answer came to a command in time."""


class CommandLostError(UncertainError, ConnectionError):
    """The connection broke before the answer came, and repeating the command could carry it out twice."""
