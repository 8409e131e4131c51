"""Tantor as the bench drives it: one shard, since the process is pinned to one core.

The rest is what a user gets by default (presence, join notices, history, heartbeats, JSON parsed), but for the
settings that follow the port as `name=value`.
"""

import asyncio
import sys
from typing import Any

from tantor import Tantor
from tantor.settings import from_text, known_settings


def main() -> None:
    settings: dict[str, Any] = {"shards": 1, "max_connections": 20_000}
    for argument in sys.argv[2:]:
        name, _, text = argument.partition("=")
        settings[name] = from_text(known_settings()[name], text, f"argument {name}")
    server = Tantor(int(sys.argv[1]), "127.0.0.1", **settings)
    asyncio.run(server.start())


if __name__ == "__main__":
    main()
