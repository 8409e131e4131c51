"""When to come back, and when not to. No I/O, no clock."""

import random
from collections.abc import Mapping

# What a close means: from 3500 on the server asks not to come back, and so do those of applications that are not ours.
FIRST_FINAL_CODE = 3500

# A connection that lived so long was a good one: the next attempt is again a first.
STABLE_AFTER = 5.0

# Statuses of HTTP with which another attempt makes sense.
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})

_MAX_RETRY_AFTER = 3600.0


def is_final(code: int | None) -> bool:
    """Whether a close code says not to come back."""
    return code is not None and code >= FIRST_FINAL_CODE


def is_retried(status: int) -> bool:
    """Whether an HTTP status may be another one the next time."""
    return status in _RETRIED_STATUSES


def retry_after(headers: Mapping[str, str]) -> float:
    """The seconds of `Retry-After`; 0 without, or for a date."""
    try:
        seconds = float(headers.get("Retry-After", "0"))
    except ValueError:
        return 0.0
    # NaN is no number to compare with
    return min(seconds, _MAX_RETRY_AFTER) if seconds > 0 else 0.0


class Backoff:
    """Exponential, with full jitter: any time up to `base * 2**attempts`, at most `cap`."""

    def __init__(self, base: float, cap: float) -> None:
        self._base = base
        self._cap = cap
        self._attempts = 0

    @property
    def is_first(self) -> bool:
        """Whether no attempt has failed since the last good connection."""
        return self._attempts == 0

    def reset(self) -> None:
        """A connection was good."""
        self._attempts = 0

    def next_delay(self, at_least: float = 0.0) -> float:
        """Seconds to the next attempt; with `at_least` that much later than without, so that clients stay apart."""
        most = min(self._cap, self._base * 2 ** min(self._attempts, 60))
        self._attempts += 1
        return at_least + random.uniform(0.0, most)
