"""Tantor, under the import path of the document that it is written after.

`elephants` and `elephants.py_ele` are namespace packages: another package named `elephants` goes on working.
"""

from tantor import (
    Channel,
    ChannelType,
    Connection,
    Message,
    MessageType,
    Tantor,
    get_tantor,
    init_tantor,
    run_tantor,
    run_tantor_sync,
)

__all__ = [
    "Channel",
    "ChannelType",
    "Connection",
    "Message",
    "MessageType",
    "Tantor",
    "get_tantor",
    "init_tantor",
    "run_tantor",
    "run_tantor_sync",
]

if __name__ == "__main__":  # as the original does, it serves when it is run
    import sys

    from tantor.cli import main

    sys.exit(main(["serve"]))
