"""Runs a server in a process that does nothing else."""

import asyncio
from collections.abc import Sequence
from typing import Unpack

from tantor.messenger import Tantor
from tantor.setting_types import Settings


async def run_tantor(
    port: int | None = None, host: str | Sequence[str] | None = None, **settings: Unpack[Settings]
) -> None:
    """Serve until cancelled. Settings that are not given come from the environment; else port 8080 on 0.0.0.0.

    `settings` and errors are those of `Tantor`; a taken port is an `OSError` that names it.
    """
    await Tantor(port, host, **settings).start()


def run_tantor_sync(
    port: int | None = None, host: str | Sequence[str] | None = None, **settings: Unpack[Settings]
) -> None:
    """Serve until Ctrl-C; raises `KeyboardInterrupt` after the server has ended. See `run_tantor`."""
    asyncio.run(run_tantor(port, host, **settings))
