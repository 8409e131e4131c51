"""The files of `tantor dropin`: an import hook in an environment's site-packages, and the line that loads it."""

import sysconfig
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal, NamedTuple

_HOOK_SOURCE = Path(__file__).with_name("_tantor_dropin.py")
_LOADER_LINE = "import _tantor_dropin\n"


class Status(NamedTuple):
    """The state of an environment; `flask_tsk` is the version and folder of Flask-TSK, None if it is not installed."""

    state: Literal["installed", "not installed", "incomplete", "outdated"]
    directory: Path
    flask_tsk: str | None


def site_packages() -> Path:
    """The folder of pure Python packages of the interpreter that runs this."""
    return Path(sysconfig.get_path("purelib"))


def install(directory: Path | None = None) -> list[Path]:
    """Write the hook into `site_packages()`, replacing an existing hook; returns the written files.

    Errors: `OSError` where the folder cannot be written to.
    """
    loader, hook = _files(directory)
    # in this order, as each start reads the loader's line
    hook.write_text(_HOOK_SOURCE.read_text(encoding="utf-8"), encoding="utf-8")
    loader.write_text(_LOADER_LINE, encoding="utf-8")
    return [hook, loader]


def uninstall(directory: Path | None = None) -> list[Path]:
    """Remove the hook; returns the removed files."""
    loader, hook = _files(directory)
    compiled = (hook.parent / "__pycache__").glob(f"{hook.stem}.*.pyc")
    removed = [path for path in (loader, hook, *compiled) if path.exists()]
    for path in removed:
        path.unlink()
    return removed


def status(directory: Path | None = None) -> Status:
    """The state of the hook, and whether this interpreter finds Flask-TSK."""
    loader, hook = _files(directory)
    state: Literal["installed", "not installed", "incomplete", "outdated"]
    if not loader.exists() and not hook.exists():
        state = "not installed"
    elif not loader.exists() or not hook.exists():
        state = "incomplete"
    elif _text(loader) != _LOADER_LINE or _text(hook) != _text(_HOOK_SOURCE):
        state = "outdated"
    else:
        state = "installed"
    return Status(state, loader.parent, _flask_tsk())


def _files(directory: Path | None) -> tuple[Path, Path]:
    directory = directory or site_packages()
    return directory / "tantor-dropin.pth", directory / "_tantor_dropin.py"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _flask_tsk() -> str | None:
    spec = PathFinder.find_spec("tsk_flask")  # the installed one, whatever hooks there are
    if spec is None or spec.submodule_search_locations is None:
        return None
    try:
        version = metadata.version("flask-tsk")
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    return f"{version} in {next(iter(spec.submodule_search_locations))}"
