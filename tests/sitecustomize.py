"""Imported by the interpreters that tests start: their PYTHONPATH has this folder.

What they print comes in whole lines: unbuffered output is written piece by piece, and a line of another thread on
stderr could come in between. Warnings that nearly every script would give are left out, but with `WITH_WARNINGS=1`.
"""

import io
import logging
import os
import sys

if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(line_buffering=True, write_through=False)

if os.environ.get("WITH_WARNINGS") != "1":
    logging.getLogger("tantor.auth").addFilter(lambda record: False)
    logging.getLogger("tantor.server").addFilter(lambda record: "is not started" not in str(record.msg))
