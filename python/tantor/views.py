"""Channels and connections for the application: live mappings over the state of the server.

The mappings hold nothing of their own but what the application attached (`user_data`, `settings`); an object is
made when it is asked for.
"""

import json
import logging
import time
from collections.abc import Callable, ItemsView, Iterator, Mapping, MutableMapping, ValuesView
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Self, TypeVar

from tantor import _tantor
from tantor.errors import DataError
from tantor.json_messages import UnreadableMessage, read_message


class MessageType(Enum):
    """The kind of a message."""

    CHAT = "chat"
    SYSTEM = "system"
    EMERGENCY = "emergency"
    PRESENCE = "presence"
    HEARTBEAT = "heartbeat"


class ChannelType(Enum):
    """The label of a channel."""

    PUBLIC = "public"
    PRIVATE = "private"
    EMERGENCY = "emergency"


@dataclass
class Message:
    """A message, as in code written to the original; `timestamp` in Unix seconds."""

    id: str
    channel: str
    message: str
    sender: str
    timestamp: float
    message_type: str = MessageType.CHAT.value
    data: dict[str, Any] = None  # type: ignore[assignment]  # as in the original; it becomes a dict

    def __post_init__(self) -> None:
        if self.data is None:
            self.data = {}


@dataclass(frozen=True)
class History:
    """A page of a channel's history: `publications` as sent on the wire, oldest first, each with its `offset`.

    `epoch` identifies the channel's stream; `offset` is the offset of its last publication.
    """

    epoch: str
    offset: int
    publications: list[dict[str, Any]]

    @classmethod
    def from_wire(cls, epoch: str, offset: int, publications: list[bytes]) -> "History":
        """Parse the publications. A publication that cannot be parsed is left out and logged."""
        return cls(epoch, offset, list(_readable(publications)))


def _readable(publications: list[bytes]) -> Iterator[dict[str, Any]]:
    for text in publications:
        try:
            publication = read_message(text)
        except (ValueError, RecursionError) as error:
            logging.getLogger("tantor").warning("a publication cannot be read (%r): %.80r", error, text)
            continue
        if isinstance(publication, UnreadableMessage):
            logging.getLogger("tantor").warning(
                "the publication %s of channel %r cannot be read: an integer has more digits than Python reads",
                publication.get("offset"),
                publication.get("channel"),
            )
            continue
        yield publication


class ReadOnlyList(list[str]):
    """A snapshot of names. Changes raise `TypeError`, because they would have no effect on the server."""

    def _refuse(self, *arguments: Any, **keywords: Any) -> Any:
        raise TypeError("this list only shows what is so; use Tantor.subscribe() and Tantor.unsubscribe()")

    append = extend = insert = remove = pop = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse


