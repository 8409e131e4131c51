"""Histories: offsets, bounds, settings by name and pattern, and pages, on the wire and from Python."""

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from support import WebSocketClient, eventually
from tantor import SettingError, Tantor, init_tantor
from tantor.settings import load_toml

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]

OFFSET = 2**63 - 1


def publish(server: Tantor, channel: str, count: int, start: int = 1) -> None:
    for number in range(start, start + count):
        server.broadcast(channel, "n", number)


def numbers(publications: list[dict[str, Any]]) -> list[int]:
    """Return the published data, after a check that all offsets are there and in order."""
    offsets = [publication["offset"] for publication in publications]
    assert offsets == sorted(set(offsets)), offsets
    return [publication["data"] for publication in publications]


def kept(server: Tantor, channel: str, **page: Any) -> list[int]:
    return numbers(server.history(channel, **page).result().publications)


# Offsets


def test_offsets_count_the_publications_of_each_channel(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    client.action("join_channel", channel="den")
    client.settle(server)
    for number in range(1, 6):
        server.broadcast("den", "n", number)
        client.action("broadcast", channel="jungle", event="n", data=number)
    seen = client.settle(server)
    for channel in ("den", "jungle"):
        publications = [message for message in seen if message.get("event") == "n" and message["channel"] == channel]
        assert [(message["data"], message["offset"]) for message in publications] == [(n, n) for n in range(1, 6)]


def test_what_is_kept_is_what_was_on_the_wire(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    client.action("broadcast", event="chat", data={"text": "🐘"})
    live = [client.receive_until(event="chat")]
    server.broadcast("jungle", "news", [1, None])
    live += [client.receive_until(event="news")]
    history = server.history("jungle").result()
    assert history.publications == live
    assert [message["event"] for message in live] == ["chat", "news"]
    assert client.ask("history")["publications"] == live


def test_notices_take_no_offset_and_are_not_kept(server: Tantor, connect: Connect) -> None:
    watcher = connect(server)
    with connect(server) as other:
        other.say_goodbye()
    server.subscribe("client_away", "jungle")
    server.unsubscribe("client_away", "jungle")
    server.broadcast("jungle", "n", 1)
    seen = watcher.receive_all_until(event="n")
    notices = [message for message in seen if message["event"] in ("user_joined", "user_left")]
    assert len(notices) == 5
    assert all("offset" not in notice for notice in notices)
    assert seen[-1]["offset"] == 1
    assert kept(server, "jungle") == [1]


def test_messages_to_one_client_are_not_of_the_channels_history(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    server.send(client.client_id, {"event": "n"}, "jungle")
    assert "offset" not in client.receive_until(event="n")
    assert kept(server, "jungle") == []


def test_an_emergency_is_kept_on_its_channel(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    server.emergency("lions")
    alert = client.receive_until(event="emergency_alert")
    assert alert["offset"] == 1
    assert server.history("emergency").result().publications == [alert]


def test_offsets_have_no_gap_and_one_order_under_eight_publishing_threads(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    each = 200

    def work(thread: int) -> None:
        for number in range(each):
            server.broadcast("jungle", "n", [thread, number])

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    seen = []
    while len(seen) < 8 * each:
        seen.append(client.receive_until(event="n"))
    for thread in threads:
        thread.join()
    assert [message["offset"] for message in seen] == list(range(1, 8 * each + 1))
    assert server.history("jungle").result().publications == seen[-100:]


def test_history_works_without_a_running_server() -> None:
    tantor = Tantor()
    publish(tantor, "den", 3)
    history = tantor.history("den").result()
    assert re.fullmatch("[0-9a-f]{16}", history.epoch)
    assert (history.offset, numbers(history.publications)) == (3, [1, 2, 3])


async def _awaited(tantor: Tantor) -> Any:
    return await tantor.history("den")


def test_history_can_be_awaited() -> None:
    import asyncio

    tantor = Tantor()
    publish(tantor, "den", 2)
    assert asyncio.run(_awaited(tantor)) == tantor.history("den").result()


# Bounds


def test_so_many_are_kept(make_server: MakeServer) -> None:
    server = make_server(history_size=5)
    publish(server, "den", 12)
    history = server.history("den").result()
    assert (history.offset, numbers(history.publications)) == (12, [8, 9, 10, 11, 12])
    assert server.stats()["history_messages"] == 5


def test_a_publication_is_kept_so_long(make_server: MakeServer) -> None:
    server = make_server(message_ttl=0.5)
    publish(server, "den", 3)
    eventually(lambda: kept(server, "den") == [], lambda: kept(server, "den"))
    history = server.history("den").result()
    assert history.offset == 3, "the position outlives what was kept"
    publish(server, "den", 1, start=4)
    assert kept(server, "den") == [4]


def test_emergencies_are_kept_longer_than_messages(make_server: MakeServer) -> None:
    server = make_server(message_ttl=0.2)
    server.emergency("lions")
    publish(server, "den", 1)
    eventually(lambda: kept(server, "den") == [], lambda: kept(server, "den"))
    assert len(server.history("emergency").result().publications) == 1


def test_all_histories_together_are_bounded_and_the_largest_lose_their_oldest_first(make_server: MakeServer) -> None:
    limit = 200_000
    server = make_server(history_bytes=limit)
    for name, count in (("quiet", 3), ("small", 5), ("loud", 30)):
        for _ in range(count):
            server.broadcast(name, "n", "x" * 10_000)
    stats = server.stats()
    assert stats["history_bytes"] <= limit
    kept = {name: len(server.history(name).result().publications) for name in ("quiet", "small", "loud")}
    assert (kept["quiet"], kept["small"]) == (3, 5), kept
    assert 5 <= kept["loud"] < 12, kept
    assert sum(kept.values()) == stats["history_messages"]
    assert stats["dropped"] == {"history_bytes": {"loud": 30 - kept["loud"]}}


def test_a_message_that_is_larger_than_all_room_is_delivered_and_not_kept(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(history_bytes=50_000)
    client = connect(server)
    server.broadcast("jungle", "n", "x" * 100_000)
    assert client.receive_until(event="n")["offset"] == 1
    history = server.history("jungle").result()
    assert (history.offset, history.publications) == (1, [])


@pytest.mark.parametrize("setting", ["history_size", "message_ttl", "history_bytes"])
def test_nothing_is_kept_where_a_bound_is_zero(make_server: MakeServer, connect: Connect, setting: str) -> None:
    server = make_server(**{setting: 0})
    client = connect(server)
    server.broadcast("jungle", "n", 1)
    assert "offset" not in client.receive_until(event="n")
    history = server.history("jungle").result()
    assert (history.offset, history.publications) == (1, [])
    assert server.stats()["history_messages"] == 0


def test_a_deleted_channel_begins_anew(server: Tantor) -> None:
    publish(server, "den", 3)
    before = server.history("den").result()
    del server.channels["den"]
    after = server.history("den").result()
    assert after.epoch != before.epoch
    assert (after.offset, after.publications) == (0, [])
    assert server.stats()["history_messages"] == 0


# Settings by name and pattern

RULES = {"chat:*": {"history_size": 3}, "chat:vip": {"history_size": 4}, "*": {"history_size": 2}}


def check_rules(tantor: Tantor) -> None:
    for channel, size in {"chat:1": 3, "chat:": 3, "chat:vip": 4, "den": 2, "chat": 2}.items():
        publish(tantor, channel, 6)
        assert kept(tantor, channel) == list(range(7 - size, 7)), channel


def test_channels_have_settings_by_name_and_pattern() -> None:
    check_rules(Tantor(channel_settings=RULES))
    check_rules(Tantor(channel_settings=json.dumps(RULES)))


def test_settings_of_channels_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANTOR_CHANNEL_SETTINGS", json.dumps(RULES))
    check_rules(Tantor())


@pytest.mark.parametrize(
    "config", [{"TANTOR_CHANNEL_SETTINGS": RULES}, {"TANTOR_CONFIG": {"channel_settings": RULES}}], ids=["key", "dict"]
)
def test_settings_of_channels_come_from_a_flask_configuration(config: dict[str, Any]) -> None:
    app = Flask("application")
    app.config.update(config)
    check_rules(init_tantor(app))


def test_settings_of_channels_come_from_a_toml_file(tmp_path: Path) -> None:
    file = tmp_path / "tantor.toml"
    file.write_text("""
[tantor.channel_settings]
"chat:*" = {history_size = 3}
"chat:vip" = {history_size = 4}
"*" = {history_size = 2}
""")
    check_rules(Tantor(**load_toml(file)))  # type: ignore[arg-type]


def test_a_time_to_live_by_channel(make_server: MakeServer) -> None:
    server = make_server(channel_settings={"brief": {"message_ttl": 0.2}})
    publish(server, "brief", 1)
    publish(server, "den", 1)
    eventually(lambda: kept(server, "brief") == [], lambda: kept(server, "brief"))
    assert kept(server, "den") == [1]


def test_a_pattern_that_no_channel_is_like_does_nothing() -> None:
    tantor = Tantor(channel_settings={"nobody:*": {"history_size": 0}})
    publish(tantor, "den", 2)
    assert kept(tantor, "den") == [1, 2]


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({"": {}}, '"" can match no channel: it is empty'),
        ({"x" * 256: {}}, "can match no channel: it has 256 bytes, and a name has at most 255"),
        ({"a\n*": {}}, r"can match no channel: it has the control character U\+000A"),
        ({"system": {}}, "can match no channel: it is the server's own"),
        ({"a": 5}, '"a" is 5; it takes an object of settings'),
        ({"a": {"history_size": -1}}, '"a": history_size is -1; it takes a whole number from 0 to 10000000'),
        ({"a": {"history_sise": 1}}, '"a": there is no "history_sise"; there are history_size'),
        ({"a": {"message_ttl": "soon"}}, '"a": message_ttl is "soon"; it takes a number of seconds from 0'),
        ({"a": {"durable": True}}, '"a" is durable; that takes a database'),
        ([1], "channel_settings"),
        ("{", "no JSON"),
    ],
)
def test_rules_that_cannot_be_are_refused_with_the_place(rules: Any, problem: str) -> None:
    with pytest.raises(SettingError, match=problem) as error:
        Tantor(channel_settings=rules)
    assert str(error.value).startswith("channel_settings")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"leave_delay": 30, "resume_ttl": 20}, r"leave_delay is 30; it takes at most resume_ttl \(20\)"),
        ({"leave_delay": 1, "resume_ttl": 0}, r"leave_delay is 1; it takes at most resume_ttl \(0\)"),
        ({"durable": True}, "durable is true; that takes a database"),
        (
            {"durable": True, "database": "sqlite:///x.db", "history_size": 0},
            "durable is true; that takes a history_size and a message_ttl above 0",
        ),
        ({"max_pending_bytes": 2**21, "max_queued_bytes": 2**20}, "max_pending_bytes is 2097152; it takes at most"),
        ({"history_size": -1}, "history_size is -1; it takes a whole number from 0"),
        ({"resume_ttl": -1}, "resume_ttl is -1; it takes a number of seconds from 0"),
        ({"max_away_clients": -1}, "max_away_clients is -1; it takes a whole number from 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingError, match=problem):
        Tantor(**settings)


# Pages

PAGES: list[tuple[dict[str, int], list[int]]] = [
    ({}, list(range(1, 11))),
    ({"limit": 3}, [8, 9, 10]),
    ({"limit": 3, "after": 4}, [5, 6, 7]),
    ({"limit": 3, "before": 4}, [1, 2, 3]),
    ({"limit": 2, "before": 4}, [2, 3]),
    ({"after": 4, "before": 7}, [5, 6]),
    ({"after": 0, "limit": 1}, [1]),
    ({"after": 9}, [10]),
    ({"after": 10}, []),
    ({"after": 11}, []),
    ({"after": OFFSET}, []),
    ({"before": OFFSET}, list(range(1, 11))),
    ({"before": 1}, []),
    ({"before": 0}, []),
    ({"after": 7, "before": 3}, []),
]


@pytest.mark.parametrize(("page", "wanted"), PAGES)
def test_a_page_is_the_same_from_python_and_on_the_wire(
    server: Tantor, connect: Connect, page: dict[str, int], wanted: list[int]
) -> None:
    client = connect(server)
    publish(server, "den", 10)
    history = server.history("den", **page).result()
    assert numbers(history.publications) == wanted
    reply = client.ask("history", channel="den", **page)
    assert reply["event"] == "reply"
    assert reply["ok"] is True
    assert (reply["channel"], reply["epoch"], reply["offset"]) == ("den", history.epoch, history.offset)
    assert reply["publications"] == history.publications
    assert "more" not in reply


def test_all_of_a_long_history_is_read_page_by_page_from_either_end(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(history_size=1000)
    client = connect(server)
    publish(server, "den", 1000)
    forward: list[int] = []
    while publications := client.ask("history", channel="den", limit=77, after=len(forward))["publications"]:
        forward += numbers(publications)
    backward: list[int] = []
    before = 1001
    while publications := client.ask("history", channel="den", limit=77, before=before)["publications"]:
        backward = numbers(publications) + backward
        before = publications[0]["offset"]
    assert forward == backward == list(range(1, 1001))


def test_a_page_that_would_be_too_large_is_cut_and_says_so(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_pending_bytes=200_000)
    client = connect(server)
    for _ in range(5):
        server.broadcast("den", "n", "x" * 40_000)
    seen: list[int] = []
    while True:
        reply = client.ask("history", channel="den", after=seen[-1] if seen else 0)
        offsets = [publication["offset"] for publication in reply["publications"]]
        assert len(offsets) == 2 or seen
        seen += offsets
        if not reply.get("more"):
            break
    assert seen == [1, 2, 3, 4, 5]
    newest = client.ask("history", channel="den")
    assert [publication["offset"] for publication in newest["publications"]] == [4, 5]
    assert newest["more"] is True


def test_a_page_has_at_least_one_publication_however_large(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_pending_bytes=200_000)
    client = connect(server)
    server.broadcast("den", "n", "x" * 150_000)
    reply = client.ask("history", channel="den")
    assert [publication["offset"] for publication in reply["publications"]] == [1]


def test_history_without_a_ref_is_answered_too(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    publish(server, "den", 1)
    client.action("history", channel="den")
    reply = client.receive_until(event="reply")
    assert "ref" not in reply
    assert numbers(reply["publications"]) == [1]


def test_asking_for_history_makes_no_channel(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    before = list(server.channels)
    for number in range(200):
        assert client.ask("history", channel=f"invented {number}")["offset"] == 0
    assert server.history("invented").result().publications == []
    assert list(server.channels) == before


def test_what_is_published_after_the_history_of_an_unknown_channel_is_recovered(
    server: Tantor, connect: Connect
) -> None:
    client = connect(server)
    page = client.ask("history", channel="den")
    assert page["publications"] == []
    assert server.history("den").result().epoch == page["epoch"]
    publish(server, "den", 3)
    recover = {"epoch": page["epoch"], "offset": page["offset"]}
    reply = client.ask("join_channel", channel="den", recover=recover)
    assert reply["recovered"] is True
    assert numbers(reply["publications"]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"limit": 0}, 112, "limit is 0; it takes a whole number from 1 to 1000"),
        ({"limit": -1}, 112, "limit is -1; it takes a whole number from 1 to 1000"),
        ({"limit": 1001}, 112, "limit is 1001; it takes a whole number from 1 to 1000"),
        ({"limit": 10**30}, 103, f"limit is {10**30}; it takes a whole number"),
        ({"limit": 1.5}, 103, "limit is 1.5; it takes a whole number"),
        ({"limit": "3"}, 103, 'limit is "3"; it takes a whole number'),
        ({"limit": None}, 103, "limit is null; it takes a whole number"),
        ({"after": -1}, 103, f"after is -1; an offset is a whole number from 0 to {OFFSET}"),
        ({"after": 2**63}, 103, f"after is {2**63}; an offset is a whole number from 0 to {OFFSET}"),
        ({"before": "x"}, 103, f'before is "x"; an offset is a whole number from 0 to {OFFSET}'),
        ({"before": [[]]}, 103, f"before is [[]]; an offset is a whole number from 0 to {OFFSET}"),
        ({"channel": ""}, 107, "channel"),
        ({"channel": "system"}, 109, "system"),
    ],
)
def test_a_page_that_cannot_be_gets_an_error_with_the_value(
    server: Tantor, connect: Connect, fields: dict[str, Any], code: int, message: str
) -> None:
    client = connect(server)
    publish(server, "jungle", 1)
    error = client.ask("history", **fields)
    assert (error["event"], error["code"]) == ("error", code)
    assert message in error["message"]
    assert numbers(client.ask("history")["publications"]) == [1], "the connection lives on, and nothing is lost"


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ({"limit": 0}, "limit is 0; it takes a whole number from 1"),
        ({"limit": -(2**70)}, f"limit is -{2**70}; it takes"),
        ({"after": -1}, f"after is -1; an offset is a whole number from 0 to {OFFSET}"),
        ({"before": 2**63}, f"before is {2**63}; an offset is a whole number from 0 to {OFFSET}"),
    ],
)
def test_a_page_that_cannot_be_raises_with_the_value(page: dict[str, int], message: str) -> None:
    tantor = Tantor()
    with pytest.raises(ValueError, match=re.escape(message)):
        tantor.history("den", **page)
    with pytest.raises(ValueError, match="channel"):
        tantor.history("")
    publish(tantor, "den", 1)
    assert kept(tantor, "den", limit=2**70) == [1], "a limit that nothing reaches"
