"""A client of a Tantor, for asyncio; and `send` for scripts. Needs `pip install 'tantor[client]'`.

    from tantor.client import connect

    async with connect("ws://localhost:8080") as t:
        await t.join("jungle")
        async for message in t:
            print(message)

It comes back by itself when the connection breaks, with the same id, its channels and what it missed there: every
message of a channel once and in order, or `on_gap` is told. docs/clients.md says what is promised, and its limits.
"""

from collections.abc import Mapping
from ssl import SSLContext

try:
    import websockets.asyncio.client  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"tantor.client needs the package websockets, from 13 on ({error}): pip install 'tantor[client]'",
        name="websockets",
    ) from error

from tantor.client.client import Client, OnGap, OnState, State
from tantor.client.connecting import Proxy
from tantor.client.errors import (
    ClientError,
    ClosedError,
    CommandError,
    CommandLostError,
    CommandTimeoutError,
    ConnectError,
    ConnectTimeoutError,
    DisconnectedError,
    UncertainError,
)
from tantor.client.oneshot import send
from tantor.client.settings import ClientSettings
from tantor.client.stream import Gap, Message

__all__ = [
    "Client",
    "ClientError",
    "ClosedError",
    "CommandError",
    "CommandLostError",
    "CommandTimeoutError",
    "ConnectError",
    "ConnectTimeoutError",
    "DisconnectedError",
    "Gap",
    "Message",
    "State",
    "UncertainError",
    "connect",
    "send",
]


def connect(
    url: str,
    *,
    resume: str | None = None,
    on_state: OnState | None = None,
    on_gap: OnGap | None = None,
    headers: Mapping[str, str] | None = None,
    ssl: SSLContext | None = None,
    proxy: Proxy = True,
    connect_timeout: float | None = 10.0,
    open_timeout: float = 10.0,
    command_timeout: float | None = 30.0,
    close_timeout: float = 5.0,
    heartbeat_slack: float = 10.0,
    reconnect_base: float = 0.5,
    reconnect_cap: float = 30.0,
    ack_delay: float = 0.05,
    max_buffered: int = 1000,
    max_pending_commands: int = 1000,
    max_message_bytes: int = 64 << 20,
    dedup_window: int = 1024,
) -> Client:
    """A client of the Tantor at `url` (`ws://` or `wss://`); `async with` connects it. Times are seconds.

    - `resume`: a token, from `Tantor.resume_token`, of the client to be.
    - `on_state(state)`, `on_gap(gap)`: sync or async, called one after the other. What they raise is logged.
    - `headers`, `ssl`: for the WebSocket's opening.
    - `proxy`: the URL of a proxy; None: no proxy; True: the environment's (`http_proxy`, `no_proxy`), but never for a
      loopback address.
    - `connect_timeout`: how long the first connect may take, with all its attempts; None: it goes on for ever.
      `open_timeout`: one attempt. `command_timeout`: an answer, reconnects included; None: as long as it takes.
      `close_timeout`: the goodbye.
    - `heartbeat_slack`: added to the server's heartbeat interval; after so much silence the connection is dead.
    - `reconnect_base`, `reconnect_cap`: attempt n waits a random time of up to `base * 2**n`, at most `cap`.
    - `ack_delay`: how long acknowledgements wait for others to go with.
    - `max_buffered`: messages that wait for the application; beyond it nothing is read, but for answers.
    - `max_pending_commands`: commands under way; further ones wait.
    - `max_message_bytes`: the largest message from the server; beyond it the client ends.
    - `dedup_window`: messages of each channel whose ids are remembered; four times as many of those to this client.

    Errors: `SettingError` for a URL or a value that cannot be.
    """
    settings = ClientSettings(
        connect_timeout=connect_timeout,
        open_timeout=open_timeout,
        command_timeout=command_timeout,
        close_timeout=close_timeout,
        heartbeat_slack=heartbeat_slack,
        reconnect_base=reconnect_base,
        reconnect_cap=reconnect_cap,
        ack_delay=ack_delay,
        max_buffered=max_buffered,
        max_pending_commands=max_pending_commands,
        max_message_bytes=max_message_bytes,
        dedup_window=dedup_window,
    )
    return Client(url, settings, resume=resume, on_state=on_state, on_gap=on_gap, headers=headers, ssl=ssl, proxy=proxy)
