"""Servers and proxies for tests that run in node: a line of JSON with Python code in, a line with its value out.

The code is an expression or statements, and sees the names that a line brings along, those of this module, and what
statements before it have set.
"""

import json
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fault_proxy import BOTH, FIN, RESET, TO_CLIENT, TO_SERVER, FaultProxy
from storms import DurableServer, Publisher, Storm
from support import free_port
from tantor import Tantor

__all__ = [
    "BOTH",
    "FIN",
    "RESET",
    "TO_CLIENT",
    "TO_SERVER",
    "DurableServer",
    "Publisher",
    "Storm",
    "free_port",
]

ended = ExitStack()


def serve(**settings: Any) -> Tantor:
    """A server on a port of its own, unless settings say which."""
    server = Tantor(**({"port": 0, "host": "127.0.0.1", "drain_timeout": 1} | settings))
    server.start_background()
    ended.callback(lambda: server.stop().result(15))
    return server


def proxy_to(port: int) -> FaultProxy:
    return ended.enter_context(FaultProxy(port))


def answer(asked: dict[str, Any]) -> object:
    names = globals()
    names.update(asked.get("names", {}))
    try:
        expression = compile(asked["code"], "<node>", "eval")
    except SyntaxError:
        expression = None
    if expression is None:
        exec(compile(asked["code"], "<node>", "exec"), names)
        return None
    return eval(expression, names)


def main() -> None:
    with ended:
        for line in sys.stdin:
            try:
                text = json.dumps({"value": answer(json.loads(line))})
            except Exception:
                text = json.dumps({"error": traceback.format_exc()})
            print(text, flush=True)


if __name__ == "__main__":
    main()
