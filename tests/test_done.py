"""What `send`, `broadcast`, `subscribe`, `unsubscribe` and `emergency` return: an awaitable that holds its result."""

import asyncio
import collections.abc
import gc
import inspect
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from tantor import Tantor


@pytest.fixture
def awaitables() -> Callable[[], list[tuple[Any, Any]]]:
    """Fresh results of each call of a Tantor that does not run, with what each holds."""
    tantor = Tantor()

    def make() -> list[tuple[Any, Any]]:
        return [
            (tantor.broadcast("jungle", "news"), 0),
            (tantor.subscribe("client_1", "den"), True),
            (tantor.unsubscribe("client_1", "den"), True),
            (tantor.emergency("fire"), 0),
        ]

    return make


def test_results_hold_their_value(awaitables: Callable[[], list[tuple[Any, Any]]]) -> None:
    for done, value in awaitables():
        assert done.result() == value
        assert done.result() == value, "the value can be asked for again"
        assert type(done.result()) is type(value)


def test_results_are_coroutines(awaitables: Callable[[], list[tuple[Any, Any]]]) -> None:
    for done, value in awaitables():
        assert isinstance(done, collections.abc.Awaitable)
        assert isinstance(done, collections.abc.Coroutine)
        assert asyncio.iscoroutine(done)
        assert inspect.isawaitable(done)
        assert asyncio.run(done) == value


def test_results_can_be_awaited_in_every_way(awaitables: Callable[[], list[tuple[Any, Any]]]) -> None:
    async def ways() -> None:
        for done, value in awaitables():
            assert await done == value
            assert await done == value, "it can be awaited again"
        for done, value in awaitables():
            assert await asyncio.create_task(done) == value
        for done, value in awaitables():
            assert await asyncio.ensure_future(done) == value
        for done, value in awaitables():
            assert await asyncio.wait_for(done, 5) == value
        for done, value in awaitables():
            assert await asyncio.shield(done) == value
        pairs = awaitables()
        assert await asyncio.gather(*(done for done, _ in pairs)) == [value for _, value in pairs]
        async with asyncio.TaskGroup() as group:
            tasks = [(group.create_task(done), value) for done, value in awaitables()]
        assert [task.result() for task, _ in tasks] == [value for _, value in tasks]

    asyncio.run(ways())


def test_results_can_be_handed_to_a_loop_of_another_thread(awaitables: Callable[[], list[tuple[Any, Any]]]) -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        for done, value in awaitables():
            assert asyncio.run_coroutine_threadsafe(done, loop).result(10) == value
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_a_result_that_is_dropped_warns_of_nothing(awaitables: Callable[[], list[tuple[Any, Any]]]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        awaitables()
        awaitables()[0][0].close()
        gc.collect()
    assert caught == []


def test_a_result_takes_what_is_thrown_into_it() -> None:
    with pytest.raises(KeyError, match="thrown"):
        Tantor().broadcast("jungle", "news").throw(KeyError("thrown"))


def test_a_call_raises_at_once_and_not_when_awaited() -> None:
    with pytest.raises(TypeError):
        Tantor().broadcast("jungle", "news", {1, 2})
