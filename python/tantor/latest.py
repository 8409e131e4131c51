"""Which Tantor this process made last, held weakly: what nobody uses any more is not kept alive for it."""

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tantor.messenger import Tantor

_made: "list[weakref.ref[Tantor]]" = []


def remember_latest(tantor: "Tantor") -> None:
    """Make this one the latest, for as long as something else holds it."""
    _made.append(weakref.ref(tantor, _made.remove))


def latest() -> "Tantor | None":
    """The Tantor made last of those that still exist; None if there is none."""
    for reference in reversed(_made.copy()):
        if (tantor := reference()) is not None:
            return tantor
    return None
