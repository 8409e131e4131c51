"""`get_tantor`. This module imports Flask only if the application has imported Flask."""

import sys
from typing import Any

from tantor.latest import latest
from tantor.messenger import Tantor


def get_tantor() -> Tantor | Any:  # not `| None`: most callers know that there is one
    """The app's Tantor inside a Flask context, else the one that this process made last; None if there is none."""
    if "flask" in sys.modules:  # without Flask there is no context
        from flask import current_app, has_app_context

        if has_app_context():
            found = current_app.extensions.get("tantor") or getattr(current_app, "tantor", None)
            return found if isinstance(found, Tantor) else None
    return latest()
