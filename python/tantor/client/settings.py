"""A client's settings."""

import math
from dataclasses import dataclass, fields

from tantor.errors import SettingError

# what each takes: the least, and whether it may be None; whole numbers are those whose default is one
_LEAST: dict[str, tuple[float, bool]] = {
    "connect_timeout": (0, True),
    "open_timeout": (0.001, False),
    "command_timeout": (0, True),
    "close_timeout": (0, False),
    "heartbeat_slack": (0, False),
    "reconnect_base": (0, False),
    "reconnect_cap": (0, False),
    "ack_delay": (0, False),
    "max_buffered": (1, False),
    "max_pending_commands": (1, False),
    "max_message_bytes": (1024, False),
    "dedup_window": (1, False),
}


@dataclass(frozen=True)
class ClientSettings:
    """Times are seconds. Errors: `SettingError` for a value that cannot be."""

    connect_timeout: float | None = 10.0
    open_timeout: float = 10.0
    command_timeout: float | None = 30.0
    close_timeout: float = 5.0
    heartbeat_slack: float = 10.0
    reconnect_base: float = 0.5
    reconnect_cap: float = 30.0
    ack_delay: float = 0.05
    max_buffered: int = 1000
    max_pending_commands: int = 1000
    max_message_bytes: int = 64 << 20
    dedup_window: int = 1024

    def __post_init__(self) -> None:
        for field in fields(self):
            self._check(field.name, isinstance(field.default, int))
        if self.reconnect_base > self.reconnect_cap:
            raise SettingError(
                f"reconnect_base is {self.reconnect_base!r}; it takes at most reconnect_cap ({self.reconnect_cap!r})"
            )

    def _check(self, name: str, is_whole: bool) -> None:
        value = getattr(self, name)
        least, may_be_none = _LEAST[name]
        kind = "a whole number" if is_whole else "a number of seconds"
        takes = f"{kind} from {least} on" + (", or None" if may_be_none else "")
        if value is None and may_be_none:
            return
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or (is_whole and not isinstance(value, int)) or value < least:
            raise SettingError(f"{name} is {value!r}; it takes {takes}")
