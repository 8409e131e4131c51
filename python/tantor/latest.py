"""The Tantor that this process made last, held weakly: this module keeps no unused Tantor alive."""

import weakref

# `object`, because this module is imported by the class that it holds
_made: list[weakref.ref[object]] = []


def remember_latest(tantor: object) -> None:
    """Make a Tantor the latest, until it is garbage collected."""
    _made.append(weakref.ref(tantor, _made.remove))


def latest() -> object | None:
    """The newest Tantor that still exists; None if there is none."""
    for reference in reversed(_made.copy()):
        if (tantor := reference()) is not None:
            return tantor
    return None
