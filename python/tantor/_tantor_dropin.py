"""Makes Flask-TSK's import path of its messenger lead to Tantor.

`tantor dropin install` copies this module to site-packages. Every interpreter of the environment runs it at its start.
It installs a finder and imports nothing.
"""

import sys

TYPE_CHECKING = False  # importing typing would cost every start more than the rest of this module
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec

# The modules that Tantor provides, and their parent packages, which other finders find where they are installed.
SERVED = ("tsk_flask.herd.elephants.tantor", "elephants.py_ele.tantor")
PACKAGES = ("tsk_flask", "tsk_flask.herd", "tsk_flask.herd.elephants", "elephants.py_ele")


class TantorFinder:
    """Finds the modules of SERVED and the packages of PACKAGES, and no others."""

    @staticmethod
    def find_spec(name: str, path: "Sequence[str] | None" = None, target: object = None) -> "ModuleSpec | None":
        """Return the spec of a module that this finder provides, else None (importlib.abc.MetaPathFinder)."""
        if name not in SERVED and name not in PACKAGES:
            return None
        try:
            from tantor.dropin_loaders import module_spec, package_spec
        except ModuleNotFoundError as error:
            if error.name != "tantor":
                raise
            return None  # Tantor was uninstalled, and this file was not
        if name in SERVED:
            return module_spec(name)
        return package_spec(name, path, TantorFinder.__name__, (*SERVED, *PACKAGES))


if not any(getattr(finder, "__name__", None) == TantorFinder.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, TantorFinder)
