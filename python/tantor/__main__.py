"""`python -m tantor`: the command line; without a command it serves."""

import sys

from tantor.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments.insert(0, "serve")
    sys.exit(main(arguments))
