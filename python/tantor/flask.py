"""Integration with Flask: one Tantor for each app, found from the app's context, and blueprints with its routes.

Importing this does not import Flask, and nothing here starts a server.
"""

import hashlib
import logging
import os
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from tantor.current import get_tantor
from tantor.messenger import Tantor
from tantor.setting_types import Settings
from tantor.settings import resolve

if TYPE_CHECKING:
    from flask import Blueprint, Flask

__all__ = ["blueprint", "get_tantor", "init_tantor", "js_blueprint"]


def init_tantor(
    app: "Flask",
    port: int | None = None,
    host: str | Sequence[str] | None = None,
    *,
    default: Callable[[Any], Any] | None = None,
    **settings: Unpack[Settings],
) -> Tantor:
    """Make the Tantor of an app, known as `app.extensions["tantor"]` and `app.tantor`. It is not started.

    A setting comes from the arguments, else from `app.config` (`TANTOR_PORT`, or a key of the dict
    `TANTOR_CONFIG`), else from the environment (`TANTOR_PORT`), else it is the default: 8080 on 0.0.0.0.
    `default` is for data that JSON does not know, as in `Tantor`. Handlers run in the app's application context, unless
    the setting `app_context` is false.

    Called again for an app, it returns the Tantor that is there if nothing else is asked for, and replaces one that
    does not run, as the original did: Flask-TSK makes one for the app besides the application's own call.
    Errors: `RuntimeError` if the app has one that runs with other settings; `SettingError` for a bad value and
    `TypeError` for an unknown setting, which leave the app as it was.
    """
    given = {"port": port, "host": host, **settings}
    known = app.extensions.get("tantor")
    if isinstance(known, Tantor):
        asked = resolve({name: value for name, value in given.items() if value is not None}, config={}, environ={})
        if default is None and all(known.setting(name) == value for name, value in asked.items()):
            return known
        if known.is_running:
            raise RuntimeError(
                f"the Flask app {app.name!r} has a Tantor already: {known!r}; "
                "call init_tantor once for each app, and get_tantor() wherever it is used"
            )
        logging.getLogger("tantor.flask").warning(
            "the Tantor of the Flask app %r is replaced by one with other settings", app.name
        )
    resolved = resolve(given, config=app.config)
    resolved.setdefault("app_id", _app_id(app))
    tantor = Tantor(default=default, **resolved)  # type: ignore[arg-type]  # checked in there
    tantor._ask_before_attach(_is_not_tested(app))
    if tantor.setting("app_context"):
        tantor._handlers.make_context = app.app_context
    app.extensions["tantor"] = tantor
    app.tantor = tantor  # type: ignore[attr-defined]  # code written to the original reads this attribute
    return tantor


def _app_id(app: "Flask") -> str:
    """The same in every process of the app, and another one for each user, app and folder."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    app_id = f"{user} {app.name} {app.root_path}"
    return app_id if len(app_id.encode()) <= 255 else hashlib.sha256(app_id.encode()).hexdigest()


def _is_not_tested(app: "Flask") -> Callable[[], bool]:
    """Return a function that tells whether the app is not under test: tests must not publish on a server that runs."""
    reference = weakref.ref(app)

    def is_not_tested() -> bool:
        app = reference()
        return app is not None and not app.testing

    return is_not_tested


def blueprint(name: str = "tantor", url_prefix: str | None = "/api/tantor") -> "Blueprint":
    """A blueprint with routes for the app's Tantor, for `app.register_blueprint`.

    `POST send, broadcast, subscribe, unsubscribe, emergency` take a JSON object, `GET presence, stats,
    client/<id>` answer with one. Errors are `{"error": text}`: 400 for what was wrong with the request (with
    the `field`, if it was one), 404 for an unknown client, 500 where the app has no Tantor.

    Whoever can reach these routes can use them: add a check with the blueprint's `before_request` where that
    is not everybody.
    """
    from tantor.routes import make_blueprint

    return make_blueprint(name, url_prefix)


def js_blueprint(name: str = "tantor_js", url_prefix: str | None = "/tantor") -> "Blueprint":
    """A blueprint that serves the JavaScript client from the app's own origin, for `app.register_blueprint`.

    A page that imports `tantor.js` from Tantor's port stays without a client if Tantor is down when the page loads.
    With this blueprint the app serves `tantor.js`, under a URL that changes with its content and that browsers keep
    for a year. Templates get two functions:

    - `{{ tantor_importmap() }}`, before the first module: an import map, so that every module of the page can
      `import { connect } from "tantor"`. `nonce=` is for a Content-Security-Policy.
    - `{{ tantor_js_url() }}`: the URL, for pages that have an import map of their own.
    """
    from tantor.js_routes import make_js_blueprint

    return make_js_blueprint(name, url_prefix)
