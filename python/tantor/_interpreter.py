"""The check that this is the main interpreter of the process."""

import importlib
from types import ModuleType


def require_main_interpreter() -> None:
    """Errors: `ImportError` in a sub-interpreter, whether it shares the main interpreter's lock or has its own.

    The extension module keeps its types for the whole process, so two interpreters would share Python objects. That
    ends in hangs and segmentation faults at exit.
    """
    interpreters = _find_interpreters()
    if interpreters is not None and interpreters.get_current() != interpreters.get_main():
        raise ImportError(
            "tantor works in the main interpreter of a process only, and this is a sub-interpreter; "
            "under mod_wsgi, set 'WSGIApplicationGroup %{GLOBAL}'"
        )


def _find_interpreters() -> ModuleType | None:
    # CPython's own module: the second name is that of 3.11 and 3.12
    for name in ("_interpreters", "_xxsubinterpreters"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None
