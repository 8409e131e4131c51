"""Parses messages with numbers that Python's parser refuses, so that one such message does not break the others."""

import json
from typing import Any


class UnreadableMessage(dict[str, Any]):
    """A message in which each field that cannot be parsed is None."""


class _Unreadable:
    """Stands for a number that Python cannot hold."""


_UNREADABLE = _Unreadable()


def read_message(text: str | bytes) -> Any:
    """The value of a JSON text.

    Where an integer has more digits than this interpreter reads, the result is an `UnreadableMessage`; of a reply with
    `publications`, only the publications that hold such an integer are.

    Errors: `ValueError` for text that is not JSON; `RecursionError` for JSON that nests too deeply.
    """
    try:
        return json.loads(text)
    except ValueError:
        value = json.loads(text, parse_int=_read_int)
    if not isinstance(value, dict):
        raise ValueError("an integer has more digits than this interpreter reads")
    publications = value.get("publications")
    if value.get("event") == "reply" and isinstance(publications, list):
        value["publications"] = [_without_unreadable(publication) for publication in publications]
    return _without_unreadable(value)


def _read_int(digits: str) -> int | _Unreadable:
    try:
        return int(digits)
    except ValueError:
        return _UNREADABLE


def _without_unreadable(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    unreadable = [name for name, field in value.items() if _is_unreadable(field)]
    return UnreadableMessage(value, **dict.fromkeys(unreadable)) if unreadable else value


def _is_unreadable(value: Any) -> bool:
    # without recursion, because the parser accepts deeper nesting than recursion here would
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value is _UNREADABLE:
            return True
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return False
