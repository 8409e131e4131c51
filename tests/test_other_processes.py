"""Other processes of an application make their calls on the process that serves."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import pytest
from processes import Script, run_python, script_environment
from support import WebSocketClient

# An app as a module; what serves and what only calls both import it.
APP = """
from flask import Flask
from tantor import init_tantor
app = Flask("shop")
tantor = init_tantor(app, port=0, host="127.0.0.1", drain_timeout=0.2)

@app.cli.command("announce")
def announce():
    print("reached", tantor.broadcast("jungle", "news", {"from": "a command"}).result())
"""

SERVES = """
from shop import tantor
tantor.start_background()
print("port", tantor.port, flush=True)
import signal
signal.sigwait([signal.SIGTERM])
tantor.stop().result()
"""


Serve = Callable[[], tuple[Script, int]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "serves.py").write_text(SERVES)
    return tmp_path


@pytest.fixture
def serve(folder: Path) -> Iterator[Serve]:
    """`serve()`: a process that serves the app, and its port."""
    with ExitStack() as scripts:

        def start() -> tuple[Script, int]:
            log = folder / f"{len(list(folder.glob('*.log')))}.log"
            script = scripts.enter_context(Script([sys.executable, "serves.py"], cwd=folder, log=log))
            return script, int(script.wait_for_line("port "))

        yield start


def in_app(folder: Path, code: str) -> str:
    """Run code in another process of the app; return its output."""
    source = "from shop import app, tantor\n" + textwrap.dedent(code)
    result = run_python(f"import sys; sys.path.insert(0, '.')\n{source}", cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_script_reaches_the_clients_of_the_process_that_serves(folder: Path, serve: Serve) -> None:
    _, port = serve()
    with WebSocketClient(port).greet() as client:
        said = in_app(
            folder,
            f"""
            print(tantor.broadcast("jungle", "news", {{"n": 1}}).result())
            message_id = tantor.send({client.client_id!r}, "hello").result()
            print(message_id.startswith("msg_"), tantor.delivery(message_id)["handed_over"])
            print(tantor.is_running)
            """,
        )
        assert said.splitlines() == ["1", "True 1", "False"]
        assert client.receive_until(event="news")["data"] == {"n": 1}
        assert client.receive_until(message="hello")
        # an emergency may overtake the others
        assert in_app(folder, 'print(tantor.emergency("fire").result())') == "1\n"
        assert client.receive_until(event="emergency_alert")["data"]["message"] == "fire"


def test_every_call_has_the_same_result_as_in_the_process_that_serves(folder: Path, serve: Serve) -> None:
    _, port = serve()
    with WebSocketClient(port).greet() as client:
        said = in_app(
            folder,
            f"""
            import asyncio, json
            me = {client.client_id!r}
            assert tantor.create_channel("den", "private") and not tantor.create_channel("den")
            assert tantor.subscribe(me, "den").result() and tantor.get_presence("den")["users"] == [me]
            assert tantor.get_presence()["den"] == 1 and tantor.channels["den"].subscribers == [me]
            assert "den" in tantor.channels and len(tantor.channels) == len(list(tantor.channels))
            for n in range(3):
                tantor.broadcast("den", "step", {{"n": n}}, idempotency_key=str(n))
            page = tantor.history("den", 2).result()
            assert [message["data"]["n"] for message in page.publications] == [1, 2], page
            assert list(tantor.connections) == [me] and me in tantor.connections
            assert sorted(tantor.connections[me].channels) == ["den", "jungle"]
            tantor.connections[me].user_data["name"] = "Ada"
            assert tantor.get_client_info(me)["user_data"] == {{"name": "Ada"}}
            stats = tantor.stats()
            assert stats["status"] == "listening" and stats["total_connections"] == 1
            assert tantor.resume_token("other") and tantor.unsubscribe(me, "den").result()
            assert tantor.delete_channel("den") and "den" not in tantor.channels
            for bad in (
                lambda: tantor.broadcast("", "news"),
                lambda: tantor.send("", "x"),
                lambda: tantor.broadcast("jungle", "news", durable=True),
                lambda: tantor.history("jungle", 0),
                lambda: tantor.create_channel("x", "secret"),
            ):
                try:
                    bad()
                except ValueError as error:
                    print(error)
                else:
                    raise AssertionError("accepted")

            async def awaited():
                return await tantor.broadcast("jungle", "news") + sum(
                    await asyncio.gather(*(tantor.broadcast("jungle", "n") for _ in range(50)))
                )

            print(asyncio.run(awaited()))
            """,
        )
        lines = said.splitlines()
        assert len(lines) == 6
        assert lines[-1] == "51"
        assert "durable" in lines[2]
        assert "database" in lines[2]


def test_a_flask_command_publishes(folder: Path, serve: Serve) -> None:
    _, port = serve()
    with WebSocketClient(port).greet() as client:
        command = "from flask.cli import main; import sys; sys.argv = ['flask', '--app', 'shop', 'announce']; main()"
        result = run_python(f"import sys; sys.path.insert(0, '.')\n{command}", cwd=folder)
        assert "reached 1" in result.stdout, result
        assert client.receive_until(event="news")["data"] == {"from": "a command"}


def test_a_forked_child_of_a_process_that_calls_attaches_anew(folder: Path, serve: Serve) -> None:
    _, port = serve()
    with WebSocketClient(port).greet() as client:
        said = in_app(
            folder,
            """
            import os
            assert tantor.broadcast("jungle", "news", {"by": "parent"}).result() == 1
            for _ in range(3):
                if (pid := os.fork()) == 0:
                    assert tantor.broadcast("jungle", "news", {"by": "child"}).result() == 1
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            print(tantor.broadcast("jungle", "news", {"by": "parent"}).result())
            """,
        )
        assert said == "1\n"
        by = [client.receive_until(event="news")["data"]["by"] for _ in range(5)]
        assert by == ["parent", "child", "child", "child", "parent"]


def test_threads_that_make_the_first_call_at_once_share_a_link(folder: Path, serve: Serve) -> None:
    serve()
    said = in_app(
        folder,
        """
        import threading
        errors, together = [], threading.Barrier(30)

        def calls():
            together.wait()
            try:
                for _ in range(20):
                    tantor.broadcast("jungle", "news").result()
            except OSError as error:
                errors.append(error)

        threads = [threading.Thread(target=calls) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(errors)
        """,
    )
    assert said == "[]\n"


@pytest.mark.parametrize(
    "call",
    ["tantor.broadcast('jungle', 'news')", "tantor.stats()", "len(tantor.channels)", "tantor.delivery('msg_1')"],
)
def test_ctrl_c_ends_the_wait_for_a_process_that_hangs(folder: Path, serve: Serve, call: str) -> None:
    server, _ = serve()
    try:
        said = in_app(
            folder,
            f"""
            import os, signal, threading, time
            tantor.stats()
            os.kill({server.process.pid}, signal.SIGSTOP)
            # beside the call, or before: the call must not keep the interpreter lock
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            began = time.monotonic()
            try:
                {call}
                time.sleep(60)
            except KeyboardInterrupt:
                print("interrupted", time.monotonic() - began < 8)
            """,
        )
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert said == "interrupted True\n"


def test_without_a_process_that_serves_calls_are_local_and_warned_of_once(folder: Path) -> None:
    code = """
    import sys; sys.path.insert(0, ".")
    import logging; logging.basicConfig(format="%(message)s")
    from shop import tantor
    print(tantor.broadcast("jungle", "news").result(), tantor.broadcast("jungle", "news").result())
    """
    result = run_python(textwrap.dedent(code), cwd=folder, environment={"WITH_WARNINGS": "1"})
    assert result.stdout == "0 0\n"
    assert result.stderr.count("is not started") == 1


def test_an_app_under_test_reaches_nothing_that_runs(folder: Path, serve: Serve) -> None:
    serve()
    said = in_app(
        folder,
        """
        app.config.update(TESTING=True)
        print(tantor.stats()["status"])
        app.config.update(TESTING=False)
        print(tantor.stats()["status"])
        """,
    )
    assert said.split() == ["sleeping", "listening"]


def test_another_app_or_user_does_not_meet(folder: Path, serve: Serve) -> None:
    serve()
    code = """
        from tantor import Tantor, init_tantor
        from flask import Flask
        print(Tantor().stats()["status"], init_tantor(Flask("other"), port=0).stats()["status"])
        print(Tantor(app_id=tantor.setting("app_id")).stats()["status"])
    """
    assert in_app(folder, code).split() == ["sleeping", "sleeping", "listening"]


def test_a_process_that_calls_outlives_the_one_that_serves(folder: Path, serve: Serve) -> None:
    first, _ = serve()
    code = """
        import sys; sys.path.insert(0, ".")
        from shop import tantor
        for line in sys.stdin:
            print(tantor.stats()["status"], tantor.broadcast("jungle", "n").result(), flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = script_environment()
    with subprocess.Popen(command, cwd=folder, env=environment, text=True, stdin=PIPE, stdout=PIPE) as caller:
        assert caller.stdin is not None
        assert caller.stdout is not None

        def said() -> str:
            caller.stdin.write("again\n")
            caller.stdin.flush()
            return caller.stdout.readline().strip()

        assert said() == "listening 0"
        first.process.kill()
        first.wait()
        assert said() == "sleeping 0"
        _, port = serve()
        with WebSocketClient(port).greet():
            assert said() == "listening 1"
        caller.stdin.close()


def test_a_second_process_that_serves_goes_on_alone_with_a_warning(folder: Path, serve: Serve) -> None:
    serve()
    (folder / "serves.py").write_text(f"import logging; logging.basicConfig(format='%(message)s')\n{SERVES}")
    second, port = serve()
    second.wait_for_line("other processes of the application cannot call this server")
    with WebSocketClient(port).greet() as client:
        client.action("ping")
        assert client.receive_until(pong=True)
