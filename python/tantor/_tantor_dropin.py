"""Lets Flask-TSK's import path of its messenger lead to Tantor; `tantor dropin install` copies it to site-packages.

Every interpreter of this environment runs it at its start: it installs a finder and imports nothing.
"""

import sys

TYPE_CHECKING = False  # the import of typing would cost every start more than all the rest
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec

# The modules that Tantor serves, and the packages above them, which are found elsewhere where they are installed.
SERVED = ("tsk_flask.herd.elephants.tantor", "elephants.py_ele.tantor")
PACKAGES = ("tsk_flask", "tsk_flask.herd", "tsk_flask.herd.elephants", "elephants.py_ele")


class TantorFinder:
    """Finds the modules and packages named above, and no others."""

    @staticmethod
    def find_spec(name: str, path: "Sequence[str] | None" = None, target: object = None) -> "ModuleSpec | None":
        """As the import system asks for it."""
        if name not in SERVED and name not in PACKAGES:
            return None
        try:
            from tantor.dropin_loaders import module_spec, package_spec
        except ModuleNotFoundError as error:
            if error.name != "tantor":
                raise
            return None  # Tantor was uninstalled, and this file was left
        if name in SERVED:
            return module_spec(name)
        return package_spec(name, path, TantorFinder.__name__, (*SERVED, *PACKAGES))


if not any(getattr(finder, "__name__", None) == TantorFinder.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, TantorFinder)
