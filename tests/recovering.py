"""For the tests of recovery: publishing on a channel, and the position of a channel."""

from typing import Any

from tantor import Tantor


def publish(server: Tantor, channel: str, count: int, start: int = 1) -> None:
    for number in range(start, start + count):
        server.broadcast(channel, "n", number)


def data(publications: list[dict[str, Any]]) -> list[Any]:
    return [publication["data"] for publication in publications]


def position(server: Tantor, channel: str) -> dict[str, Any]:
    history = server.history(channel).result()
    return {"epoch": history.epoch, "offset": history.offset}
