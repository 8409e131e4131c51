"""Which messages were seen lately."""

from collections import OrderedDict


class Recent:
    """The ids of the last `size` messages, each with the time it was published."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._published: OrderedDict[str, float] = OrderedDict()
        self.floor = float("-inf")
        """All that was published up to this time may have been forgotten here."""

    def __contains__(self, message_id: object) -> bool:
        return message_id in self._published

    def __len__(self) -> int:
        return len(self._published)

    def add(self, message_id: str, published: float) -> bool:
        """Remember a message; False if it was known."""
        if message_id in self._published:
            return False
        self._published[message_id] = published
        if len(self._published) > self._size:
            _, forgotten = self._published.popitem(last=False)
            self.floor = max(self.floor, forgotten)
        return True
