"""The JavaScript client: what is served, its types, and its tests in node, which have servers of their own."""

import importlib.resources
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import TESTS, WebSocketClient, http_request, missing
from tantor import Tantor, __version__

NODE = TESTS / "node"
CHAT = """
import { connect, TantorError, type Message } from "tantor";
const texts: string[] = [];
const note = ({ data }: Message) => void texts.push(data.text);
const off: () => void = connect("ws://localhost").subscribe("jungle", note);
off();
console.log(TantorError.name);
"""
CLIENT = importlib.resources.files("tantor") / "js"
FAULT_SECONDS = float(os.environ.get("TANTOR_FAULT_SECONDS", "15"))


def node(*arguments: str, timeout: float, needs: str = "ws", **environment: str) -> None:
    """Run node in the folder of the tests; its output is shown, and becomes the message of a failure."""
    if shutil.which("node") is None:
        missing("node")
    if not (NODE / "node_modules" / needs).is_dir():
        missing(f"node's {needs} (npm ci in tests/node)")
    ours = {"PYTHON": sys.executable, "TANTOR_FAULT_SECONDS": str(FAULT_SECONDS)}
    command = ["node", *arguments]
    with subprocess.Popen(
        command,
        cwd=NODE,
        env=os.environ | ours | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            pytest.fail(f"{command} still ran after {timeout:g} s:\n{output}")
    print(output)
    if process.returncode:
        pytest.fail(f"{command} ended with {process.returncode}:\n{output}")


def node_version() -> int:
    if shutil.which("node") is None:
        missing("node")
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.removeprefix("v").split(".")[0])


