"""A hundred clients and a network, or a server, that fails again and again: all is delivered, in order, once.

`TANTOR_FAULT_SECONDS` says for how long, 15 by default.
"""

import asyncio
import os
import random
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from client_support import DEADLINE, Watched, soon
from fault_proxy import BOTH, FIN, RESET, TO_CLIENT, FaultProxy
from processes import Script
from tantor import Tantor
from tantor.client import connect

SECONDS = float(os.environ.get("TANTOR_FAULT_SECONDS", "15"))
CLIENTS = 100
PROXIES = 10
OUTAGE = 2.0
RATE = 20.0
HEARTBEAT = 1.0

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120 + 4 * SECONDS)]


class Follower:
    """A client that notes what it is shown on `news`, and its mail."""

    def __init__(self, port: int) -> None:
        self.watched = Watched(port, heartbeat_slack=HEARTBEAT, reconnect_cap=0.5, connect_timeout=DEADLINE)
        self.ids: list[str] = []
        self.numbers: list[int] = []
        self.mail: list[int] = []

    async def run(self) -> None:
        async for message in self.watched.client:
            if message.get("event") == "number":
                self.ids.append(message["id"])
                self.numbers.append(message["data"])
            elif "letter" in message:
                self.mail.append(message["letter"])


async def test_a_hundred_clients_miss_nothing_whatever_the_network_does(make_server: Callable[..., Tantor]) -> None:
    seed = secrets.randbits(32)
    server = make_server(heartbeat_interval=HEARTBEAT, history_size=1_000_000, resume_ttl=600, mailbox_size=100_000)
    with ExitStack() as stack:
        proxies = [stack.enter_context(FaultProxy(server.port)) for _ in range(PROXIES)]
        followers = [Follower(proxies[number % PROXIES].port) for number in range(CLIENTS)]
        running = await open_all(followers)
        ids = [follower.watched.client.client_id for follower in followers]
        failing = [
            asyncio.create_task(fail(proxy, random.Random(seed + number))) for number, proxy in enumerate(proxies)
        ]
        published = 0
        loop = asyncio.get_running_loop()
        end = loop.time() + SECONDS
        while loop.time() < end:
            server.broadcast("news", "number", published)
            server.send(ids[published % CLIENTS], {"letter": published})
            published += 1
            await asyncio.sleep(1 / RATE)
        for task in failing:
            task.cancel()
        await asyncio.wait(failing)
        for proxy in proxies:
            proxy.resume()
            proxy.accept()
        letters = [list(range(number, published, CLIENTS)) for number in range(CLIENTS)]

        def behind() -> dict[int, tuple[int, int]]:
            seen = {number: (len(one.numbers), len(one.mail)) for number, one in enumerate(followers)}
            return {
                number: (numbers, mail)
                for number, (numbers, mail) in seen.items()
                if numbers < published or mail < len(letters[number])
            }

        await soon(lambda: not behind(), lambda: f"of {published} only {behind()} (seed {seed})")
        for number, follower in enumerate(followers):
            assert follower.numbers == list(range(published)), f"seed {seed}"
            assert follower.mail == letters[number], f"seed {seed}"
            assert follower.watched.gaps == [], f"seed {seed}"
        assert [follower.watched.client.client_id for follower in followers] == ids
        reconnects = sum(follower.watched.states.count("reconnecting") for follower in followers)
        assert reconnects >= CLIENTS // 2, "the network has failed"
        await close_all(followers, running)


async def open_all(followers: list[Follower]) -> list[asyncio.Task[None]]:
    async def open_one(follower: Follower) -> None:
        await follower.watched.client.open()
        await follower.watched.client.join("news")

    await asyncio.gather(*(open_one(follower) for follower in followers))
    return [asyncio.create_task(follower.run()) for follower in followers]


async def close_all(followers: list[Follower], running: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*(follower.watched.client.close() for follower in followers))
    await asyncio.gather(*running)


async def fail(proxy: FaultProxy, chance: random.Random) -> None:
    """Some time of peace, then one of the things that happen."""
    while True:
        await asyncio.sleep(chance.uniform(0.2, 3.0))
        match chance.randrange(6):
            case 0:
                proxy.stall(BOTH, later=True)
            case 1:
                proxy.drop(TO_CLIENT)
            case 2:
                proxy.half_close()
            case _:
                proxy.refuse()
                proxy.cut(chance.choice([RESET, FIN]))
        await asyncio.sleep(OUTAGE)
        proxy.resume()
        proxy.accept()


