"""What `help()` shows: every public name has a docstring, and Rust's are those of the stub."""

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import tantor
from tantor import Tantor, _tantor

STUB = ast.parse((Path(tantor.__file__).parent / "_tantor.pyi").read_text(encoding="utf-8"))


def stub_docstrings() -> dict[str, str]:
    """By qualified name; special methods have those of their protocol."""
    found: dict[str, str] = {}
    for node in STUB.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            found[node.name] = text
        for member in node.body if isinstance(node, ast.ClassDef) else ():
            if not isinstance(member, ast.FunctionDef) or member.name.startswith("__"):
                continue
            if text := ast.get_docstring(member):
                found[f"{node.name}.{member.name}"] = text  # type: ignore[union-attr]  # it is the class
    return found


def stub_members() -> list[str]:
    return [
        f"{node.name}.{member.name}"
        for node in STUB.body
        if isinstance(node, ast.ClassDef)
        for member in node.body
        if isinstance(member, ast.FunctionDef) and not member.name.startswith("_")
    ]


def resolve(name: str) -> Any:
    value: Any = _tantor
    for part in name.split("."):
        value = inspect.getattr_static(value, part)
    return value


def test_the_extension_shows_what_its_stub_shows() -> None:
    documented = stub_docstrings()
    assert {name for name in stub_members() if name not in documented} == set()
    different = {
        name: (inspect.getdoc(resolve(name)), text)
        for name, text in documented.items()
        if inspect.cleandoc(resolve(name).__doc__ or "") != inspect.cleandoc(text)
    }
    assert different == {}


@pytest.mark.parametrize("name", [name for name in tantor.__all__ if name != "__version__"])
def test_every_public_name_and_member_is_documented(name: str) -> None:
    value = getattr(tantor, name)
    assert inspect.getdoc(value)
    if not inspect.isclass(value):
        return
    for member in dir(value):
        attribute = inspect.getattr_static(value, member)
        is_ours = getattr(attribute, "__module__", "tantor") is None or callable(attribute)
        inherited = any(member in vars(base) for base in value.__mro__ if base.__module__ in ("builtins", "enum"))
        if not member.startswith("_") and is_ours and not inherited:
            assert inspect.getdoc(getattr(value, member)), f"{name}.{member}"


def test_help_shows_the_documentation_of_a_call() -> None:
    shown = inspect.getdoc(Tantor.broadcast)
    assert shown is not None
    assert "arrives as `{}`" in shown
    assert "channel, event, data=None" in str(inspect.signature(Tantor.broadcast))


PUBLIC = {
    "broadcast",
    "channels",
    "connections",
    "create_channel",
    "create_test_client_html",
    "delete_channel",
    "delivery",
    "emergency",
    "get_client_info",
    "get_presence",
    "history",
    "host",
    "is_running",
    "memory",
    "off_event",
    "on",
    "on_event",
    "port",
    "resume_token",
    "send",
    "setting",
    "start",
    "start_background",
    "stats",
    "stop",
    "stop_on_sigterm",
    "subscribe",
    "unsubscribe",
}


def test_completion_shows_what_is_for_applications() -> None:
    assert {name for name in dir(Tantor()) if not name.startswith("_")} == PUBLIC
