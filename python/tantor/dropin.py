"""Importing this lets `tsk_flask.herd.elephants.tantor` be Tantor, wherever Flask-TSK is installed, or not at all.

So is `elephants.py_ele.tantor`, should another package named `elephants` stand before the one that comes with
Tantor. What was imported from the original earlier is replaced, in whichever module it is. To have it without this
import, in every program of an environment: `tantor dropin install`.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import CodeType, ModuleType

import tantor
from tantor._tantor_dropin import PACKAGES, SERVED, TantorFinder

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
        """As the import system asks for it."""
        module.__doc__ = "Tantor, under the import path of the messenger that it replaces."
        module.__file__ = __file__
        module.__dict__.update({name: getattr(tantor, name) for name in NAMES}, __all__=list(NAMES))

    def get_code(self, fullname: str) -> CodeType:
        """What `python -m` runs: as the original does, it serves."""
        return compile("import sys, tantor.cli\nsys.exit(tantor.cli.main(['serve']))", f"<{fullname}>", "exec")


class EmptyPackageLoader(Loader):
    """Leaves a package empty: it only stands above a module that is served."""

    def exec_module(self, module: ModuleType) -> None:
        """As the import system asks for it."""
        module.__doc__ = f"Stands in for the package {module.__name__}, which is not installed."


class ForgivingLoader(Loader):
    """Loads an installed package, and leaves it empty if something that it imports is missing.

    Flask-TSK's `herd` needs packages that are not installed with it, none of which Tantor needs. Whoever wants
    one of the package's own names gets the error that it had.
    """

    def __init__(self, loader: Loader) -> None:
        """`loader` is the one that the package has."""
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        """What else a loader may offer: source, resources."""
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the import system asks for it."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As the import system asks for it."""
        empty = ModuleType(module.__name__)
        empty.__dict__.update(module.__dict__)
        try:
            self._loader.exec_module(module)
        except ImportError as error:
            empty.__dict__["__getattr__"] = _refusing(module.__name__, error)
            sys.modules[module.__name__] = empty


def find_spec(name: str, path: Sequence[str] | None = None) -> ModuleSpec | None:
    """The spec of one of the names that are served, or of a package above them; None for every other name."""
    if name in SERVED:
        return ModuleSpec(name, TantorLoader(), origin=__file__)
    if name not in PACKAGES:
        return None
    spec = _installed(name, path)
    if spec is None:
        return ModuleSpec(name, EmptyPackageLoader(), is_package=True)
    if spec.loader is not None and spec.origin is not None:  # a namespace package has nothing that fails
        spec.loader = ForgivingLoader(spec.loader)
    return spec


def _installed(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """What the other finders know by that name."""
    for finder in sys.meta_path:
        if getattr(finder, "__name__", None) == TantorFinder.__name__:
            continue
        if (spec := finder.find_spec(name, path)) is not None:
            return spec
    return None


def _refusing(package: str, error: ImportError) -> Callable[[str], object]:
    """A package's `__getattr__` that tells why it is empty, but for what the import system looks for."""

    def __getattr__(name: str) -> object:  # noqa: N807
        if f"{package}.{name}" in (*SERVED, *PACKAGES) or name.startswith("__"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        raise ImportError(f"cannot import {name!r} from {package!r}: {error}", name=error.name) from error

    return __getattr__


def _replace_original(name: str) -> None:
    """Put Tantor where a module of that name is imported already, and Tantor's names where its own were taken to."""
    original = sys.modules.get(name)
    if original is None or isinstance(getattr(original.__spec__, "loader", None), TantorLoader):
        return
    spec = ModuleSpec(name, TantorLoader(), origin=__file__)
    replacement = module_from_spec(spec)
    sys.modules[name] = replacement
    TantorLoader().exec_module(replacement)
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, replacement)
    ours = {id(original.__dict__[taken]): getattr(tantor, taken) for taken in NAMES if taken in original.__dict__}
    for module in list(sys.modules.values()):
        # not through getattr: a module may make its names when asked for them
        names = getattr(module, "__dict__", {}) if module is not original else {}
        for taken, value in list(names.items()):
            if id(value) in ours:
                names[taken] = ours[id(value)]


for _name in SERVED:
    _replace_original(_name)
