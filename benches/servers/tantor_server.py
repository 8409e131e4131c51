"""Tantor as the bench drives it: one shard, since the process is pinned to one core.

The rest is what a user gets by default: presence, join notices, history's offsets, heartbeats, JSON parsed.
"""

import asyncio
import sys

from tantor import Tantor


def main() -> None:
    server = Tantor(int(sys.argv[1]), "127.0.0.1", shards=1, max_connections=20_000)
    asyncio.run(server.start())


if __name__ == "__main__":
    main()
