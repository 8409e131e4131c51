"""Tantor with a trivial handler of `message` events.

It picks a port. For each line on standard input it answers with one line of JSON: the port, events so far, CPU
seconds so far.
"""

import json
import sys
import time
from typing import Any

from tantor import Tantor


def main() -> None:
    events = 0

    def count(event: dict[str, Any]) -> None:
        nonlocal events
        events += 1

    with Tantor(0, "127.0.0.1") as server:
        server.on_event("message", count)
        for _ in sys.stdin:
            answer = {"port": server.port, "events": events, "cpu_seconds": time.process_time()}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
