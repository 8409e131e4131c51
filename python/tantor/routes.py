"""The routes of `tantor.flask.blueprint()`. Needs Flask."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import BadRequest, HTTPException, UnsupportedMediaType

from tantor.current import get_tantor
from tantor.errors import TantorError
from tantor.messenger import Tantor

if TYPE_CHECKING:
    from tantor._tantor import Done

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class _Result(Protocol[_T_co]):
    def result(self) -> _T_co: ...


# The most characters of a value in an error.
_SHOWN_LENGTH = 80


def make_blueprint(name: str, url_prefix: str | None) -> Blueprint:
    """A new blueprint; see `tantor.flask.blueprint`."""
    blueprint = Blueprint(name, __name__, url_prefix=url_prefix)
    for view in (send, broadcast, subscribe, unsubscribe, emergency):
        blueprint.add_url_rule(f"/{view.__name__}", view_func=view, methods=["POST"])
    for view in (presence, stats):
        blueprint.add_url_rule(f"/{view.__name__}", view_func=view)
    blueprint.add_url_rule("/client/<client_id>", view_func=client)
    blueprint.register_error_handler(RefusedError, _answer_refused)
    blueprint.register_error_handler(HTTPException, _answer_http_error)
    blueprint.register_error_handler(TantorError, _answer_tantor_error)
    return blueprint


def send() -> Response:
    """`client_id`, `message` (text or object), `channel`: `{"success", "message_id"}`."""
    tantor, body = _tantor(), _body()
    client_id = _text(body, "client_id")
    message = _field(body, "message", (str, dict), "a text or an object")
    channel = _text(body, "channel", tantor.setting("default_channel"))
    return jsonify(success=True, message_id=_result(tantor.send, client_id, message, channel))


def broadcast() -> Response:
    """`channel`, `event`, `data` (any JSON): `{"success", "recipients", "channel"}`."""
    tantor, body = _tantor(), _body()
    channel = _text(body, "channel", tantor.setting("default_channel"))
    event = _text(body, "event", "message")
    recipients = _result(tantor.broadcast, channel, event, body.get("data", {}))
    return jsonify(success=True, recipients=recipients, channel=channel)


def subscribe() -> Response:
    """`client_id`, `channel`: `{"success", "client_id", "channel"}`."""
    tantor = _tantor()
    return _change_subscription(tantor, tantor.subscribe)


def unsubscribe() -> Response:
    """`client_id`, `channel`: `{"success", "client_id", "channel"}`."""
    tantor = _tantor()
    return _change_subscription(tantor, tantor.unsubscribe)


def emergency() -> Response:
    """`message`: `{"success", "recipients", "message"}`."""
    tantor, body = _tantor(), _body()
    message = _text(body, "message", "Emergency alert!")
    return jsonify(success=True, recipients=_result(tantor.emergency, message), message=message)


def presence() -> Response:
    """Of `?channel=`: `{"channel", "online", "users"}`; without it `{name: count}`."""
    return jsonify(_tantor().get_presence(request.args.get("channel") or None))


def stats() -> Response:
    """The result of `Tantor.stats()`."""
    return jsonify(_tantor().stats())


def client(client_id: str) -> Response:
    """The result of `Tantor.get_client_info()`; 404 if no such client is connected."""
    if (info := _tantor().get_client_info(client_id)) is None:
        raise RefusedError("Client not found", status=404)
    return jsonify(info)


class RefusedError(Exception):
    """A bad request. The response is `{"error": message}`, with the `field` if one field is wrong."""

    def __init__(self, message: str, *, status: int = 400, field: str | None = None) -> None:
        """`status` is the HTTP status of the response, which the blueprint's error handler makes."""
        super().__init__(message)
        self.status = status
        self.body = {"error": message} if field is None else {"error": message, "field": field}


def _change_subscription(tantor: Tantor, change: "Callable[[str, str], Done[bool]]") -> Response:
    body = _body()
    client_id = _text(body, "client_id")
    channel = _text(body, "channel", tantor.setting("default_channel"))
    return jsonify(success=_result(change, client_id, channel), client_id=client_id, channel=channel)


def _tantor() -> Tantor:
    if (tantor := get_tantor()) is None:
        raise RefusedError("Tantor not initialized", status=500)
    return tantor


def _body() -> dict[str, Any]:
    try:
        body = request.get_json()
    except UnsupportedMediaType:
        kind = request.mimetype or "not said to be of any type"
        raise RefusedError(f"the body is {kind}; it takes a JSON object, as application/json") from None
    except (BadRequest, RecursionError):  # RecursionError for JSON that nests too deeply
        raise RefusedError("the body is not valid JSON; it takes a JSON object") from None
    if not isinstance(body, dict):
        raise RefusedError(f"the body is {_shown(body)}; it takes a JSON object")
    return body


def _text(body: dict[str, Any], name: str, default: str | None = None) -> str:
    """A text field; a field without a default is required."""
    if default is not None and name not in body:
        return default
    return str(_field(body, name, (str,), "a text"))


def _field(body: dict[str, Any], name: str, kinds: tuple[type, ...], takes: str) -> Any:
    if name not in body:
        raise RefusedError(f"the field {name!r} is missing; it takes {takes}", field=name)
    if not isinstance(value := body[name], kinds):
        raise RefusedError(f"the field {name!r} is {_shown(value)}; it takes {takes}", field=name)
    return value


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_LENGTH else text[: _SHOWN_LENGTH - 1] + "…"


def _result(call: Callable[..., _Result[_T]], *arguments: object) -> _T:
    """Call Tantor; an argument that Tantor refuses is an error of the request."""
    try:
        return call(*arguments).result()
    except (TypeError, ValueError) as error:
        raise RefusedError(str(error)) from error


def _answer_refused(error: RefusedError) -> tuple[Response, int]:
    return jsonify(error.body), error.status


def _answer_http_error(error: HTTPException) -> tuple[Response, int]:
    return jsonify(error=error.description), error.code or 500


def _answer_tantor_error(error: TantorError) -> tuple[Response, int]:
    """An error of the server, such as a use in a forked child: no fault of the request."""
    return jsonify(error=str(error)), 503
