"""The live mappings `channels` and `connections`."""

import collections.abc
import gc
import time
from collections.abc import Callable

import pytest
from support import WebSocketClient, eventually
from tantor import Channel, ChannelType, Connection, Tantor

Connect = Callable[..., WebSocketClient]


def test_the_channels_of_the_start() -> None:
    tantor = Tantor()
    kinds = {name: channel.type for name, channel in tantor.channels.items()}
    assert kinds == {
        "jungle": ChannelType.PUBLIC.value,
        "treehouse": ChannelType.PRIVATE.value,
        "emergency": ChannelType.EMERGENCY.value,
    }


def test_channels_are_a_live_mapping(server: Tantor, connect: Connect) -> None:
    channels = server.channels
    assert isinstance(channels, collections.abc.Mapping)
    assert list(channels) == ["jungle", "treehouse", "emergency"]
    client = connect(server)
    server.subscribe(client.client_id, "den")
    assert len(channels) == 4
    assert "den" in channels
    assert channels.get("no such channel") is None
    with pytest.raises(KeyError, match="no such channel"):
        channels["no such channel"]
    den = channels["den"]
    assert isinstance(den, Channel)
    assert (den.name, den.type, list(den.subscribers), den.settings) == ("den", "public", [client.client_id], {})
    assert abs(den.created_at - time.time()) < 60
    assert {channel.name for channel in channels.values()} == {"jungle", "treehouse", "emergency", "den"}


def test_a_channel_can_be_deleted_while_they_are_iterated(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    for number in range(10):
        server.subscribe(client.client_id, f"den {number}")
    for name, channel in server.channels.items():
        if channel.subscribers and name.startswith("den"):
            del server.channels[name]
    assert set(server.channels) == {"jungle", "treehouse", "emergency"}
    assert server.connections[client.client_id].channels == ["jungle"]
    assert server.broadcast("den 1", "news").result() == 0
    with pytest.raises(KeyError, match="no such channel"):
        del server.channels["no such channel"]


def test_connections_are_a_live_mapping(server: Tantor, connect: Connect) -> None:
    connections = server.connections
    assert isinstance(connections, collections.abc.Mapping)
    assert len(connections) == 0
    client = connect(server)
    assert list(connections) == [client.client_id]
    assert client.client_id in connections
    connection = connections[client.client_id]
    assert isinstance(connection, Connection)
    assert (connection.client_id, list(connection.channels)) == (client.client_id, ["jungle"])
    assert abs(connection.joined_at - time.time()) < 60
    assert abs(connection.last_ping - time.time()) < 60
    assert connections.get("client_nobody") is None
    client.close()
    eventually(lambda: len(connections) == 0, lambda: list(connections))
    with pytest.raises(KeyError, match=client.client_id):
        connections[client.client_id]


def test_user_data_sticks(server: Tantor, connect: Connect) -> None:
    one, two = connect(server), connect(server)
    server.connections[one.client_id].user_data["authenticated"] = True
    server.connections[one.client_id].user_data["name"] = "Terk"
    assert server.connections[one.client_id].user_data == {"authenticated": True, "name": "Terk"}
    info = server.get_client_info(one.client_id)
    assert info is not None
    assert info["user_data"] == {"authenticated": True, "name": "Terk"}
    assert server.connections[two.client_id].user_data == {}
    gc.collect()
    assert server.connections[one.client_id].user_data["name"] == "Terk"


def test_connections_cost_no_objects_until_somebody_asks(server: Tantor, connect: Connect) -> None:
    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(found), Connection) for found in gc.get_objects())

    before = alive()
    clients = [connect(server) for _ in range(50)]
    server.broadcast("jungle", "news")
    assert len(server.connections) == 50
    assert alive() == before
    held = server.connections[clients[0].client_id]
    assert alive() == before + 1, held


def test_what_is_assigned_to_a_live_object_is_kept_or_refused(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    connection = server.connections[client.client_id]
    connection.user_data = {"name": "Jane"}
    assert server.connections[client.client_id].user_data is connection.user_data
    channel = server.channels["jungle"]
    channel.settings = {"topic": "fruit"}
    assert server.channels["jungle"].settings == {"topic": "fruit"}
    with pytest.raises(AttributeError, match="type of the channel 'jungle' cannot be set"):
        channel.type = "private"
    with pytest.raises(AttributeError, match="last_ping"):
        connection.last_ping = 1.0  # type: ignore[misc]
    for names in (channel.subscribers, connection.channels):
        with pytest.raises(TypeError, match=r"subscribe\(\)"):
            names.append("bob")
    with pytest.raises(TypeError, match="must be a dict, not int"):
        connection.user_data = 1  # type: ignore[assignment]


def test_an_assigned_channel_must_fit_its_name_and_what_is_there(server: Tantor) -> None:
    server.channels["vip"] = Channel("vip", "private", ["client_1"])
    assert (server.channels["vip"].type, server.channels["vip"].subscribers) == ("private", ["client_1"])
    with pytest.raises(ValueError, match="'other' cannot go under the name 'lounge'"):
        server.channels["lounge"] = Channel("other")
    with pytest.raises(ValueError, match="is public and cannot become private"):
        server.channels["jungle"] = Channel("jungle", "private")
