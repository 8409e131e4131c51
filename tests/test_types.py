"""What type checkers say of calls, as mypy says it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from fenced_blocks import read_blocks
from support import missing

CALLS = """
import asyncio
from tantor import Tantor, get_tantor

tantor = Tantor(8080, database="sqlite:///a.db", channel_settings={"orders": {"durable": True}}, shards=2)
message_id: str = tantor.emergency("fire").message_id
tantor.send("client_1", "hello", priority="high")

async def main() -> None:
    sent: int = await tantor.broadcast("jungle", "news", {"a": [1, None]})
    reached: int = await asyncio.create_task(tantor.emergency("fire"))
    await asyncio.create_task(tantor.stop())

tantor.stop().result(5)
if (found := get_tantor()) is not None:
    found.broadcast("jungle", "news").result()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which mypy keeps what it knows of the packages, for the next check."""
    return tmp_path_factory.mktemp("checked")


def check(folder: Path, source: str) -> str:
    if importlib.util.find_spec("mypy") is None:
        missing("mypy")
    path = folder / "application.py"
    path.write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--check-untyped-defs", "--cache-dir", str(folder / "cache"), str(path)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1), done
    return done.stdout


def test_the_flask_example_of_the_readme_has_no_errors(folder: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert "Success" in check(folder, read_blocks(readme)["In a Flask app"].source)


def test_calls_have_the_types_that_they_should(folder: Path) -> None:
    assert "Success" in check(folder, CALLS)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("Tantor(max_digitz=5)", "max_digits"),
        ('Tantor(max_digits="5")', "max_digits"),
        ('Tantor().send("client_1", "x", priority="higher")', "priority"),
        ('Tantor().create_channel("c", "secret")', "create_channel"),
    ],
)
def test_what_cannot_be_is_an_error_of_the_checker(folder: Path, call: str, says: str) -> None:
    said = check(folder, f"from tantor import Tantor\n{call}\n")
    assert "error" in said
    assert says in said
