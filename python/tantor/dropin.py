"""Importing this lets `tsk_flask.herd.elephants.tantor` be Tantor, wherever Flask-TSK is installed, or not at all.

So is `elephants.py_ele.tantor`, should another package named `elephants` stand before the one that comes with
Tantor. What was imported from the original earlier is replaced, in whichever module it is. To have it without this
import, in every program of an environment: `tantor dropin install`.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec

import tantor
from tantor._tantor_dropin import SERVED, TantorFinder
from tantor.dropin_loaders import NAMES, TantorLoader, module_spec


def find_spec(name: str, path: Sequence[str] | None = None) -> ModuleSpec | None:
    """As `TantorFinder.find_spec`; the hook that an earlier Tantor installed calls this function."""
    return TantorFinder.find_spec(name, path)


def _replace_original(name: str) -> None:
    """Put Tantor where a module of that name is imported already, and Tantor's names where its own were taken to."""
    original = sys.modules.get(name)
    if original is None or isinstance(getattr(original.__spec__, "loader", None), TantorLoader):
        return
    replacement = module_from_spec(module_spec(name))
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
