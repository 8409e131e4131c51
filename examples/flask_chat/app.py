"""A chat: Flask serves the page, Tantor carries the messages. Run it with `python examples/flask_chat/app.py`."""

import argparse
import contextlib
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, render_template, request
from tantor import StorageError, Tantor, init_tantor
from tantor.flask import blueprint, js_blueprint
from werkzeug.serving import is_running_from_reloader, make_server

LONGEST_NICK = 30


def create_app(host: str = "127.0.0.1", **settings: Any) -> Flask:
    """The page, routes under /api/tantor, tantor.js, and a Tantor that is not started (port TANTOR_PORT, else 8080)."""
    app = Flask(__name__)
    # A page that is loaded again is back within leave_delay; others are told of a page that is not. After a restart of
    # the example, pages come back within reconnect_window: an example has few of them, and somebody who watches.
    tantor = init_tantor(app, host=host, leave_delay=3, reconnect_window=1, **settings)
    app.register_blueprint(blueprint())
    app.register_blueprint(js_blueprint())

    @tantor.on("hello")
    def remember_nick(data: dict[str, Any]) -> None:
        """A page says hello with its nick on each channel that it joins; `data` of the event is what it sent."""
        said = data["data"]
        connection = tantor.connections.get(data["client_id"])
        if connection is not None and isinstance(said, dict) and isinstance(said.get("nick"), str):
            connection.user_data["nick"] = said["nick"][:LONGEST_NICK]

    @app.get("/")
    def chat() -> str:
        return render_template("chat.html", tantor_port=tantor.port)

    @app.get("/people")
    def people() -> Response:
        """Who is in a channel, by client id, with the nick where it is known."""
        presence = tantor.get_presence(request.args.get("channel") or "jungle")
        return jsonify({client_id: nick_of(tantor, client_id) for client_id in presence["users"]})

    return app


def nick_of(tantor: Tantor, client_id: str) -> str | None:
    """What a client called itself; None if it did not, or is gone."""
    info = tantor.get_client_info(client_id)
    return info["user_data"].get("nick") if info else None


def main() -> None:
    """Serve the page and the messages until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A chat with Flask and Tantor.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address for the page and the messages (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=os.environ.get("FLASK_RUN_PORT", "5000"), help="port of the page")
    parser.add_argument("--debug", action="store_true", help="Flask's debugger and reloader")
    parser.add_argument("--database", help="where messages are kept (default: a file in the system's temporary folder)")
    options = parser.parse_args()

    # so that a restart of the example shows that nothing is lost
    database = options.database or os.environ.get("TANTOR_DATABASE") or f"sqlite:///{temporary_file()}"
    # the page's port is taken before its address is shown; with the debugger, Flask takes it
    listener = None if options.debug else listen(options.host, options.port)
    app = create_app(options.host, database=database)
    # with the reloader there are two processes; only the one that serves the page may take the port
    if not options.debug or is_running_from_reloader():
        tantor: Tantor = app.extensions["tantor"]
        try:
            tantor.start_background()
        except StorageError as error:
            sys.exit(f"The messages cannot be kept: {error}\nChoose another file with --database.")
        except OSError as error:
            sys.exit(f"Tantor cannot listen: {error}\nChoose another port with TANTOR_PORT=8081, for example.")
        port = options.port if listener is None else listener.getsockname()[1]
        print(f"Chat at http://{options.host}:{port}  (messages on port {tantor.port})", flush=True)
        print(f"Messages are kept in {database.removeprefix('sqlite:///')}: they are there after a restart", flush=True)
        print("Other ports: FLASK_RUN_PORT for the page, TANTOR_PORT for the messages", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        if listener is None:
            app.run(options.host, options.port, debug=True)
        else:
            make_server(options.host, options.port, app, threaded=True, fd=listener.fileno()).serve_forever()


def temporary_file() -> Path:
    """A file of this user's that outlives the example."""
    owner = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    folder = Path(tempfile.gettempdir()) / f"tantor-chat-{owner}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / "tantor.db"


def listen(host: str, port: int) -> socket.socket:
    """The socket of the page; ends the program where it cannot be had."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        problem = f"The page cannot listen on {host}:{port}: {error.strerror}"
        sys.exit(f"{problem}\nChoose another port with --port 5001 or FLASK_RUN_PORT=5001, for example.")


if __name__ == "__main__":
    main()
