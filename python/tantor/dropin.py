"""Importing this module makes `tsk_flask.herd.elephants.tantor` lead to Tantor, with or without Flask-TSK.

The same holds for `elephants.py_ele.tantor`, where another package named `elephants` comes before Tantor's own. Names
that were imported from the original earlier are replaced in every module. `tantor dropin install` does the same for
every program of an environment, without this import.
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
    """Replace an imported module of this name, and the names that other modules have imported from it."""
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
        # not through getattr, because a module may create names on access
        names = getattr(module, "__dict__", {}) if module is not original else {}
        for taken, value in list(names.items()):
            if id(value) in ours:
                names[taken] = ours[id(value)]


for _name in SERVED:
    _replace_original(_name)
