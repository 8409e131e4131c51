"""Standing in for Flask-TSK's messenger, in a real environment with the real package."""

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import tantor as package
from processes import script_environment
from support import missing

NAMES = "Tantor, init_tantor, get_tantor, run_tantor, run_tantor_sync, Message, Connection, Channel"
NAMES += ", MessageType, ChannelType"


class Environment:
    """A virtual environment with Tantor in it."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder)
        self.python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        self.site_packages = Path(self.run("import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
        wheel = os.environ.get("TANTOR_WHEEL")
        if wheel:
            self.pip("--no-deps", wheel)
        else:  # the packages under test, wherever they are
            packages = folder / "packages"
            packages.mkdir()
            for name in ("tantor", "elephants"):
                (packages / name).symlink_to(Path(package.__file__).parents[1] / name)
            (self.site_packages / "tantor-under-test.pth").write_text(f"{packages}\n")

    def pip(self, *arguments: str) -> None:
        ours = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.python]
        command = [*ours, "install", "--quiet", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
        if "No matching distribution" in result.stderr or "Could not find a version" in result.stderr:
            missing(f"a package registry that has {arguments[-1]}")
        assert result.returncode == 0, result.stderr

    def tantor(self, *arguments: str) -> str:
        result = self._python("-m", "tantor", *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def run(self, source: str, cwd: Path | None = None, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a script, which must succeed; `path` has more packages for it."""
        result = self._python("-c", source, cwd=cwd, path=path)
        assert result.returncode == 0, result.stderr
        return result

    def _python(
        self, *arguments: str, cwd: Path | None = None, path: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
            cwd=cwd or self.python.parent,
            env=script_environment({"PYTHONPATH": str(path)} if path else None),
            check=False,
        )


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment without Flask-TSK, and without Flask."""
    return Environment(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def flask_tsk(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with Flask-TSK."""
    environment = Environment(tmp_path_factory.mktemp("flask-tsk"))
    environment.pip("flask-tsk==2.0.4")
    return environment


