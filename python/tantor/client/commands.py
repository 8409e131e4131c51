"""Commands to a server, as a client keeps and encodes them."""

import json
from dataclasses import dataclass
from typing import Any

from tantor.errors import DataError


@dataclass(eq=False)
class Command:
    """A command that waits for its reply."""

    ref: str
    action: str
    channel: str | None
    text: str
    # may be sent again on another connection
    is_repeatable: bool
    # sent on the connection that stands
    is_sent: bool = False
    # sent on any connection
    was_sent: bool = False
    # connections that ended with a complaint after it was sent
    complaints: int = 0


def encode_command(action: str, ref: str, fields: dict[str, Any]) -> str:
    """A command as it goes on the wire. Errors: `DataError` for what JSON cannot hold."""
    try:
        text = json.dumps({"action": action, "ref": ref, **fields}, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{action}: {error}") from None
    return text


def check_text(name: str, value: object) -> None:
    """Refuse an argument that is no text, or no text that JSON can hold. Errors: `TypeError`, `DataError`."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; it takes a str")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name} is {value!a}; it takes text without half surrogate pairs") from None
