"""Measure Tantor beside the bare loop and its peers, and print the tables and the bars.

`make bench` runs this. Servers get one core and the load generator another; results go, a line of JSON each, into
`target/bench/results.jsonl`, from which `report.py` makes its tables. See README.md for what is measured and how.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ENVIRONMENT = ROOT / ".venv-bench"
ENVIRONMENT_PYTHON = ENVIRONMENT / "bin" / "python"
OUTPUT = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "bench"
NODE_MODULES = ENVIRONMENT / "node" / "node_modules"

# What everyone misses while the server is away, and how many get a message of their own.
MISSED = 20
MAILED = 100

SERVER_CORE = 0
GENERATOR_CORE = 1


@dataclass(frozen=True)
class Server:
    """A server that can be measured: how it is installed, started and spoken to."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    protocol: str = "echo"
    python_packages: tuple[str, ...] = ()
    node_packages: tuple[str, ...] = ()
    cases: frozenset[str] = field(default=frozenset({"fanout", "connect", "latency"}))

    def command(self, python: Path, port: int, folder: str) -> list[str]:
        """`{folder}` in an argument becomes a folder of this run of the server."""
        script = str(HERE / "servers" / self.script)
        if self.script.startswith("bun_"):
            runtime = str(NODE_MODULES / "bun" / "bin" / "bun.exe")
        else:
            runtime = shutil.which("node") or "node" if self.node_packages else str(python)
        return [runtime, script, str(port), *(argument.replace("{folder}", folder) for argument in self.arguments)]


TANTOR = Server("tantor", "tantor_server.py", protocol="tantor")
SAVING = "database=sqlite:///{folder}/bench.db"
# What keeping and saving costs, beside what is the default: history in memory.
VARIANTS = (
    Server(
        "tantor, history_size=0",
        "tantor_server.py",
        arguments=("history_size=0",),
        protocol="tantor",
        cases=frozenset({"fanout"}),
    ),
    Server("tantor, SQLite", "tantor_server.py", arguments=(SAVING,), protocol="tantor", cases=frozenset({"fanout"})),
)
# As many as the clients are to recover.
RECOVERED = 300
KEEPING = Server(
    "tantor", "tantor_server.py", arguments=(f"history_size={RECOVERED}",), protocol="tantor", cases=frozenset()
)
UVLOOP = "uvloop==0.23.0"
# Socket.IO's servers are far from the rates at which latency is compared, and threading has a thread a client.
PEERS = (
    Server("uWebSockets in Bun", "bun_server.mjs", node_packages=("bun@1.4.5",)),
    Server("uWebSockets in socketify", "socketify_server.py", python_packages=("socketify==0.0.31",)),
    Server("wse-server", "wse_drain_server.py", python_packages=("wse-server==2.5.1",)),
    Server("picows, uvloop", "picows_server.py", python_packages=("picows==2.3.1", UVLOOP)),
    Server("websockets broadcast(), uvloop", "websockets_server.py", python_packages=("websockets==17.4", UVLOOP)),
    Server("node ws", "ws_server.cjs", node_packages=("ws@8.23.0",)),
    Server("aiohttp, uvloop", "aiohttp_server.py", python_packages=("aiohttp==3.14.5", UVLOOP)),
    Server(
        "python-socketio, uvicorn, uvloop",
        "socketio_server.py",
        protocol="socketio",
        python_packages=("python-socketio==5.18.1", "uvicorn==0.54.0", "websockets==17.4", UVLOOP),
        cases=frozenset({"fanout", "connect"}),
    ),
    Server(
        "Flask-SocketIO, gevent",
        "flask_socketio_server.py",
        arguments=("gevent",),
        protocol="socketio",
        python_packages=("flask-socketio==5.7.0", "gevent==26.9.0", "gevent-websocket==0.10.1"),
        cases=frozenset({"fanout", "connect"}),
    ),
    Server(
        "Flask-SocketIO, threading",
        "flask_socketio_server.py",
        arguments=("threading",),
        protocol="socketio",
        python_packages=("flask-socketio==5.7.0", "simple-websocket==1.1.0"),
        cases=frozenset({"fanout"}),
    ),
)