@pytest.fixture(scope="module")
def unsaid(flask_tsk: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the original needs, and Flask-TSK does not say that it does."""
    folder = tmp_path_factory.mktemp("unsaid")
    # the newest websockets on which the original runs
    flask_tsk.pip("--no-deps", "--target", str(folder), "pyotp==2.9.0", "websockets==13.1")
    return folder


@pytest.fixture
def installed_in_bare(bare: Environment) -> Iterator[Environment]:
    bare.tantor("dropin", "install")
    yield bare
    bare.tantor("dropin", "uninstall")


@pytest.fixture
def installed(flask_tsk: Environment) -> Iterator[Environment]:
    flask_tsk.tantor("dropin", "install")
    yield flask_tsk
    flask_tsk.tantor("dropin", "uninstall")


# Every name is ours, and so is the module wherever it is reached from.
IS_OURS = f"""
import sys, tantor
from tsk_flask.herd.elephants.tantor import {NAMES}
import tsk_flask.herd.elephants.tantor as served
from tsk_flask.herd.elephants import tantor as also
import tsk_flask
assert also is served is sys.modules["tsk_flask.herd.elephants.tantor"] is tsk_flask.herd.elephants.tantor
for name in "{NAMES}".split(", "):
    assert globals()[name] is getattr(served, name) is getattr(tantor, name), name
"""

ITS_CALLS_WORK = """
import asyncio, base64, json, os
from flask import Flask
from tsk_flask.herd.elephants.tantor import init_tantor, get_tantor

app = Flask("application")
tantor = init_tantor(app, port=0, host="127.0.0.1")
with app.app_context():
    assert get_tantor() is tantor is app.tantor

async def main():
    server = asyncio.create_task(tantor.start())
    while not tantor.port:
        await asyncio.sleep(0.005)
    reader, writer = await asyncio.open_connection("127.0.0.1", tantor.port)
    key = base64.b64encode(os.urandom(16)).decode()
    headers = ["GET / HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade"]
    headers += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
    writer.write("\\r\\n".join(headers).encode())
    assert b" 101 " in await reader.readuntil(b"\\r\\n\\r\\n")

    async def receive():
        _, length = await reader.readexactly(2)
        if length == 126:
            length = int.from_bytes(await reader.readexactly(2), "big")
        return json.loads(await reader.readexactly(length))

    welcome = await receive()
    assert welcome["event"] == "welcome", welcome
    client_id = welcome["client_id"]
    joined = await receive()
    assert joined["data"]["client_id"] == client_id, joined
    message_id = await tantor.send(client_id, "hello", "jungle")
    assert (await receive())["id"] == message_id
    assert await tantor.broadcast("jungle", "news", {"n": 1}) == 1
    assert (await receive())["data"] == {"n": 1}
    assert await tantor.subscribe(client_id, "den") is True
    assert (await receive())["channel"] == "den"
    assert await tantor.unsubscribe(client_id, "den") is True
    assert tantor.get_presence("jungle") == {"channel": "jungle", "online": 1, "users": [client_id]}
    assert await tantor.emergency("fire") == 1
    assert (await receive())["data"]["severity"] == "critical"
    assert tantor.stats()["status"] == "listening"
    assert tantor.get_client_info(client_id)["channels"] == ["jungle"]
    await tantor.stop()
    await server
    writer.close()

asyncio.run(asyncio.wait_for(main(), 30))
"""

IS_THE_ORIGINAL = """
import sys
from importlib.util import find_spec
spec = find_spec("tsk_flask.herd.elephants.tantor")
assert "tsk_flask" in spec.origin and spec.origin.endswith("tantor.py"), spec
assert "tantor" not in sys.modules
"""


# with Flask-TSK


def test_not_installed_the_original_is_found(flask_tsk: Environment, unsaid: Path) -> None:
    status = flask_tsk.tantor("dropin", "status")
    assert "drop-in: not installed" in status
    assert "flask-tsk: 2.0.4 in " in status
    flask_tsk.run(IS_THE_ORIGINAL, path=unsaid)


def test_installed_it_is_ours_and_its_calls_work(installed: Environment) -> None:
    assert "drop-in: installed" in installed.tantor("dropin", "status")
    installed.run(IS_OURS)
    installed.run(ITS_CALLS_WORK)


def test_what_else_the_package_has_is_as_it_was(installed: Environment, unsaid: Path) -> None:
    installed.run(IS_OURS + "from tsk_flask.herd import Herd\nassert Herd.get_instance()", path=unsaid)
    # without what it does not say that it needs, its herd is not to be had, and says why
    installed.run(
        IS_OURS
        + """
assert tsk_flask.FlaskTSK
try:
    from tsk_flask.herd import Herd
except ImportError as error:
    assert "'Herd' from 'tsk_flask.herd': No module named 'pyotp'" in str(error), error
else:
    raise AssertionError("the herd needs pyotp")
"""
    )


def test_uninstalled_it_is_the_original_again(flask_tsk: Environment, unsaid: Path) -> None:
    written = flask_tsk.tantor("dropin", "install")
    files = {flask_tsk.site_packages / "tantor-dropin.pth", flask_tsk.site_packages / "_tantor_dropin.py"}
    assert all(str(file) in written and file.exists() for file in files)
    flask_tsk.tantor("dropin", "install")  # once more is no harm
    removed = flask_tsk.tantor("dropin", "uninstall")
    assert all(str(file) in removed and not file.exists() for file in files)
    for folder in (flask_tsk.site_packages, flask_tsk.site_packages / "__pycache__"):
        assert not list(folder.glob("_tantor_dropin*"))
    flask_tsk.run(IS_THE_ORIGINAL, path=unsaid)
    assert "was not installed" in flask_tsk.tantor("dropin", "uninstall")


def test_importing_the_dropin_is_enough(flask_tsk: Environment) -> None:
    flask_tsk.run("import tantor.dropin\n" + IS_OURS)
    flask_tsk.run("import tantor.dropin\n" + ITS_CALLS_WORK)


def test_importing_the_dropin_replaces_what_was_imported_before(
    flask_tsk: Environment, unsaid: Path, tmp_path: Path
) -> None:
    (tmp_path / "early.py").write_text("from tsk_flask.herd.elephants.tantor import Tantor, get_tantor as found")
    flask_tsk.run(
        """
import early, tsk_flask.herd.elephants.tantor
originals = [early.Tantor]
import tantor.dropin
assert originals[0] is not tantor.Tantor
assert early.Tantor is tantor.Tantor
assert early.found is tantor.get_tantor
assert tsk_flask.herd.Herd.get_instance()
"""
        + IS_OURS,
        cwd=tmp_path,
        path=unsaid,
    )


# without Flask-TSK, and without Flask


def test_installed_it_is_found_without_flask_tsk(installed_in_bare: Environment) -> None:
    assert "flask-tsk: not found" in installed_in_bare.tantor("dropin", "status")
    installed_in_bare.run(IS_OURS)
    installed_in_bare.run(
        """
try:
    from tsk_flask import FlaskTSK
except ImportError:
    pass
else:
    raise AssertionError("nothing else of Flask-TSK is there")
try:
    import tsk_flask.memory
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("nothing else of Flask-TSK is there")
"""
    )


def test_importing_the_dropin_is_enough_without_flask_tsk(bare: Environment) -> None:
    bare.run("import tantor.dropin\n" + IS_OURS)


def test_the_hook_imports_nothing_at_the_start(installed_in_bare: Environment, bare: Environment) -> None:
    source = "import sys; print(*sorted(sys.modules))"
    with_it = set(installed_in_bare.run(source).stdout.split())
    bare.tantor("dropin", "uninstall")
    assert with_it - set(bare.run(source).stdout.split()) == {"_tantor_dropin"}


def test_a_hook_that_was_left_behind_does_no_harm(installed_in_bare: Environment) -> None:
    installed_in_bare.run(
        """
import sys
sys.modules["tantor"] = None  # as if uninstalled
class Gone:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "tantor":
            raise ModuleNotFoundError("No module named 'tantor'", name="tantor")
sys.meta_path.insert(0, Gone)
del sys.modules["tantor"]
try:
    import tsk_flask
except ModuleNotFoundError as error:
    assert error.name == "tsk_flask", error
else:
    raise AssertionError("there is none")
"""
    )


def test_an_old_or_broken_hook_is_told(bare: Environment) -> None:
    bare.tantor("dropin", "install")
    hook = bare.site_packages / "_tantor_dropin.py"
    hook.write_text(hook.read_text() + "# older\n")
    assert "drop-in: outdated" in bare.tantor("dropin", "status")
    hook.unlink()
    (bare.site_packages / "tantor-dropin.pth").write_text("")
    assert "drop-in: incomplete" in bare.tantor("dropin", "status")
    bare.tantor("dropin", "install")
    assert "drop-in: installed" in bare.tantor("dropin", "status")
    bare.tantor("dropin", "uninstall")
    assert "drop-in: not installed" in bare.tantor("dropin", "status")


# the document's import path

IS_OURS_TOO = f"""
import tantor
from elephants.py_ele.tantor import {NAMES}
for name in "{NAMES}".split(", "):
    assert globals()[name] is getattr(tantor, name), name
"""


def test_a_users_own_elephants_package_is_left_alone(bare: Environment, tmp_path: Path) -> None:
    own = tmp_path / "elephants"
    own.mkdir()
    (own / "trunk.py").write_text("length = 2")
    bare.run("import elephants.trunk\nassert elephants.trunk.length == 2", cwd=tmp_path)
    bare.run(IS_OURS_TOO, cwd=tmp_path)  # both are namespace packages
    (own / "__init__.py").write_text("legs = 4")
    bare.run("import elephants\nassert elephants.legs == 4", cwd=tmp_path)


def test_behind_a_users_own_elephants_package_the_dropin_serves_the_documents_path(
    bare: Environment, tmp_path: Path
) -> None:
    own = tmp_path / "elephants"
    own.mkdir()
    (own / "__init__.py").write_text("legs = 4")
    source = "import tantor.dropin\n" + IS_OURS_TOO + "import elephants\nassert elephants.legs == 4"
    bare.run(source, cwd=tmp_path)
    (own / "py_ele").mkdir()
    (own / "py_ele" / "__init__.py").write_text("")
    (own / "py_ele" / "tantor.py").write_text("class Tantor: 'the copy of the original that an application had'")
    bare.run(source, cwd=tmp_path)
    bare.tantor("dropin", "install")
    bare.run(IS_OURS_TOO, cwd=tmp_path)
    bare.tantor("dropin", "uninstall")
