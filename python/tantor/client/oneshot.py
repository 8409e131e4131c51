"""Publishing from a script: connect, publish, await the answer, leave."""

import asyncio
import json
import secrets
import threading
from collections.abc import Mapping
from ssl import SSLContext
from typing import Any, TypeVar

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tantor.client.commands import encode_command
from tantor.client.connecting import Proxy, RetryError, Target
from tantor.client.errors import (
    CommandError,
    CommandLostError,
    CommandTimeoutError,
    ConnectError,
    DisconnectedError,
    UncertainError,
)
from tantor.client.reconnect import is_final
from tantor.client.settings import ClientSettings
from tantor.client.stream import Message
from tantor.json_messages import read_message

_Uncertain = TypeVar("_Uncertain", bound=UncertainError)


def send(
    url: str,
    channel: str,
    event: str,
    data: Any = None,
    *,
    idempotency_key: str | None = None,
    resume: str | None = None,
    timeout: float = 10.0,
    headers: Mapping[str, str] | None = None,
    ssl: SSLContext | None = None,
    proxy: Proxy = True,
) -> Message:
    """Publish one message on a channel, and block until the server has it; for scripts, from any thread.

    Returns the server's reply: `recipients`, and `epoch` and `offset` if it is kept. `data` is what JSON can hold, `{}`
    by default. One attempt, of `timeout` seconds. `headers`, `ssl` and `proxy` are those of `connect`.

    To try again without publishing twice, give the same `idempotency_key`, and as `resume` the error's attribute
    `resume`: a key counts for one client, and the token makes the next attempt the same client.

    Errors: `ConnectError`; `CommandError` when the server refuses; `CommandTimeoutError` and `CommandLostError` when
    no answer came, so that the message may have been published (also, with `resume`, when the server no longer knows
    the client: then nothing was published now); `DataError`; `SettingError` for a URL or a timeout that is none.
    """
    target = Target(url, ClientSettings(open_timeout=timeout), headers, ssl, proxy)
    fields = {
        "channel": channel,
        "event": event,
        "data": {} if data is None else data,
        "idempotency_key": secrets.token_hex(16) if idempotency_key is None else idempotency_key,
    }
    ref = secrets.token_hex(8)
    attempt = _Attempt(target, ref, encode_command("broadcast", ref, fields), timeout, resume or target.resume)
    return _run(attempt)


class _Attempt:
    def __init__(self, target: Target, ref: str, frame: str, timeout: float, resume: str | None) -> None:
        self._target = target
        self._ref = ref
        self._frame = frame
        self._timeout = timeout
        self._resume = resume
        self._is_resuming = resume is not None

    async def publish(self) -> Message:
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            connection = await self._target.open({"resume": self._resume} if self._resume else {})
        except RetryError as error:
            raise ConnectError(str(error)) from error
        try:
            async with asyncio.timeout_at(deadline):
                self._read_welcome(await connection.recv())
                await connection.send(self._frame)
                answer = await self._await_answer(connection)
            # the publishing is done, whatever becomes of the goodbye
            await connection.close()
        except TimeoutError:
            problem = f"broadcast: no answer from {self._target} within {self._timeout:g} s"
            raise self._uncertain(CommandTimeoutError(problem)) from None
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else None
            if is_final(code):
                raise DisconnectedError(f"{self._target} closed the connection for good: {closed}", code) from None
            problem = f"broadcast: {self._target} closed before the answer: {closed}"
            raise self._uncertain(CommandLostError(problem)) from None
        finally:
            connection.transport.abort()
        if answer.get("event") == "error":
            raise CommandError(f"{answer.get('message')} (code {answer.get('code')})", answer.get("code", 0), answer)
        return answer

    def _read_welcome(self, frame: str | bytes) -> None:
        """Errors: `CommandLostError` when the server takes a client that resumes for a new one."""
        try:
            welcome = json.loads(frame)
        except (ValueError, RecursionError):
            welcome = None
        if not isinstance(welcome, dict) or welcome.get("event") != "welcome":
            raise DisconnectedError(f"{self._target} does not speak as a Tantor does: {frame[:80]!r}")
        self._resume = welcome.get("resume")
        if self._is_resuming and not welcome.get("resumed"):
            problem = f"uncertain: the server took this client for a new one ({welcome.get('reason')})"
            raise CommandLostError(f"broadcast: {problem}; an earlier attempt may have been published")

    def _uncertain(self, error: _Uncertain) -> _Uncertain:
        error.resume = self._resume
        return error

    async def _await_answer(self, connection: ClientConnection) -> Message:
        while True:
            # the messages of the channels that every client is on come too
            try:
                message = read_message(await connection.recv())
            except (ValueError, RecursionError):
                continue
            if isinstance(message, dict) and message.get("ref") == self._ref:
                return message


def _run(attempt: _Attempt) -> Message:
    """In a loop of its own; in a thread of its own where this one runs a loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(attempt.publish())
    outcome: list[Message | BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(attempt.publish()))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="tantor-client-send")
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