@pytest.mark.parametrize(
    ("path", "content_type"),
    [("tantor.js", "text/javascript; charset=utf-8"), ("tantor.d.ts", "application/typescript; charset=utf-8")],
)
def test_it_is_served_to_any_origin_and_is_the_file_of_the_package(
    server: Tantor, path: str, content_type: str
) -> None:
    file = (CLIENT / path).read_bytes()
    status, headers, body = http_request(server.port, f"GET /{path}?anything HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (status, body) == (200, file)
    assert headers["content-type"] == content_type
    assert headers["access-control-allow-origin"] == "*"
    assert headers["cache-control"] == "no-cache"
    assert headers["content-length"] == str(len(file))
    status, head, body = http_request(server.port, f"HEAD /{path} HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (status, head, body) == (200, headers, b"")
    for known in (headers["etag"], f'"other", W/{headers["etag"]}', "*"):
        request = f"GET /{path} HTTP/1.1\r\nHost: a\r\nIf-None-Match: {known}\r\n\r\n"
        status, unchanged, body = http_request(server.port, request)
        assert (status, body) == (304, b"")
        assert unchanged["etag"] == headers["etag"]
        assert unchanged["access-control-allow-origin"] == "*"
    request = f'GET /{path} HTTP/1.1\r\nHost: a\r\nIf-None-Match: "another"\r\n\r\n'
    assert http_request(server.port, request)[0] == 200
    assert http_request(server.port, f"POST /{path} HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 405


def test_a_websocket_may_have_its_path(server: Tantor, connect: Callable[..., WebSocketClient]) -> None:
    assert connect(server, "/tantor.js").client_id in server.connections


def test_its_declarations_are_true_of_it_and_take_what_they_should() -> None:
    node("node_modules/typescript/bin/tsc", "--project", ".", timeout=110, needs="typescript")


@pytest.mark.parametrize("file", ["session.test.mjs", "recovery.test.mjs", "client.test.mjs", "pages.test.mjs"])
def test_in_node(file: str) -> None:
    assert (NODE / file).is_file()
    node("--test", "--test-reporter", "spec", file, timeout=110)


def test_in_node_with_its_own_websocket() -> None:
    flag = ("--experimental-websocket",) if node_version() < 22 else ()
    node(*flag, "--test", "--test-reporter", "spec", "client.test.mjs", timeout=110, TEST_WEBSOCKET="global")


@pytest.mark.timeout(FAULT_SECONDS + 180)
@pytest.mark.parametrize("file", ["faults.test.mjs", "kills.test.mjs"])
def test_in_node_under_faults(file: str) -> None:
    assert (NODE / file).is_file()
    node("--test", "--test-reporter", "spec", file, timeout=FAULT_SECONDS + 160)


@pytest.mark.timeout(300)
def test_in_firefox() -> None:
    """The client, and the example chat with it, in tabs of Firefox."""
    if (firefox := shutil.which("firefox-esr") or shutil.which("firefox")) is None:
        missing("firefox")
    node("--test", "--test-reporter", "spec", "firefox.test.mjs", timeout=280, needs="puppeteer-core", FIREFOX=firefox)


def test_every_file_of_node_tests_is_run() -> None:
    run = {f"{name}.test.mjs" for name in ("session", "recovery", "client", "pages", "faults", "kills", "firefox")}
    assert {Path(file).name for file in NODE.glob("*.test.*")} == run


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """An npm package of CommonJS, with the client of the installed package installed by `npm install <path>`."""
    if shutil.which("npm") is None:
        missing("npm")
    (tmp_path / "package.json").write_text(json.dumps({"name": "application", "private": True, "type": "commonjs"}))
    command = ["npm", "install", "--offline", "--no-audit", "--no-fund", "--loglevel", "error", str(CLIENT)]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=100)
    (tmp_path / "main.mts").write_text(CHAT)
    return tmp_path


def run_in(folder: Path, *command: str) -> str:
    """Return the output of a command; a failure shows the whole output."""
    result = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100, check=False
    )
    assert result.returncode == 0, f"{command}:\n{result.stdout}"
    return result.stdout


def test_its_package_says_what_node_and_bundlers_need() -> None:
    package = json.loads((CLIENT / "package.json").read_text(encoding="utf-8"))
    assert (package["name"], package["version"], package["type"]) == ("tantor", __version__, "module")
    for paths in (package["types"], *package["exports"]["."].values(), *package["files"]):
        assert (CLIENT / paths).is_file(), paths


def test_node_imports_the_installed_file_below_a_package_of_commonjs(application: Path) -> None:
    code = "import({}).then(module => console.log(typeof module.connect))"
    copied = application / "vendor" / "tantor"
    shutil.copytree(str(CLIENT), copied)
    for name in ("tantor", "tantor/tantor.js", str(copied / "tantor.js")):
        said = run_in(application, "node", "--eval", code.format(json.dumps(name)))
        assert said == "function\n", (name, said)  # a file that node takes for CommonJS at first is warned of


def test_typescript_finds_its_types(application: Path) -> None:
    compiler = str(NODE / "node_modules" / "typescript" / "bin" / "tsc")
    if not Path(compiler).is_file():
        missing("node's typescript (npm ci in tests/node)")
    options = ("--noEmit", "--strict", "--target", "es2022", "--lib", "es2022,dom")
    for module, resolution in (("esnext", "bundler"), ("nodenext", "nodenext")):
        run_in(
            application, "node", compiler, *options, "--module", module, "--moduleResolution", resolution, "main.mts"
        )


@pytest.mark.parametrize(
    ("bundler", "arguments"),
    [
        ("esbuild/bin/esbuild", ("main.mts", "--bundle", "--format=esm", "--outfile=out/main.js")),
        ("vite/bin/vite.js", ("build", "--outDir", "out", "--logLevel", "warn")),
    ],
    ids=["esbuild", "vite"],
)
def test_bundlers_take_it(application: Path, bundler: str, arguments: tuple[str, ...]) -> None:
    if not (program := NODE / "node_modules" / bundler).is_file():
        missing(f"node's {bundler.split('/')[0]} (npm ci in tests/node)")
    (application / "index.html").write_text('<!doctype html><script type="module" src="/main.mts"></script>')
    run = ("node", str(program)) if program.suffix == ".js" else (str(program),)
    run_in(application, *run, *arguments)
    [bundle] = (application / "out").rglob("*.js")
    assert "join_channel" in bundle.read_text(encoding="utf-8")
