"""The exceptions that Tantor defines."""


class TantorError(Exception):
    """The base class of Tantor's exceptions."""


class SettingError(TantorError, ValueError):
    """A setting has an invalid value; the message names the setting, the value and the valid values."""


class DataError(TantorError, TypeError, ValueError):
    """Data that JSON cannot hold; the message says at which place in the data.

    Both a `TypeError` and a `ValueError`, as the standard library's `json` raises either.
    """


class ForkedError(TantorError, RuntimeError):
    """A server, operation or event loop of the parent process was used in a forked child."""


class StorageError(TantorError, OSError):
    """The database cannot be used, or could not save a change; the message names the file and the problem."""


class LinkError(TantorError, ConnectionError):
    """The process that has the server cannot be reached, or has ended before it answered a call."""
