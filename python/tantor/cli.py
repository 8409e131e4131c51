"""The command `tantor`: serve, backup, restore, dropin, --version."""
# ruff: noqa: T201  # a command line speaks by printing

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence

from tantor import _tantor, dropin_files
from tantor.errors import SettingError
from tantor.messenger import Tantor
from tantor.settings import from_text, known_settings, load_toml, resolve

_ORIGINAL = "tsk_flask.herd.elephants.tantor"
_LEVELS = ("debug", "info", "warning", "error")

_SOURCES = (
    "A setting without an option comes from the environment (TANTOR_HEARTBEAT_INTERVAL for "
    "--heartbeat-interval), else from the file (heartbeat_interval), else it has its default."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 for success, 1 for a failure, 2 for bad input."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.command == "serve":
            return _serve(options)
        if options.command == "dropin":
            return _dropin(options.action)
        if options.command == "backup":
            _tantor.back_up(options.database, options.target)
            print(f"wrote {options.target}")
            return 0
        if options.command == "restore":
            _tantor.restore(options.backup, options.database)
            print(f"restored {options.database}; its channels have other epochs, by which clients see the loss")
            return 0
    except SettingError as error:
        return _complain(error, 2)
    except OSError as error:
        return _complain(error, 1)
    parser.print_help(sys.stderr)
    return 2


def _serve(options: argparse.Namespace) -> int:
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    given = {
        name: from_text(setting, text, _option(name))
        for name, setting in known_settings().items()
        if (text := getattr(options, name)) is not None
    }
    try:
        from_file = load_toml(options.config) if options.config else {}
    except OSError as error:
        return _complain(f"--config: {error}", 2)
    settings = from_file | resolve(given)
    tantor = Tantor(**settings)  # type: ignore[arg-type]  # Tantor checks the types
    with contextlib.suppress(KeyboardInterrupt):  # where asyncio cannot handle signals
        asyncio.run(_serve_until_signalled(tantor))
    return 0


async def _serve_until_signalled(tantor: Tantor) -> None:
    """Serve until Ctrl-C, SIGTERM or SIGHUP; each ends the server cleanly."""
    loop = asyncio.get_running_loop()
    server = asyncio.ensure_future(tantor.start())
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # not on every system
        if number is not None:
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, server.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await server


def _dropin(action: str) -> int:
    if action == "install":
        for path in dropin_files.install():
            print(f"wrote {path}")
        print(f"{_ORIGINAL} is Tantor from now on, in every program that this Python starts")
    elif action == "uninstall":
        removed = dropin_files.uninstall()
        for path in removed:
            print(f"removed {path}")
        if not removed:
            print("it was not installed")
    else:
        status = dropin_files.status()
        advice = "; run `tantor dropin install`" if status.state in ("incomplete", "outdated") else ""
        print(f"drop-in: {status.state} ({status.directory}){advice}")
        print(f"flask-tsk: {status.flask_tsk or 'not found'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    program = "python -m tantor" if sys.argv[0].endswith("__main__.py") else "tantor"
    parser = argparse.ArgumentParser(program, description="The real-time messenger.")
    parser.add_argument("--version", action="version", version=f"tantor {_tantor.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")

    serve = commands.add_parser("serve", help="run a server", description="Run a server.", epilog=_SOURCES)
    serve.add_argument("--config", metavar="FILE", help="TOML file with settings, in a table [tantor] or at its top")
    serve.add_argument("--log-level", choices=_LEVELS, default="info", help="lowest level to log (default: info)")
    settings = serve.add_argument_group("settings")
    metavars = {
        "integer": "N",
        "number": "NUMBER",
        "boolean": "BOOLEAN",
        "text": "TEXT",
        "json": "JSON",
        "list": "TEXT",
        "mode": "OCTAL",
    }
    for name, setting in known_settings().items():
        default = "" if setting.default in (None, "") else f" (default: {_shown(setting.default)})"
        settings.add_argument(
            _option(name),
            dest=name,
            metavar=metavars[setting.kind],
            help=(setting.help + default).replace("%", "%%"),
        )

    description = "Copy a database to a new file, also while a server uses it."
    backup = commands.add_parser("backup", help="copy a database, also while it is in use", description=description)
    backup.add_argument("database", metavar="DATABASE", help="the database's file")
    backup.add_argument("target", metavar="TARGET", help="the file to write, which does not exist yet")

    description = "Put a backup in a database's place. No server may use the database meanwhile."
    restore = commands.add_parser("restore", help="put a backup in a database's place", description=description)
    restore.add_argument("backup", metavar="BACKUP", help="a file that `tantor backup` wrote")
    restore.add_argument("database", metavar="DATABASE", help="the database's file, which need not exist")

    description = f"Let {_ORIGINAL} be Tantor in every program that this Python runs."
    dropin = commands.add_parser("dropin", help="stand in for Flask-TSK's own messenger", description=description)
    actions = dropin.add_subparsers(dest="action", metavar="action", required=True)
    actions.add_parser("install", help="write the import hook into this Python's site-packages")
    actions.add_parser("uninstall", help="remove the import hook")
    actions.add_parser("status", help="show whether the import hook and Flask-TSK are installed")
    return parser


def _shown(default: object) -> object:
    return str(default).lower() if isinstance(default, bool) else default


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _complain(error: object, code: int) -> int:
    print(f"tantor: {error}", file=sys.stderr)
    return code
