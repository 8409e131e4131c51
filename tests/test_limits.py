"""docs/limits.md names every bound, and its memory formula holds."""

import asyncio
import contextlib
import json
import re
import sys
import textwrap
import threading
import time
import tomllib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import script
from stored import locked_by_another
from support import TEXT, WebSocketClient, encode_frame, eventually
from tantor import Tantor
from tantor.settings import known_settings

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]

LIMITS = (Path(__file__).parent.parent / "docs" / "limits.md").read_text(encoding="utf-8")
BOUND_NOTHING = {
    "port",
    "app_context",
    "app_id",
    "host",
    "unix_socket_mode",
    "http_prefix",
    "handle_sigterm",
    "default_channel",
    "heartbeat_interval",
    "slow_consumer",
    "subprotocols",
    "channel_settings",
    "leave_delay",
    "ack_timeout",
    "database",
    "durable",
    "reconnect_window",
    "runtime_dir",
    "shards",
}
MIB = 1 << 20


def first_cells() -> str:
    return "\n".join(line.split("|")[1] for line in LIMITS.splitlines() if line.startswith("| "))


def memory_at_worst(tantor: Tantor) -> int:
    """Bytes of the process as docs/limits.md adds them up, without what the allocator keeps."""
    setting = tantor.setting
    channels = setting("max_connections") * setting("max_channels_per_client")
    parts = {
        "python": 40 * MIB,
        "connections": setting("max_connections") * 1536,
        "their channels": channels * (320 + 1024),
        "buffers": setting("shards") * (128 << 10),
        "input": setting("max_unfinished_bytes") + setting("max_handshakes") * 1024,
        "output": setting("max_queued_bytes") + setting("shards") * setting("inbox_bytes"),
        "events": (4 + 24) * setting("event_queue_bytes"),
        "history": setting("history_bytes") + setting("durable_bytes"),
        "empty channels": setting("max_empty_channels") * 1024,
        "away": setting("away_bytes") + setting("mailboxes_bytes"),
        "keys": 3 * setting("max_idempotency_keys") * 850,
        "receipts": 100_000 * 150,
        "to be saved": 2 * setting("database_queue_bytes") + 32 * MIB,
    }
    return int(sum(parts.values()))


def test_every_setting_that_is_a_bound_is_in_the_table_of_limits() -> None:
    named = set(re.findall(r"`(\w+)`", first_cells()))
    settings = set(known_settings())
    assert settings >= BOUND_NOTHING
    missing = settings - named - BOUND_NOTHING
    assert not missing, f"docs/limits.md does not name {missing}: what happens beyond them, and where is it counted?"


def test_every_figure_that_the_table_of_limits_names_is_in_stats() -> None:
    named = {
        name
        for line in LIMITS.splitlines()
        if line.startswith("| ") and line.count("|") == 5
        for name in re.findall(r"`(\w+)`", line.split("|")[4].partition(" (")[0])
    }
    assert named, "the tables have another form"
    assert named <= set(Tantor().stats())


def test_the_example_fits_into_the_memory_that_it_names() -> None:
    example = re.search(r"A machine of (\d+) GiB.*?```toml\n(.*?)```", LIMITS, re.DOTALL)
    assert example is not None
    tantor = Tantor(**tomllib.loads(example[2])["tantor"], shards=4)
    sockets = tantor.setting("max_connections") + tantor.setting("max_handshakes")
    buffers = 2 * (tantor.setting("send_buffer_bytes") + tantor.setting("receive_buffer_bytes"))
    assert 2 * memory_at_worst(tantor) + sockets * buffers < int(example[1]) << 30


EVENT_BYTES = 32 << 10


def send_events(client: WebSocketClient, count: int) -> None:
    """Send numbered frames with an action of the application's own, until all are sent or the connection ends."""
    client.socket.settimeout(60)
    fill = "x" * EVENT_BYTES
    with contextlib.suppress(OSError):
        for number in range(count):
            client.send_raw(encode_frame(TEXT, f'{{"action":"work","n":{number},"fill":"{fill}"}}'.encode()))


