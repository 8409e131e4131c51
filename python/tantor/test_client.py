"""The page for manual tests of a server."""

from pathlib import Path

FILE_NAME = "tantor-test-client.html"

_TEMPLATE = Path(__file__).with_name("test_client.html")
_TEMPLATE_PORT = 'data-port="8080"'


def write_test_client(port: int, directory: Path | None = None) -> str:
    """Write `tantor-test-client.html`, replacing an existing file, and return its path.

    It goes into `directory`, else the working directory (the path is then relative to it). Opened in a browser, also
    as a file, the page offers to connect to `port` of the host that it came from, else of localhost.

    Errors: `ValueError` for a port that clients cannot connect to; `OSError` if the file cannot be written.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 1 << 16:
        raise ValueError(f"port is {port!r}; it takes a whole number from 1 to 65535")
    page = _TEMPLATE.read_text(encoding="utf-8").replace(_TEMPLATE_PORT, f'data-port="{port}"')
    path = Path(FILE_NAME) if directory is None else directory / FILE_NAME
    path.write_text(page, encoding="utf-8")
    return str(path)