SERVER = """
import asyncio, sys
from tantor import Tantor

port, database = sys.argv[1:]
tantor = Tantor(
    port=int(port), host="127.0.0.1", database=database, durable=True, history_size=1_000_000, resume_ttl=600,
    heartbeat_interval=1,
)
tantor.start_background()
print("listening", flush=True)
tantor._wait_stopped(3600)
"""


class KilledServer:
    """A server in a process of its own, on a database; may be killed and started again on the same port."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self._folder = folder
        self._file = folder / "server.py"
        self._file.write_text(SERVER, encoding="utf-8")
        self._starts = 0
        self._script: Script | None = None

    def start(self) -> None:
        self._starts += 1
        database = f"sqlite:///{self._folder / 'tantor.db'}"
        command = [sys.executable, str(self._file), str(self.port), database]
        self._script = Script(command, log=self._folder / f"log{self._starts}")
        self._script.wait_for_line("listening")

    def kill(self) -> None:
        if self._script is not None:
            self._script.process.send_signal(signal.SIGKILL)
            self._script.__exit__()
            self._script = None


@pytest.fixture
def killed_server(tmp_path: Path, free_port: int) -> Iterator[KilledServer]:
    server = KilledServer(tmp_path, free_port)
    yield server
    server.kill()


async def test_a_hundred_clients_miss_nothing_of_a_durable_channel_though_the_server_is_killed(
    killed_server: KilledServer,
) -> None:
    seed = secrets.randbits(32)
    chance = random.Random(seed)
    killed_server.start()
    followers = [Follower(killed_server.port) for _ in range(CLIENTS)]
    running = await open_all(followers)
    acknowledged: list[int] = []
    is_over = asyncio.Event()
    publishing = asyncio.create_task(publish_until(is_over, killed_server.port, acknowledged))
    loop = asyncio.get_running_loop()
    end = loop.time() + SECONDS
    while loop.time() < end:
        await asyncio.sleep(chance.uniform(0.5, 2.5))
        await asyncio.to_thread(killed_server.kill)
        await asyncio.sleep(chance.uniform(0.0, OUTAGE))
        await asyncio.to_thread(killed_server.start)
    is_over.set()
    await publishing
    assert acknowledged
    saved = await saved_publications(killed_server.port)
    kept = [publication["data"] for publication in saved]
    # what was under way at a kill was published again under its key: once, whether it had been saved or not
    assert kept == acknowledged == list(range(len(kept))), f"seed {seed}"
    wanted = [publication["id"] for publication in saved]

    def behind() -> dict[int, int]:
        return {number: len(one.ids) for number, one in enumerate(followers) if len(one.ids) < len(wanted)}

    await soon(lambda: not behind(), lambda: f"of {len(wanted)} only {behind()} (seed {seed})")
    for follower in followers:
        assert follower.ids == wanted, f"seed {seed}"
        # that the end of a stream may be lost is said when the server was killed; of this one nothing was
        told = {(gap.reason, gap.to_offset) for gap in follower.watched.gaps if gap.channel == "news"}
        assert told <= {("epoch", None)}, f"seed {seed}"
    await close_all(followers, running)


async def publish_until(is_over: asyncio.Event, port: int, acknowledged: list[int]) -> None:
    async with connect(f"ws://127.0.0.1:{port}", reconnect_base=0.02, reconnect_cap=0.2, command_timeout=DEADLINE) as t:
        number = 0
        while not is_over.is_set():
            await t.broadcast("news", "number", number)
            acknowledged.append(number)
            number += 1
            await asyncio.sleep(1 / RATE)


async def saved_publications(port: int) -> list[dict[str, Any]]:
    """All numbers that were published, as the server has them."""
    found: list[dict[str, Any]] = []
    async with connect(f"ws://127.0.0.1:{port}") as t:
        after = 0
        while True:
            page = await t.history("news", limit=1000, after=after)
            found += page["publications"]
            if not page["publications"]:
                return [publication for publication in found if publication["event"] == "number"]
            after = page["publications"][-1]["offset"]
