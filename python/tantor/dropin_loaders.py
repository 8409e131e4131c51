"""Loads the modules that `_tantor_dropin.TantorFinder` finds: Tantor's own, and the packages above it."""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType

import tantor

# of a module that is served: the file that its users import
FILE = str(Path(__file__).with_name("dropin.py"))

NAMES = (
    "Channel",
    "ChannelType",
    "Connection",
    "Message",
    "MessageType",
    "Tantor",
    "get_tantor",
    "init_tantor",
    "run_tantor",
    "run_tantor_sync",
)


class TantorLoader(Loader):
    """Fills a module with Tantor's names."""

    def exec_module(self, module: ModuleType) -> None:
        """Part of the import system's interface."""
        module.__doc__ = "Tantor, under the import path of the messenger that it replaces."
        module.__file__ = FILE
        module.__dict__.update({name: getattr(tantor, name) for name in NAMES}, __all__=list(NAMES))

    def get_code(self, fullname: str) -> CodeType:
        """The code that `python -m` runs: a server, as with the original."""
        return compile("import sys, tantor.cli\nsys.exit(tantor.cli.main(['serve']))", f"<{fullname}>", "exec")


class EmptyPackageLoader(Loader):
    """Leaves a package empty, because the package only contains a module that is served."""

    def exec_module(self, module: ModuleType) -> None:
        """Part of the import system's interface."""
        module.__doc__ = f"Stands in for the package {module.__name__}, which is not installed."


class ForgivingLoader(Loader):
    """Loads an installed package, and leaves it empty if something that it imports is missing.

    Flask-TSK's `herd` needs packages that are not installed with it, none of which Tantor needs. Whoever wants
    one of the package's own names gets the error that it had.
    """

    def __init__(self, loader: Loader, ours: Sequence[str]) -> None:
        """`loader` is the package's own loader; modules and packages named in `ours` are not refused."""
        self._loader = loader
        self._ours = ours

    def __getattr__(self, name: str) -> object:
        """Other attributes of a loader: source, resources."""
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Part of the import system's interface."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Part of the import system's interface."""
        empty = ModuleType(module.__name__)
        empty.__dict__.update(module.__dict__)
        try:
            self._loader.exec_module(module)
        except ImportError as error:
            empty.__dict__["__getattr__"] = _refusing(module.__name__, error, self._ours)
            sys.modules[module.__name__] = empty


def module_spec(name: str) -> ModuleSpec:
    """The spec of a module that is Tantor under another name."""
    return ModuleSpec(name, TantorLoader(), origin=FILE)


def package_spec(name: str, path: Sequence[str] | None, finder: str, ours: Sequence[str]) -> ModuleSpec:
    """The spec of a package above such a module: the installed package, else an empty one.

    `finder` is the name of the finder that asks, and `ours` are the modules and packages that it finds.
    """
    spec = _installed(name, path, finder)
    if spec is None:
        return ModuleSpec(name, EmptyPackageLoader(), is_package=True)
    if spec.loader is not None and spec.origin is not None:  # a namespace package has nothing that fails
        spec.loader = ForgivingLoader(spec.loader, ours)
    return spec


def _installed(name: str, path: Sequence[str] | None, finder: str) -> ModuleSpec | None:
    """The spec that the other finders have for a name."""
    for other in sys.meta_path:
        if getattr(other, "__name__", None) == finder:
            continue
        if (spec := other.find_spec(name, path)) is not None:
            return spec
    return None


def _refusing(package: str, error: ImportError, ours: Sequence[str]) -> Callable[[str], object]:
    """A package's `__getattr__` that tells why it is empty, but for what the import system looks for."""

    def __getattr__(name: str) -> object:  # noqa: N807
        if f"{package}.{name}" in ours or name.startswith("__"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        raise ImportError(f"cannot import {name!r} from {package!r}: {error}", name=error.name) from error

    return __getattr__
