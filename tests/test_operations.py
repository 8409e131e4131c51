"""Operations that go on after the call (a message is being saved, a server stops), and how loops and threads wait."""

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from processes import QUIET_FORK, run_python
from stored import stop
from tantor import Tantor
from tantor.pending import ended

MakeServer = Callable[..., Tantor]

PATIENCE = 60


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts the calls of the functions that watch a socket for the application."""

    calls = 0

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        def counted(*args: Any) -> None:
            self.calls += 1
            callback(*args)

        super().add_reader(fd, counted, *args)


class BlindLoop(asyncio.SelectorEventLoop):
    """Watches no socket for the application, as Windows' default loop."""

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        raise NotImplementedError


def run_on(loop: asyncio.AbstractEventLoop, main: Any) -> None:
    try:
        loop.run_until_complete(asyncio.wait_for(main, PATIENCE))
    finally:
        loop.close()


def test_a_thousand_operations_that_end_together_wake_their_loop_once_or_twice(
    make_server: MakeServer, database: str
) -> None:
    server = make_server(database=database)
    loop = CountingLoop()

    async def main() -> None:
        pending = [server.broadcast("jungle", "news", number, durable=True) for number in range(1000)]
        tasks = [asyncio.create_task(one) for one in pending]
        await asyncio.sleep(0)  # each task waits or has ended now
        before = loop.calls
        for one in pending:
            one.result(PATIENCE)
        await asyncio.gather(*tasks)
        # the last operation may wake its future after its result was returned
        assert loop.calls - before <= 2

    run_on(loop, main())
    stop(server)


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, BlindLoop])
def test_operations_end_on_every_kind_of_loop(
    make_server: MakeServer, database: str, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    server = make_server(database=database)

    async def main() -> None:
        assert await server.broadcast("jungle", "news", durable=True) == 0
        await server.stop()
        assert not server.is_running

    run_on(make_loop(), main())


def test_threads_and_loops_wait_for_one_operation(make_server: MakeServer) -> None:
    server = make_server()
    operation = server._stopped()
    ready = threading.Barrier(9)
    results: list[Any] = []

    async def wait_on_loop() -> None:
        waits = [asyncio.ensure_future(ended(operation)) for _ in range(3)]
        await asyncio.sleep(0)
        ready.wait(PATIENCE)
        await asyncio.gather(*waits)
        results.append(operation.done())

    def wait_in_thread() -> None:
        ready.wait(PATIENCE)
        results.append(operation.wait(PATIENCE))

    targets = [lambda: asyncio.run(wait_on_loop()), wait_in_thread] * 4
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    ready.wait(PATIENCE)
    assert not operation.done()
    assert not operation.wait(0.01)
    server._begin_stop()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == [True] * 8


def test_a_wait_that_is_cancelled_ends_no_other_wait(make_server: MakeServer) -> None:
    server = make_server()

    async def main() -> None:
        operation = server._stopped()
        other = asyncio.ensure_future(ended(operation))
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ended(operation), 0.001)
        assert not other.done()
        server._begin_stop()
        await asyncio.wait_for(other, PATIENCE)

    asyncio.run(main())


def test_loops_that_are_gone_leave_no_sockets_open(make_server: MakeServer, database: str) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("/proc is missing")
    server = make_server(database=database)

    async def publish(then_cancelled: bool) -> None:
        await server.broadcast("jungle", "news", durable=True)
        if then_cancelled:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ended(server._stopped()), 0.001)

    def descriptors_after(loops: int) -> int:
        for number in range(loops):
            # without the end of `asyncio.run`, the loop never runs the task of the cancelled wait
            run_on(asyncio.new_event_loop(), publish(then_cancelled=number % 2 == 0))
        return len(os.listdir("/proc/self/fd"))

    before = descriptors_after(3)
    assert descriptors_after(50) < before + 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing")
def test_a_forked_child_gets_an_error_for_an_operation_of_its_parent() -> None:
    done = run_python(
        """
import asyncio, os
from tantor import ForkedError, Tantor
from tantor.pending import Stopping, ended

def refused(call):
    try:
        call()
    except ForkedError:
        return True

with Tantor(port=0, host="127.0.0.1", drain_timeout=1) as earlier:
    over = earlier._stopped()
    loop = asyncio.new_event_loop()
    async def wait_for_end(): await ended(over)
    wait = loop.create_task(wait_for_end())
    loop.run_until_complete(asyncio.sleep(0))  # the server runs, so the loop waits for its end
    earlier._begin_stop()
    loop.run_until_complete(wait)
tantor = Tantor(port=0, host="127.0.0.1", drain_timeout=1)
with tantor:
    stopping = Stopping(tantor._stopped())
    pid = os.fork()
    if pid == 0:
        assert over.done() and over.wait() and Stopping(over).result() is None
        for call in (stopping.done, stopping.result, lambda: asyncio.run(stopping)):
            assert refused(call), call
        own = Tantor(port=0, host="127.0.0.1", drain_timeout=1)
        own.start_background()
        async def wait_for_own(): await ended(own._stopped())
        assert refused(lambda: loop.run_until_complete(wait_for_own()))
        asyncio.run(own.stop())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stopping.result(60)
""",
        options=QUIET_FORK,
    )
    assert (done.returncode, done.stderr) == (0, "")
