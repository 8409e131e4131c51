"""Tantor, the real-time messenger for Python web apps.

    from flask import Flask
    from tantor import init_tantor

    app = Flask(__name__)
    tantor = init_tantor(app, port=8080)
    tantor.start_background()

Importing this needs nothing but the standard library, and starts nothing.
"""

# ruff: noqa: E402 - the check comes first: an import of the extension module would harm the main interpreter

from tantor._interpreter import require_main_interpreter

require_main_interpreter()

from tantor._tantor import Done, __version__
from tantor.errors import DataError, ForkedError, SettingError, StorageError, TantorError
from tantor.flask import get_tantor, init_tantor
from tantor.messenger import Tantor
from tantor.pending import Pending
from tantor.runner import run_tantor, run_tantor_sync
from tantor.views import Channel, ChannelType, Connection, History, Message, MessageType

__all__ = [
    "Channel",
    "ChannelType",
    "Connection",
    "DataError",
    "Done",
    "ForkedError",
    "History",
    "Message",
    "MessageType",
    "Pending",
    "SettingError",
    "StorageError",
    "Tantor",
    "TantorError",
    "__version__",
    "get_tantor",
    "init_tantor",
    "run_tantor",
    "run_tantor_sync",
]