def main() -> None:
    options = parse_options()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    bench = Bench(generator=build_generator(), tantor_python=install_tantor(options), options=options)
    peers = [] if options.no_peers else install_peers(options)
    bench.results.unlink(missing_ok=True)
    bench.results.touch()
    if "python" in options.cases:
        bench.python_calls()
    if "fanout" in options.cases:
        for subscribers in options.subscribers:
            bench.fan_out([TANTOR, *VARIANTS], subscribers, options.rounds)
            bench.fan_out(peers, subscribers, options.peer_rounds)
    if "connect" in options.cases:
        bench.connect([TANTOR], (options.rounds + 1) // 2)
        bench.connect(peers, options.peer_rounds)
    if "latency" in options.cases:
        for subscribers, rate in ((100, 500), (1000, 50)):
            bench.latency([TANTOR], subscribers, rate, (options.rounds + 1) // 2)
            bench.latency(peers, subscribers, rate, options.peer_rounds)
    if "storage" in options.cases:
        bench.storage()
    if "recover" in options.cases:
        bench.recover((options.rounds + 1) // 2)
    if "resume" in options.cases:
        for round_ in range((options.rounds + 4) // 5):
            bench.resume(round_)
    check = ["--check"] if options.check else []
    sys.exit(subprocess.run([sys.executable, HERE / "report.py", bench.results, *check]).returncode)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    cases = ("python", "fanout", "connect", "latency", "storage", "recover", "resume")
    parser.add_argument("--cases", type=words, default=cases, help=f"some of {','.join(cases)} (all)")
    parser.add_argument(
        "--rounds",
        type=int,
        default=15,
        help="turns of Tantor and the bare loop each (15; half of it where turns are long, three of resuming)",
    )
    parser.add_argument("--peer-rounds", type=int, default=3, help="turns of each peer and the bare loop (3)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn (1)")
    parser.add_argument("--subscribers", type=numbers, default=(100, 1000), help="of the fan-out (100,1000)")
    parser.add_argument("--windows", type=numbers, default=(1, 16, 64), help="publishes under way at once (1,16,64)")
    parser.add_argument("--connections", type=numbers, default=(1000, 5000, 10000), help="idle (1000,5000,10000)")
    parser.add_argument("--resumes", type=int, default=10_000, help="clients that come back at once (10000)")
    parser.add_argument("--no-peers", action="store_true", help="only Tantor and the bare loop")
    parser.add_argument("--only-peers", type=words, help="those whose names contain one of these words")
    parser.add_argument("--tantor-python", type=Path, help="an interpreter that has Tantor, instead of the wheel")
    parser.add_argument("--base-python", type=Path, help="what .venv-bench is made with (this interpreter)")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed")
    return parser.parse_args()


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


@dataclass
class Bench:
    generator: Path
    tantor_python: Path
    options: argparse.Namespace
    results: Path = OUTPUT / "results.jsonl"

    def fan_out(self, servers: list[Server], subscribers: int, rounds: int) -> None:
        windows = ",".join(map(str, self.options.windows))
        common = ("--subscribers", str(subscribers), "--windows", windows, "--rounds", str(rounds))
        self.interleave("fanout", servers, *common, "--seconds", str(self.options.seconds))

    def latency(self, servers: list[Server], subscribers: int, rate: int, rounds: int) -> None:
        common = ("--subscribers", str(subscribers), "--rate", str(rate), "--rounds", str(rounds))
        self.interleave("latency", servers, *common, "--seconds", str(self.options.seconds))

    def interleave(self, case: str, servers: list[Server], *arguments: str) -> None:
        """All of these servers and the bare loop, taking turns in one run of the generator."""
        with contextlib.ExitStack() as stack:
            targets: list[str] = []
            for server in (server for server in servers if case in server.cases):
                try:
                    targets += ["--target", stack.enter_context(self.running(server))]
                except ServerError as error:
                    say(str(error))
            if targets:
                targets += ["--target", stack.enter_context(self.running(None))]
                say(f"{case} {' '.join(arguments)}")
                self.generate(case, *targets, *arguments, *self.payload())

    def connect(self, servers: list[Server], rounds: int) -> None:
        """Each number of connections in a fresh process, so that memory and notices are counted from the start."""
        measured = [server for server in servers if "connect" in server.cases]
        for round_ in range(rounds if measured else 0):
            say(f"connect, round {round_}")
            for connections in map(str, self.options.connections):
                for server in (*measured, None):
                    try:
                        with self.running(server) as target:
                            self.generate("connect", "--target", target, "--count", connections, "--round", str(round_))
                    except ServerError as error:
                        say(str(error))

    def python_calls(self) -> None:
        say("calls from Python, and events into a handler")
        self.run_python("python_calls.py")

    def storage(self) -> None:
        say("publishing beside SQLite, and durably")
        with folder_on_disk() as folder:
            rounds, seconds = str(self.options.rounds), str(self.options.seconds)
            self.run_python("storage.py", "--folder", folder, "--rounds", rounds, "--seconds", seconds)

    def run_python(self, script: str, *arguments: str) -> None:
        command = [str(self.tantor_python), str(HERE / script), "--generator", str(self.generator), *arguments]
        with self.results.open("a") as results:
            subprocess.run(command, stdout=results, check=True)

    def recover(self, rounds: int) -> None:
        say(f"recovering {RECOVERED} messages, {rounds} rounds")
        try:
            with self.running(KEEPING) as target:
                self.generate("recover", "--target", target, "--publications", str(RECOVERED), "--rounds", str(rounds))
        except ServerError as error:
            say(str(error))

    def resume(self, round_: int) -> None:
        clients: int = self.options.resumes
        say(f"{clients} clients come back after a restart, round {round_}")
        try:
            self.note(self.come_back(str(clients), str(round_)))
        except ServerError as error:
            self.note({"case": "resume", "server": TANTOR.name, "clients": clients, "error": str(error)})

    def come_back(self, clients: str, round_: str) -> dict[str, Any]:
        """Everyone connects, the server is killed and started again on its file and port, and everyone comes back."""
        port = free_port()
        with contextlib.ExitStack() as stack:
            database = f"sqlite:///{stack.enter_context(folder_on_disk())}/bench.db"
            with self.resumable(port, database) as first:
                first.ask(publish=5)
                command = [self.generator, "resume", "--target", first.target, "--clients", clients]
                command += ["--missed", str(MISSED), "--mailed", str(MAILED), "--round", round_]
                generator = stack.enter_context(Answering(command, GENERATOR_CORE))
                connected = generator.answer()
                if "error" in connected:
                    return connected
                # only what is saved can be there again
                first.ask()
            begun = time.perf_counter()
            with self.resumable(port, database) as second:
                listens_after = time.perf_counter() - begun
                second.ask(publish=MISSED, mail=connected["to_mail"])
                generator.say(second.target)
                return {**generator.answer(), "listens_after_seconds": listens_after}

    @contextlib.contextmanager
    def resumable(self, port: int, database: str) -> Iterator["ResumableServer"]:
        """Listening, and killed with SIGKILL at the end."""
        script = HERE / "servers" / "tantor_resume.py"
        with ResumableServer([self.tantor_python, script, str(port), database], SERVER_CORE) as server:
            server.target = f"tantor:tantor:{port}:{server.process.pid}"
            server.answer()
            yield server

    def note(self, line: dict[str, Any]) -> None:
        with self.results.open("a") as results:
            results.write(json.dumps(line, separators=(",", ":")) + "\n")

    def payload(self) -> list[str]:
        """Peers deliver frames of the size that Tantor was seen to deliver."""
        for line in self.results.read_text().splitlines():
            if '"server":"tantor"' in line and '"payload_bytes":' in line:
                return ["--payload", line.split('"payload_bytes":')[1].split(",")[0]]
        return []

    def generate(self, *arguments: str) -> None:
        with self.results.open("a") as results:
            generator = subprocess.run(
                [self.generator, *arguments],
                stdout=results,
                preexec_fn=lambda: os.sched_setaffinity(0, {GENERATOR_CORE}),
            )
        if generator.returncode != 0:
            say(f"the generator gave up: {arguments[0]} exited with {generator.returncode}")

    @contextlib.contextmanager
    def running(self, server: Server | None) -> Iterator[str]:
        """A started server (None: the bare loop), as the generator takes it; killed at the end."""
        port = free_port()
        name = server.name if server else "bare"
        protocol = server.protocol if server else "echo"
        python = self.tantor_python if protocol == "tantor" else ENVIRONMENT_PYTHON
        environment = {**os.environ, "NODE_PATH": str(NODE_MODULES)}
        log_path = OUTPUT / f"{''.join(letter if letter.isalnum() else '-' for letter in name)}.log"
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(folder_on_disk())
            command = (
                server.command(python, port, folder) if server else [str(self.generator), "bare", "--port", str(port)]
            )
            with log_path.open("w") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    preexec_fn=lambda: prepare(SERVER_CORE),
                )
            stack.callback(kill, process)
            if not wait_until_it_listens(process, port):
                raise ServerError(f"{name} did not start; the end of {log_path}:\n{log_path.read_text()[-1000:]}")
            yield f"{name}:{protocol}:{port}:{process.pid}"


class ServerError(Exception):
    """A server that can't be measured; the others go on."""


class Answering:
    """A process that is told and asks in lines; killed at the end."""

    def __init__(self, command: list[Any], core: int) -> None:
        self.command, self.core = command, core

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: prepare(self.core),
        )
        return self

    def __exit__(self, *_: object) -> None:
        kill(self.process)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ServerError(f"{self.command[0]} gave up; it exited with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class ResumableServer(Answering):
    target = ""

    def ask(self, **command: object) -> None:
        """Have it do something, and save it."""
        self.say(json.dumps(command))
        if not (answer := self.answer())["saved"]:
            raise ServerError(f"the server could not save: {answer}")


def folder_on_disk() -> tempfile.TemporaryDirectory[str]:
    """Not in the system's folder for such things, which may be memory."""
    return tempfile.TemporaryDirectory(dir=OUTPUT, prefix="database-")


def kill(process: subprocess.Popen[Any]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def prepare(core: int) -> None:
    import resource

    os.sched_setaffinity(0, {core})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.05)
    return False


def build_generator() -> Path:
    subprocess.run(["cargo", "build", "--release", "--package", "tantor-bench"], cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "tantor-bench"


def install_tantor(options: argparse.Namespace) -> Path:
    """An interpreter that has Tantor: the one named, else .venv-bench with the wheel installed."""
    if options.tantor_python is not None:
        return Path(options.tantor_python).absolute()
    wheels = sorted((ROOT / "dist").glob("tantor-*.whl"), key=lambda wheel: wheel.stat().st_mtime)
    wheel = os.environ.get("TANTOR_WHEEL") or (wheels[-1] if wheels else None)
    if wheel is None:
        sys.exit("run.py: no wheel in dist/; `make wheel` builds one, TANTOR_WHEEL names another")
    make_environment(options)
    pip_install("--force-reinstall", "--no-deps", str(wheel))
    return ENVIRONMENT_PYTHON


def install_peers(options: argparse.Namespace) -> list[Server]:
    """What can be installed here; the rest is named and left out."""
    make_environment(options)
    installed = []
    for peer in PEERS:
        if options.only_peers is not None and not any(word in peer.name for word in options.only_peers):
            continue
        try:
            if peer.python_packages:
                pip_install(*peer.python_packages)
            if peer.node_packages:
                npm_install(*peer.node_packages)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            say(f"left out, as it can't be installed: {peer.name}: {reason.strip().splitlines()[-1]}")
        else:
            installed.append(peer)
    return installed


def make_environment(options: argparse.Namespace) -> None:
    if not ENVIRONMENT_PYTHON.exists():
        subprocess.run([options.base_python or sys.executable, "-m", "venv", ENVIRONMENT], check=True)


def pip_install(*packages: str) -> None:
    command = [str(ENVIRONMENT_PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)


def npm_install(*packages: str) -> None:
    NODE_MODULES.parent.mkdir(parents=True, exist_ok=True)
    command = ["npm", "install", "--no-fund", "--no-audit", "--loglevel", "error", "--prefix", str(NODE_MODULES.parent)]
    subprocess.run([*command, *packages], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