class Channel:
    """A named stream: `name`, `type`, `subscribers` (ids, in the order in which they came), `created_at`, `settings`.

    `created_at` is in Unix seconds; `settings` is a dict for the application's own use. Those that
    `Tantor.channels` gives are live: `subscribers` are those of the moment.
    """

    def __init__(
        self,
        name: str,
        type: str = ChannelType.PUBLIC.value,
        subscribers: list[str] | None = None,
        created_at: float | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.type = type
        self.created_at = time.time() if created_at is None else created_at
        self.settings = {} if settings is None else settings
        self._subscribers = [] if subscribers is None else subscribers

    @property
    def subscribers(self) -> list[str]:
        """Ids of all subscribers, connected or not."""
        return self._subscribers

    def __repr__(self) -> str:
        return f"Channel(name={self.name!r}, type={self.type!r}, subscribers={self.subscribers!r})"


class Connection:
    """A connected client: `client_id`, `joined_at`, `last_ping` (Unix seconds), `channels`, `user_data`.

    `user_data` is a dict for the application's own use, kept while the client is connected, and while it is away if it
    can be JSON (what is changed inside of its values is kept once it is assigned again). Those that
    `Tantor.connections` gives are live: `last_ping` and `channels` are those of the moment, and the last known
    ones after it has gone.
    """

    def __init__(
        self,
        client_id: str,
        joined_at: float | None = None,
        last_ping: float | None = None,
        channels: list[str] | None = None,
        user_data: dict[str, Any] | None = None,
    ) -> None:
        now = time.time()
        self.client_id = client_id
        self.joined_at = now if joined_at is None else joined_at
        self.user_data: dict[str, Any] = {} if user_data is None else user_data
        self._last_ping = now if last_ping is None else last_ping
        self._channels = [] if channels is None else channels

    @property
    def last_ping(self) -> float:
        """The time of the client's last ping or pong, in Unix seconds."""
        return self._last_ping

    @property
    def channels(self) -> list[str]:
        """Names of the channels that the client is subscribed to."""
        return self._channels

    @property
    def handshake_complete(self) -> bool:
        """Always true: only clients whose handshake is complete are shown."""
        return True

    def __repr__(self) -> str:
        return f"Connection(client_id={self.client_id!r}, channels={self.channels!r})"


class _LiveChannel(Channel):
    """A channel of `Tantor.channels`: `settings` can be assigned, other attributes are read-only."""

    _owner: "Channels"

    def __init__(self, channels: "Channels", info: tuple[str, str, list[str], float]) -> None:
        name, kind, subscribers, created_at = info
        attached = channels._settings.of(name, channels)
        self.__dict__.update(_owner=channels, name=name, type=kind, created_at=created_at, settings=attached)
        self.__dict__["_subscribers"] = subscribers

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "settings":
            raise AttributeError(f"the {name} of the channel {self.name!r} cannot be set")
        self.__dict__["settings"] = self._owner._settings.replace(self.name, value)

    @property
    def subscribers(self) -> list[str]:
        info = self._owner._messenger._channel_info(self.name)
        return ReadOnlyList(() if info is None else info[2])


class _LiveConnection(Connection):
    """A connection of `Tantor.connections`: `user_data` can be assigned, other attributes are read-only."""

    _owner: "Connections"

    def __init__(self, connections: "Connections", info: tuple[str, float, float, list[str]]) -> None:
        client_id, joined_at, last_ping, channels = info
        attached = connections._user_data.of(client_id, connections)
        self.__dict__.update(_owner=connections, client_id=client_id, joined_at=joined_at, user_data=attached)
        self.__dict__.update(_last_ping=last_ping, _channels=channels)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "user_data":
            raise AttributeError(f"the {name} of the connection {self.client_id!r} cannot be set")
        self.__dict__["user_data"] = self._owner._user_data.replace(self.client_id, value)

    def _refresh(self) -> None:
        if (info := self._owner._messenger._connection_info(self.client_id)) is not None:
            self.__dict__.update(_last_ping=info[2], _channels=info[3])

    @property
    def last_ping(self) -> float:
        self._refresh()
        return self._last_ping

    @property
    def channels(self) -> list[str]:
        self._refresh()
        return ReadOnlyList(self._channels)


_Value = TypeVar("_Value")


class _PresentItems(ItemsView[str, _Value]):
    """Items whose key still exists when the iteration reaches it; others are left out."""

    def __init__(self, source: Mapping[str, _Value]) -> None:
        super().__init__(source)
        self._source = source

    def __iter__(self) -> Iterator[tuple[str, _Value]]:
        for key in self._source:
            try:
                yield key, self._source[key]
            except KeyError:
                continue


class _PresentValues(ValuesView[_Value]):
    """Values whose key still exists when the iteration reaches it; others are left out."""

    def __init__(self, source: Mapping[str, _Value]) -> None:
        super().__init__(source)
        self._source = source

    def __iter__(self) -> Iterator[_Value]:
        for _, value in _PresentItems(self._source):
            yield value


class _Attached(Generic[_Value]):
    """Dicts that the application attached to names. A dict is dropped some time after its name is gone."""

    _SPARE = 64

    def __init__(self, make: Callable[[str], dict[str, Any]] | None = None) -> None:
        self._dicts: dict[str, dict[str, Any]] = {}
        self._make = make

    def of(self, name: str, live: Mapping[str, _Value]) -> dict[str, Any]:
        attached = self._dicts.get(name)
        if attached is None:
            if len(self._dicts) > 2 * len(live) + self._SPARE:
                for known in list(self._dicts):
                    if known not in live:
                        self._dicts.pop(known, None)
            attached = self._dicts.setdefault(name, {} if self._make is None else self._make(name))
        return attached

    def replace(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypeError(f"what is attached to {name!r} must be a dict, not {type(value).__name__}")
        if self._make is None:
            self._dicts[name] = value
            return value
        attached = self._make(name)
        attached.clear()
        attached.update(value)
        self._dicts[name] = attached
        return attached

    def forget(self, name: str) -> None:
        self._dicts.pop(name, None)


class _UserData(dict[str, Any]):
    """Saves its content in the server at each change, so that the content outlives the connection."""

    def __init__(self, messenger: _tantor.Messenger, client_id: str) -> None:
        self._messenger = messenger
        self._client_id = client_id
        known = messenger._user_data(client_id)
        super().__init__({} if known is None else json.loads(known))

    def _save(self) -> None:
        try:
            self._messenger._set_user_data(self._client_id, dict(self))
        except DataError as error:
            logging.getLogger("tantor.connections").debug(
                "the user_data of %s is kept in this process only: %s", self._client_id, error
            )

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._save()

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._save()

    def __ior__(self, other: Any) -> Self:  # type: ignore[override, misc]  # as dict's
        self.update(other)
        return self

    def update(self, *others: Any, **values: Any) -> None:
        super().update(*others, **values)
        self._save()

    def pop(self, *arguments: Any) -> Any:
        value = super().pop(*arguments)
        self._save()
        return value

    def popitem(self) -> tuple[str, Any]:
        item = super().popitem()
        self._save()
        return item

    def setdefault(self, key: str, default: Any = None) -> Any:
        value = super().setdefault(key, default)
        self._save()
        return value

    def clear(self) -> None:
        super().clear()
        self._save()


class Channels(MutableMapping[str, Channel]):
    """`Tantor.channels`: name to `Channel`, in the order of creation.

    May be changed while it is iterated. Deleting a channel takes everyone off it, without notices; assigning a
    `Channel` makes one of its type.
    """

    def __init__(self, messenger: _tantor.Messenger) -> None:
        self._messenger = messenger
        self._settings: _Attached[Channel] = _Attached()

    def __getitem__(self, name: str) -> Channel:
        info = self._messenger._channel_info(name)
        if info is None:
            raise KeyError(name)
        return _LiveChannel(self, info)

    def __setitem__(self, name: str, channel: Channel) -> None:
        if channel.name != name:
            raise ValueError(f"the channel {channel.name!r} cannot go under the name {name!r}")
        is_new = self._messenger.create_channel(name, channel.type)  # type: ignore[arg-type]  # checked there

        if not is_new and (info := self._messenger._channel_info(name)) is not None and info[1] != channel.type:
            raise ValueError(f"the channel {name!r} is {info[1]} and cannot become {channel.type}; delete it first")
        self._settings.of(name, self).update(channel.settings)
        for client_id in channel.subscribers:
            self._messenger.subscribe(client_id, name)

    def __delitem__(self, name: str) -> None:
        if not self._messenger.delete_channel(name):
            raise KeyError(name)
        self._settings.forget(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._messenger._has_channel(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._messenger._channel_names())

    def __len__(self) -> int:
        return self._messenger._channel_count()

    def items(self) -> ItemsView[str, Channel]:
        """Names and channels; channels that are deleted during the iteration are left out."""
        return _PresentItems(self)

    def values(self) -> ValuesView[Channel]:
        """Channels; channels that are deleted during the iteration are left out."""
        return _PresentValues(self)

    def __repr__(self) -> str:
        return f"<channels: {', '.join(self)}>"


class Connections(Mapping[str, Connection]):
    """`Tantor.connections`: id to `Connection` of every connected client, in the order of connecting."""

    def __init__(self, messenger: _tantor.Messenger) -> None:
        self._messenger = messenger
        self._user_data: _Attached[Connection] = _Attached(lambda client_id: _UserData(messenger, client_id))

    def __getitem__(self, client_id: str) -> Connection:
        info = self._messenger._connection_info(client_id)
        if info is None:
            raise KeyError(client_id)
        return _LiveConnection(self, info)

    def __contains__(self, client_id: object) -> bool:
        return isinstance(client_id, str) and self._messenger._has_connection(client_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self._messenger._connection_ids())

    def __len__(self) -> int:
        return self._messenger._connection_count()

    def items(self) -> ItemsView[str, Connection]:
        """Ids and connections; clients that disconnect during the iteration are left out."""
        return _PresentItems(self)

    def values(self) -> ValuesView[Connection]:
        """Connections; clients that disconnect during the iteration are left out."""
        return _PresentValues(self)

    def __repr__(self) -> str:
        return f"<{len(self)} connections>"
