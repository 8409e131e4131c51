"""Tantor on a SQLite file, to be killed and started again: `tantor_resume.py PORT DATABASE`.

It says when it listens. For each line of JSON on standard input it does what that says, and answers with one:
`{"publish": n}` publishes so many messages on the durable channel `bench`, `{"mail": [ids]}` sends one to each of these
clients, `{}` does nothing. The answer comes when everything is saved.
"""

import json
import sys
import time

from tantor import Tantor

SAVE_LIMIT = 60.0


def main() -> None:
    begun = time.perf_counter()
    server = Tantor(
        int(sys.argv[1]),
        "127.0.0.1",
        shards=1,
        max_connections=20_000,
        database=sys.argv[2],
        channel_settings={"bench": {"durable": True}},
    )
    with server:
        answer({"listens_after_seconds": time.perf_counter() - begun})
        for line in sys.stdin:
            command = json.loads(line)
            published = [
                server.broadcast("bench", "tick", {"number": n, "text": "x" * 75})
                for n in range(command.get("publish", 0))
            ]
            sent = [
                server.send(client_id, {"mail": number}, durable=True)
                for number, client_id in enumerate(command.get("mail", []))
            ]
            for awaitable in (*published, *sent):
                awaitable.result()
            answer({"published": len(published), "sent": len(sent), "saved": wait_until_saved(server)})


def wait_until_saved(server: Tantor) -> bool:
    deadline = time.monotonic() + SAVE_LIMIT
    while (storage := server.stats()["storage"])["queued_changes"] > 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    return storage["queued_changes"] == 0 and storage["changes_lost"] == 0 and not storage["degraded"]


def answer(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
