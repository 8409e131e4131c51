"""Publishing from a script: connect, publish, await the answer, leave."""

import json
import secrets
import time
from collections.abc import Mapping
from ssl import SSLContext
from typing import Any

from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from tantor.client.connecting import explain, split_url
from tantor.client.errors import CommandError, CommandLostError, CommandTimeoutError, ConnectError, DisconnectedError
from tantor.client.reconnect import is_final
from tantor.client.session import encode_command
from tantor.client.settings import ClientSettings
from tantor.client.stream import Message


def send(
    url: str,
    channel: str,
    event: str,
    data: Any = None,
    *,
    idempotency_key: str | None = None,
    timeout: float = 10.0,
    headers: Mapping[str, str] | None = None,
    ssl: SSLContext | None = None,
) -> Message:
    """Publish one message on a channel, and block until the server has it; for scripts, from any thread.

    Returns the server's reply: `recipients`, and `epoch` and `offset` if it is kept. `data` is what JSON can hold, `{}`
    by default. One attempt, of `timeout` seconds in all: to try again without publishing twice, give the same
    `idempotency_key`.

    Errors: `ConnectError`; `CommandError` when the server refuses; `CommandTimeoutError` and `CommandLostError` when
    no answer came, and it may have been published or not; `DataError`; `SettingError` for a URL that is none.
    """
    bare, _ = split_url(url)
    settings = ClientSettings(connect_timeout=timeout)
    fields = {
        "channel": channel,
        "event": event,
        "data": {} if data is None else data,
        "idempotency_key": secrets.token_hex(16) if idempotency_key is None else idempotency_key,
    }
    ref = secrets.token_hex(8)
    frame = encode_command("broadcast", ref, fields)
    deadline = time.monotonic() + timeout
    try:
        connection = connect(
            bare,
            ssl=ssl,
            additional_headers=headers,
            compression=None,
            open_timeout=timeout,
            close_timeout=settings.close_timeout,
            max_size=settings.max_message_bytes,
        )
    except (WebSocketException, OSError, EOFError) as error:
        raise ConnectError(str(explain(bare, error))) from error
    with connection:
        try:
            connection.send(frame)
            return _await_answer(connection, ref, deadline)
        except TimeoutError:
            # there is no time left for a goodbye
            connection.socket.close()
            raise CommandTimeoutError(f"broadcast: no answer from {bare} within {timeout:g} s") from None
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else None
            if is_final(code):
                raise DisconnectedError(f"{bare} closed the connection for good: {closed}", code) from None
            raise CommandLostError(f"broadcast: {bare} closed the connection before the answer: {closed}") from None


def _await_answer(connection: ClientConnection, ref: str, deadline: float) -> Message:
    while True:
        message = json.loads(connection.recv(max(0.0, deadline - time.monotonic())))
        # the messages of the channels that every client is on come too
        if not isinstance(message, dict) or message.get("ref") != ref:
            continue
        if message.get("event") == "error":
            raise CommandError(f"{message.get('message')} (code {message.get('code')})", message["code"], message)
        return message
