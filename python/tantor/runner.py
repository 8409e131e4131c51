"""Running a server that is all that its process does."""

import asyncio
from typing import Any

from tantor.messenger import Tantor


async def run_tantor(port: int | None = None, host: str | None = None, **settings: Any) -> None:
    """Serve until cancelled; what is not given comes from the environment, else port 8080 on 0.0.0.0.

    `settings` and errors are those of `Tantor`; a taken port is an `OSError` that names it.
    """
    await Tantor(port, host, **settings).start()


def run_tantor_sync(port: int | None = None, host: str | None = None, **settings: Any) -> None:
    """Serve until Ctrl-C, which is a `KeyboardInterrupt` once the server has ended. See `run_tantor`."""
    asyncio.run(run_tantor(port, host, **settings))