def test_events_of_coroutines_under_way_are_bounded_by_bytes(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(event_queue_bytes=2 * EVENT_BYTES)
    taken: list[int] = []
    may_end = threading.Event()

    async def wait() -> None:
        while not may_end.is_set():
            await asyncio.sleep(0.005)

    def work(event: dict[str, Any]) -> Coroutine[Any, Any, None]:
        taken.append(event["n"])
        return wait()

    server.on_event("message", work)
    client, other = connect(server), connect(server)
    # far more than the buffers of the system
    total = 1000
    sending = threading.Thread(target=send_events, args=(client, total))
    sending.start()
    eventually(lambda: server.stats()["event_pauses"] > 0, server.stats)
    for _ in range(100):
        assert len(taken) < 20
        assert server.stats()["event_bytes"] < 20 * EVENT_BYTES
        time.sleep(0.005)
    assert other.ask("ping")["pong"] is True
    may_end.set()
    eventually(lambda: taken == list(range(total)), lambda: len(taken), timeout=60)
    sending.join(60)
    eventually(lambda: server.stats()["event_bytes"] == 0, server.stats)


SMALL = {
    "shards": 2,
    "max_connections": 200,
    "max_channels_per_client": 64,
    "max_handshakes": 50,
    "max_unfinished_bytes": 4 * MIB,
    "max_pending_bytes": MIB // 4,
    "max_queued_bytes": 4 * MIB,
    "inbox_bytes": MIB,
    "event_queue_bytes": MIB,
    "history_bytes": 4 * MIB,
    "durable_bytes": 4 * MIB,
    "away_bytes": 4 * MIB,
    "mailbox_bytes": MIB // 8,
    "mailboxes_bytes": 2 * MIB,
    "database_queue_bytes": 4 * MIB,
    "max_idempotency_keys": 5000,
    "max_client_keys": 5000,
    "max_empty_channels": 1000,
    "send_buffer_bytes": 16 << 10,
    "receive_buffer_bytes": 16 << 10,
    "message_timeout": 600,
    "heartbeat_interval": 600,
    "heartbeat_timeout": 1200,
    "resume_ttl": 600,
    "publisher_hold": 0,
    "channel_settings": {"orders:*": {"durable": True}, "stalled": {"slow_consumer": "drop_oldest"}},
}

# Runs the calls that the test sends, one after another.
SERVER = """
    import json, sys, threading
    from multiprocessing.connection import Listener
    from tantor import StorageError, Tantor

    def publish_durably():
        refusals = 0
        for number in range(200):
            try:
                tantor.broadcast(f"orders:{number % 20}", "n", "x" * 60_000).result()
            except StorageError:
                refusals += 1
        return refusals

    def publish(channel, count, size, channels=1):
        for number in range(count):
            tantor.broadcast(channel.format(number % channels), "n", "x" * size)

    def use_keys(count):
        for number in range(count):
            key = f"{number:0255}"
            tantor.broadcast("keys", "n", number, idempotency_key=key)
            tantor.send("nobody", {"n": number}, idempotency_key=key)

    def mail(ids, count, size):
        for id in ids:
            for _ in range(count):
                tantor.send(id, {"fill": "x" * size})

    with Tantor(port=0, host="127.0.0.1", **json.loads(sys.argv[1])) as tantor:
        blocked = threading.Event()
        tantor.on_event("message", lambda event: blocked.wait())
        listener = Listener(("127.0.0.1", 0))
        print("ports", tantor.port, listener.address[1], flush=True)
        with listener.accept() as control:
            while True:
                name, *arguments = control.recv()
                call = globals().get(name) or getattr(tantor, name)
                control.send(call(*arguments))
"""


class Filled:
    """A server in a process of its own with small bounds, and methods that fill each queue to its bound."""

    def __init__(self, port: int, control: Any, process: psutil.Process, stack: ExitStack) -> None:
        self.port = port
        self._control, self._process, self._stack = control, process, stack
        self._publisher = self.client()
        self.highest = 0

    def ask(self, *call: Any) -> Any:
        self._control.send(call)
        assert self._control.poll(60), f"no answer to {call}"
        answer = self._control.recv()
        self.highest = max(self.highest, self.resident())
        return answer

    def stats(self) -> Any:
        return self.ask("stats")

    def resident(self) -> int:
        return int(self._process.memory_info().rss)

    def client(self, **options: Any) -> WebSocketClient:
        return self._stack.enter_context(WebSocketClient(self.port, **options)).greet()

    def wait(self, condition: Callable[[Any], object]) -> None:
        eventually(lambda: condition(self.stats()), self.stats, timeout=60)

    def fill_durable_history(self) -> None:
        assert self.ask("publish_durably") > 0

    def fill_history(self) -> None:
        self.ask("publish", "news:{}", 300, 60_000, 60)
        self.wait(lambda stats: stats["dropped"]["history_bytes"])

    def lose_clients(self) -> list[str]:
        """Clients with channels of long names, which no one else is on."""
        lost = []
        for crowd in range(3):
            clients = [self.client() for _ in range(50)]
            for number, client in enumerate(clients):
                names = [f"{crowd} {number} {channel} {'x' * 230}" for channel in range(60)]
                frames = (json.dumps({"action": "join_channel", "channel": name}).encode() for name in names)
                client.send_raw(b"".join(encode_frame(TEXT, frame) for frame in frames))
            for client in clients:
                client.action("ping", ref="joined")
                client.receive_until(ref="joined", timeout=60)
            for client in clients:
                client.reset()
                lost.append(client.client_id)
            self.wait(lambda stats: stats["total_connections"] == 1)
        self.wait(lambda stats: stats["away_forgotten"])
        return lost

    def fill_mailboxes(self, lost: list[str]) -> None:
        self.ask("mail", lost, 20, 10_000)
        self.wait(lambda stats: stats["dropped"]["mailbox_full"] and stats["dropped"]["mailboxes_full"])

    def fill_keys(self) -> None:
        self.ask("use_keys", 7000)
        frames = (
            f'{{"action":"broadcast","channel":"keys","event":"n","idempotency_key":"{number:0255}"}}'
            for number in range(7000)
        )
        self._publisher.send_raw(b"".join(encode_frame(TEXT, frame.encode()) for frame in frames))
        assert self._publisher.ask("ping", timeout=60)["pong"] is True
        self.wait(lambda stats: stats["idempotency_keys"] == 15_000 and stats["idempotency_keys_displaced"] == 6000)

    def fill_input(self) -> None:
        half = encode_frame(TEXT, b"x" * 1_000_000)[:200_000]
        for _ in range(60):
            # the server may close it while it still sends
            with contextlib.suppress(OSError):
                self.client().send_raw(half)
        self.wait(lambda stats: stats["disconnects"].get("input_overload", 0) > 30)

    def stall_readers(self) -> None:
        for _ in range(40):
            client = self.client(receive_buffer=4096)
            client.action("join_channel", channel="stalled", ref="join")
            client.receive_until(ref="join", timeout=60)
        self.ask("publish", "stalled", 300, 30_000)
        self.wait(lambda stats: stats["dropped"]["drop_oldest"])

    def block_handlers(self) -> None:
        for _ in range(2):
            threading.Thread(target=send_events, args=(self.client(), 500), daemon=True).start()
        self.wait(lambda stats: stats["event_pauses"] and stats["event_bytes"] > SMALL["event_queue_bytes"])

    def fill_changes(self) -> None:
        self.ask("publish", "news:{}", 400, 30_000, 60)
        self.wait(lambda stats: stats["storage"]["changes_lost"])


@contextlib.contextmanager
def small_server(tmp_path: Path) -> Iterator[Filled]:
    settings = SMALL | {"database": f"sqlite:///{tmp_path / 'tantor.db'}"}
    source = textwrap.dedent(SERVER).replace("sys.argv[1]", repr(json.dumps(settings)))
    with script(source, tmp_path) as server, ExitStack() as stack:
        port, control = map(int, server.wait_for_line("ports ").split())
        connection = stack.enter_context(Client(("127.0.0.1", control)))
        yield Filled(port, connection, psutil.Process(server.process.pid), stack)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident size is compared as Linux counts it")
def test_all_queues_at_their_bounds_take_no_more_than_the_formula_says(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with small_server(tmp_path) as server:
        before = server.resident()
        server.fill_durable_history()
        server.fill_history()
        lost = server.lose_clients()
        server.fill_mailboxes(lost)
        server.fill_keys()
        server.fill_input()
        server.stall_readers()
        server.block_handlers()
        with locked_by_another(tmp_path / "tantor.db", tmp_path / "lock"):
            server.fill_changes()
            stats = server.stats()
        shown = {name: value for name, value in stats.items() if name != "channels"}
        # each queue is full, and no fuller than its bound
        for gauge, bound in {
            "durable_bytes": SMALL["durable_bytes"],
            "history_bytes": SMALL["history_bytes"],
            "away_bytes": SMALL["away_bytes"],
            "mailbox_bytes": SMALL["mailboxes_bytes"],
            "unfinished_bytes": SMALL["max_unfinished_bytes"],
            "queued_bytes": SMALL["max_queued_bytes"] + SMALL["shards"] * SMALL["inbox_bytes"],
            "event_bytes": 4 * SMALL["event_queue_bytes"],
        }.items():
            assert bound / 5 < stats[gauge] <= bound, (gauge, bound, shown)
        # deletions are queued beyond the bound
        saving, bound = stats["storage"]["queued_bytes"], SMALL["database_queue_bytes"]
        assert bound / 2 < saving <= bound + MIB // 4, shown
        grown = server.highest - before
        allowed = 2 * (memory_at_worst(Tantor(**SMALL | {"database": "sqlite:///unused.db"})) - 40 * MIB)
        assert grown <= allowed, f"grown by {grown >> 20} MiB, allowed are {allowed >> 20}: {shown}"
