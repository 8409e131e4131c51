"""The command line, run as a user runs it."""

import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import tantor as package
from processes import Script, script_environment
from support import WebSocketClient, accepts_connections, eventually, missing
from tantor.settings import known_settings

TANTOR = [sys.executable, "-m", "tantor"]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [*TANTOR, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        env=script_environment(environment),
        check=False,
    )


def serving(tmp_path: Path, *arguments: object, **environment: str) -> Script:
    return Script([*TANTOR, *map(str, arguments)], environment=environment, log=tmp_path / "log")


def wait_for_port(script: Script, port: int) -> None:
    eventually(lambda: accepts_connections(port) or script.process.poll() is not None, lambda: script.output, 30)
    assert script.process.poll() is None, script.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_cleanly_on_a_signal(number: signal.Signals, free_port: int, tmp_path: Path) -> None:
    with serving(tmp_path, "serve", "--port", free_port, "--host", "127.0.0.1") as script:
        wait_for_port(script, free_port)
        with WebSocketClient(free_port).greet() as client:
            script.process.send_signal(number)
            client.receive_until(event="server_shutdown")
            assert client.wait_closed() == 1001
        assert script.wait() == 0, script.output
        assert "Traceback" not in script.output
        lines = script.output.splitlines()
        assert sum(str(free_port) in line for line in lines) == 1, "one line says where it listens"
    assert not accepts_connections(free_port)


def test_without_arguments_the_module_serves(free_port: int, tmp_path: Path) -> None:
    with serving(tmp_path, TANTOR_PORT=str(free_port), TANTOR_HOST="127.0.0.1") as script:
        wait_for_port(script, free_port)
        with WebSocketClient(free_port).greet():
            pass
        script.process.terminate()
        assert script.wait() == 0


def test_an_option_beats_the_environment_which_beats_the_file(free_port: int, tmp_path: Path) -> None:
    file = tmp_path / "tantor.toml"
    file.write_text('[tantor]\nport = 1\nhost = "192.0.2.1"\ndefault_channel = "savanna"\n')
    environment = {"TANTOR_PORT": "2", "TANTOR_HOST": "127.0.0.1"}
    with serving(tmp_path, "serve", "--config", file, "--port", free_port, **environment) as script:
        wait_for_port(script, free_port)
        with WebSocketClient(free_port).greet() as client:
            joined = client.receive_until(event="user_joined")
            assert joined["channel"] == "savanna"


@pytest.mark.parametrize("level", ["debug", "error"])
def test_log_level(level: str, free_port: int, tmp_path: Path) -> None:
    with serving(tmp_path, "serve", "--port", free_port, "--host", "127.0.0.1", "--log-level", level) as script:
        wait_for_port(script, free_port)
        with WebSocketClient(free_port).greet():
            pass
        script.process.terminate()
        assert script.wait() == 0
    if level == "error":
        assert script.output == ""
    else:
        assert " DEBUG tantor" in script.output


def test_a_taken_port_is_one_line_and_code_1() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("serve", "--host", "127.0.0.1", "--port", port, "--log-level", "error")
    assert result.returncode == 1
    assert re.fullmatch(rf"tantor: .*127\.0\.0\.1:{port}.*\n", result.stderr)
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--port", "eighty"], {}, "--port is 'eighty'; it takes a whole number"),
        (["--port", "70000"], {}, "port is 70000; it takes a whole number from 0 to 65535"),
        (["--heartbeat-interval", "soon"], {}, "--heartbeat-interval is 'soon'; it takes a number"),
        ([], {"TANTOR_PORT": "eighty"}, "TANTOR_PORT is 'eighty'; it takes a whole number"),
        (["--config", "nothing.toml"], {}, "--config: .*nothing.toml"),
    ],
)
def test_a_bad_setting_is_one_line_and_code_2(arguments: list[str], environment: dict[str, str], message: str) -> None:
    result = run("serve", *arguments, **environment)
    assert result.returncode == 2
    assert re.fullmatch(rf"tantor: {message}.*\n", result.stderr), result.stderr


def test_an_unknown_key_in_the_file_is_one_line_and_code_2(tmp_path: Path) -> None:
    file = tmp_path / "tantor.toml"
    file.write_text("prot = 9000")
    result = run("serve", "--config", file)
    assert result.returncode == 2
    assert re.fullmatch(r"tantor: .*'prot' in .*tantor\.toml; the nearest is 'port'\n", result.stderr)


@pytest.mark.parametrize("arguments", [["serve", "--prot", "1"], ["sing"], ["dropin"], ["dropin", "sing"]])
def test_what_is_no_command_line_has_code_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "usage:" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_has_every_setting_with_its_default() -> None:
    result = run("serve", "--help", COLUMNS="400")
    assert result.returncode == 0
    for name, setting in known_settings().items():
        option = "--" + name.replace("_", "-")
        (line,) = re.findall(rf"^ +{option} (?:N|NUMBER|BOOLEAN|TEXT|JSON|OCTAL)\s+(.+)$", result.stdout, re.MULTILINE)
        assert line.startswith(setting.help[:40])
        if setting.kind == "boolean":
            assert f"(default: {str(setting.default).lower()})" in line
        elif setting.default:
            assert f"(default: {setting.default})" in line
        else:
            assert "(default: " in line, "the help says it"


def test_version_from_the_module_and_the_command() -> None:
    assert run("--version").stdout == f"tantor {package.__version__}\n"
    command = Path(sysconfig.get_path("scripts")) / ("tantor.exe" if os.name == "nt" else "tantor")
    if not command.exists():
        missing("the command tantor (the package is not installed)")
    result = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == f"tantor {package.__version__}\n"
    result = subprocess.run([command], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "serve" in result.stderr
