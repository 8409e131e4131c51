"""A TCP proxy between clients and a server that causes the faults of real networks.

    with FaultProxy(server.port) as proxy:
        client = connect(proxy.port)
        proxy.cut()                # all connections end with a reset
        proxy.stall(TO_CLIENT)     # sockets stay open, nothing goes on to clients
        proxy.resume()

Each command may be given from any thread at any time, and has taken effect when it returns. It is for all connections
that there are now, or for the one that is named.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")

TO_SERVER = "to_server"
TO_CLIENT = "to_client"
BOTH = "both"

RESET = "reset"
FIN = "fin"

# The kernel's buffer of each socket: small, so that the other end notices a stall soon.
SOCKET_BUFFER = 64 * 1024

# The most that waits in one direction of a delayed connection: reads, and bytes of one read.
QUEUED_CHUNKS = 64
CHUNK = 16 * 1024

# How long both ends of a connection that was cut with FIN may take to end it too.
LINGER = 2.0

COMMAND_TIMEOUT = 10.0


class FaultProxy:
    """Forwards connections to `target_port` on the loopback interface; `port` is its own.

    `target_port` may be set anew, for connections that are yet to come. `accepted` counts the connections so far,
    `failed` those of them for which the server could not be reached.
    """

    def __init__(self, target_port: int, host: str = "127.0.0.1") -> None:
        self.target_port = target_port
        self.accepted = 0
        self.failed = 0
        self._host = host
        self._links: list[Link] = []
        self._later = Conditions()
        self._listening: socket.socket | None = None
        self._accept_again: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # this socket keeps the port while connections are refused
        self._reserved = self._bind(0)
        self.port: int = self._reserved.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self.accept()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connections(self) -> "list[Link]":
        """The open connections, the oldest first."""
        return self._call(lambda: list(self._links))

    def cut(self, how: str = RESET, *, connection: "Link | None" = None) -> int:
        """End connections in both directions, with `RESET` or `FIN`; return their number."""

        async def cut() -> int:
            links = self._chosen(connection)
            for link in links:
                await link.end(how)
            return len(links)

        return self._run(cut())

    def refuse(self, seconds: float | None = None) -> None:
        """Refuse connects for a time, or until `accept()`. Existing connections go on."""

        async def refuse() -> None:
            self._forget_timer()
            self._stop_listening()
            if seconds is not None:
                self._accept_again = self._loop.call_later(seconds, self._listen)

        self._run(refuse())

    def accept(self) -> None:
        """Accept connects again."""

        def accept() -> None:
            self._forget_timer()
            self._listen()

        self._call(accept)

    def stall(self, direction: str = BOTH, *, connection: "Link | None" = None, later: bool = False) -> None:
        """Forward nothing until `resume()`, without loss. With `later`, future connections too."""
        directions(direction)
        self._set(connection, later, lambda conditions: conditions.open_gates(direction, is_open=False))

    def drop(self, direction: str = BOTH, *, connection: "Link | None" = None, later: bool = False) -> None:
        """Drop all bytes and the end of the stream, as a black hole. Connections do not recover."""
        names = directions(direction)
        self._set(connection, later, lambda conditions: conditions.dropped.update(names))

    def delay(self, seconds: float, direction: str = BOTH, *, connection: "Link | None" = None) -> None:
        """Delay each byte; without a named connection, on future connections too."""
        delays = dict.fromkeys(directions(direction), seconds)

        def delay(conditions: Conditions) -> None:
            conditions.delays.update(delays)

        self._set(connection, connection is None, delay)

    def resume(self, *, connection: "Link | None" = None) -> None:
        """End stalls and delays; without a named connection, those of future connections too."""

        def resume(conditions: Conditions) -> None:
            conditions.open_gates(BOTH, is_open=True)
            conditions.delays.clear()

        def clear_later() -> None:
            self._later = Conditions()

        self._set(connection, False, resume)
        if connection is None:
            self._call(clear_later)

    def half_close(self, direction: str = TO_SERVER, *, connection: "Link | None" = None) -> None:
        """End one direction with FIN, after the forwarded bytes; the other direction goes on."""
        directions(direction)

        def half_close() -> None:
            for link in self._chosen(connection):
                link.half_close(direction)

        self._call(half_close)

    def close(self) -> None:
        """End everything."""
        if self._loop.is_closed():
            return

        async def end() -> None:
            self._forget_timer()
            self._stop_listening()
            for link in list(self._links):
                await link.end(RESET)
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(COMMAND_TIMEOUT)
        self._loop.close()
        self._reserved.close()

    def _bind(self, port: int) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        bound.bind((self._host, port))
        bound.setblocking(False)
        return bound

    def _listen(self) -> None:
        if self._listening is None:
            self._listening = self._bind(self.port)
            self._listening.listen(1024)
            self._loop.add_reader(self._listening, self._accept_from, self._listening)

    def _stop_listening(self) -> None:
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None

    def _accept_from(self, listener: socket.socket) -> None:
        # no task waits here, because its cancellation would lose an accepted connection
        try:
            client, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self.accepted += 1
        task = self._loop.create_task(self._connect(self.accepted, client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: client.close())  # also of a task that is cancelled before it begins

    async def _connect(self, number: int, client: socket.socket) -> None:
        server = socket.socket()
        try:
            for end in (client, server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
            await self._loop.sock_connect(server, (self._host, self.target_port))
        except BaseException as error:
            self.failed += 1
            reset(client)
            server.close()
            if isinstance(error, OSError):
                return
            raise
        link = Link(number, client, server, self._later.copy())
        self._links.append(link)
        try:
            await link.run()
        finally:
            self._links.remove(link)

    def _forget_timer(self) -> None:
        if self._accept_again is not None:
            self._accept_again.cancel()
            self._accept_again = None

    def _chosen(self, connection: "Link | None") -> "list[Link]":
        return list(self._links) if connection is None else [connection]

    def _set(self, connection: "Link | None", later: bool, change: "Callable[[Conditions], None]") -> None:
        def set_all() -> None:
            for link in self._chosen(connection):
                change(link.conditions)
            if later:
                change(self._later)

        self._call(set_all)

    def _call(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return self._run(call())

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(COMMAND_TIMEOUT)


class Conditions:
    """The faults of each direction."""

    def __init__(self) -> None:
        self.gates = {TO_SERVER: asyncio.Event(), TO_CLIENT: asyncio.Event()}
        self.dropped: set[str] = set()
        self.delays: dict[str, float] = {}
        self.open_gates(BOTH, is_open=True)

    def open_gates(self, direction: str, *, is_open: bool) -> None:
        for name in directions(direction):
            if is_open:
                self.gates[name].set()
            else:
                self.gates[name].clear()

    def copy(self) -> "Conditions":
        copied = Conditions()
        for name, gate in self.gates.items():
            copied.open_gates(name, is_open=gate.is_set())
        copied.dropped = set(self.dropped)
        copied.delays = dict(self.delays)
        return copied


class Link:
    """One connection: the client's socket and the one to the server.

    `number` counts from 1; `forwarded` are bytes and `waiting` reads that are delayed, by direction.
    """

    def __init__(self, number: int, client: socket.socket, server: socket.socket, conditions: Conditions) -> None:
        self.number = number
        self.conditions = conditions
        self.forwarded = {TO_SERVER: 0, TO_CLIENT: 0}
        self._sockets = {TO_SERVER: (client, server), TO_CLIENT: (server, client)}
        self.waiting = {TO_SERVER: 0, TO_CLIENT: 0}
        self._half_closed: set[str] = set()
        self._pumps: list[asyncio.Task[None]] = []
        self._how = RESET
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Link {self.number}: {self.forwarded}>"

    async def run(self) -> None:
        """Forward until both directions have ended, one direction is broken, or the connection is cut."""
        loop = asyncio.get_running_loop()
        self._pumps = [loop.create_task(self._pump(direction)) for direction in (TO_SERVER, TO_CLIENT)]
        is_broken = True
        try:
            waiting: set[asyncio.Task[None]] = set(self._pumps)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                # a reset of one side becomes a reset of the other
                is_broken = any(pump.cancelled() or pump.exception() for pump in done)
                if is_broken:
                    break
        finally:
            for pump in self._pumps:
                pump.cancel()
            await asyncio.wait(self._pumps)
            ends = self._sockets[TO_SERVER]
            if is_broken and self._how == FIN:
                await asyncio.wait([loop.create_task(finish(end)) for end in ends])
            for end in ends:
                if is_broken and self._how == RESET:
                    reset(end)
                end.close()
            self._ended.set()

    async def end(self, how: str) -> None:
        self._how = how
        for pump in self._pumps:
            pump.cancel()
        if how == RESET:
            await self._ended.wait()
        else:
            for _, target in self._sockets.values():
                shut_down(target)

    def half_close(self, direction: str) -> None:
        for name in directions(direction):
            self._half_closed.add(name)
            shut_down(self._sockets[name][1])

    async def _pump(self, direction: str) -> None:
        queue: Delayed = asyncio.Queue(QUEUED_CHUNKS)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(direction, queue))
                group.create_task(self._write_delayed(direction, queue))
        except* OSError:
            await self._swallow_end(direction)
            raise

    async def _read(self, direction: str, queue: "Delayed") -> None:
        loop = asyncio.get_running_loop()
        source, target = self._sockets[direction]
        gate = self.conditions.gates[direction]
        while True:
            await gate.wait()
            data = await loop.sock_recv(source, CHUNK)
            due = loop.time() + self.conditions.delays.get(direction, 0.0)
            if not data:
                await self._swallow_end(direction)
                await queue.put((due, data))
                return
            if due > loop.time() or self.waiting[direction]:
                self.waiting[direction] += 1
                await queue.put((due, data))
            else:
                await self._forward(direction, target, data)

    async def _write_delayed(self, direction: str, queue: "Delayed") -> None:
        loop = asyncio.get_running_loop()
        target = self._sockets[direction][1]
        while True:
            due, data = await queue.get()
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            if not data:
                await self.conditions.gates[direction].wait()
                shut_down(target)
                return
            await self._forward(direction, target, data)
            self.waiting[direction] -= 1

    async def _forward(self, direction: str, target: socket.socket, data: bytes) -> None:
        await self.conditions.gates[direction].wait()
        if direction in self.conditions.dropped or direction in self._half_closed:
            return
        await asyncio.get_running_loop().sock_sendall(target, data)
        self.forwarded[direction] += len(data)

    async def _swallow_end(self, direction: str) -> None:
        if direction in self.conditions.dropped:
            await asyncio.get_running_loop().create_future()


# The time at which bytes are forwarded, and the bytes.
Delayed = asyncio.Queue[tuple[float, bytes]]


def directions(direction: str) -> tuple[str, ...]:
    if direction == BOTH:
        return (TO_SERVER, TO_CLIENT)
    if direction not in (TO_SERVER, TO_CLIENT):
        raise ValueError(f"direction is {direction!r}; it takes {TO_SERVER!r}, {TO_CLIENT!r} or {BOTH!r}")
    return (direction,)


def shut_down(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the connection may have ended by itself
        end.shutdown(socket.SHUT_WR)


def reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


async def finish(end: socket.socket) -> None:
    """Read until the other side has ended or the time is over, because closing with unread bytes would be a reset."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(LINGER):
            while await loop.sock_recv(end, CHUNK):
                pass
