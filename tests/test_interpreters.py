"""Sub-interpreters, as mod_wsgi and others use them: refused in words, and the main interpreter goes on."""

import pytest
from processes import run_python

SOURCE = """
import os, sys, textwrap

try:
    import _interpreters
    # each call that can fail returns what the code raised
    create, run = _interpreters.create, _interpreters.exec
except ImportError:
    import _xxsubinterpreters as _interpreters
    run = _interpreters.run_string

is_isolated, main_first = sys.argv[1] == "isolated", sys.argv[2] == "main first"
if main_first:
    import tantor
if sys.version_info >= (3, 13):
    interpreter = _interpreters.create("isolated" if is_isolated else "legacy")
else:
    interpreter = _interpreters.create(isolated=is_isolated)
attempt = textwrap.dedent('''
    import os
    for name in ("tantor", "tantor.client", "elephants.py_ele.tantor"):
        try:
            __import__(name)
            said = "imported"
        except ImportError as error:
            said = f"ImportError: {error}"
        os.write(1, f"{name}: {said}\\\\n".encode())
''')
failed = run(interpreter, attempt)
if failed:
    print("failed", failed)
_interpreters.destroy(interpreter)
import tantor
with tantor.Tantor(0, "127.0.0.1") as server:
    print("main works", server.broadcast("jungle", "news").result())
"""


@pytest.mark.parametrize("kind", ["legacy", "isolated"])
@pytest.mark.parametrize("order", ["main first", "sub-interpreter first"])
def test_a_sub_interpreter_is_refused_and_harms_nothing(kind: str, order: str) -> None:
    done = run_python(SOURCE, kind, order)
    assert done.returncode == 0, (done.stdout, done.stderr)
    *attempts, main = done.stdout.splitlines()
    assert len(attempts) == 3
    for attempt in attempts:
        assert "ImportError: tantor works in the main interpreter of a process only" in attempt, done.stdout
        assert "WSGIApplicationGroup %{GLOBAL}" in attempt
    assert main == "main works 0"
