"""Every exception that Tantor raises of its own."""


class TantorError(Exception):
    """The root of Tantor's exceptions."""


class SettingError(TantorError, ValueError):
    """A setting's value is not one it takes; the message names setting, value and what would do."""


class DataError(TantorError, TypeError, ValueError):
    """Data that JSON cannot hold; the message says where in the data it stood.

    Both a `TypeError` and a `ValueError`, as the standard library's `json` raises either.
    """


class ForkedError(TantorError, RuntimeError):
    """A server that another process started was used in this one."""


class StorageError(TantorError, OSError):
    """The database cannot be used, or did not save something; the message names the file and what is wrong."""
