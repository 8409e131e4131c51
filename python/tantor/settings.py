"""Where settings come from: arguments, a Flask configuration, the environment, a TOML file.

Which settings there are, their defaults and their ranges is for Rust's table to say; here values are only
collected, and text is turned into the setting's kind.
"""

import difflib
import functools
import json
import logging
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tantor import _tantor
from tantor.errors import SettingError

PREFIX = "TANTOR_"

# Kubernetes gives a Service named `tantor` the variable TANTOR_PORT=tcp://10.43.7.9:8080
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")

# the names that a warning was already logged for
_warned: set[str] = set()


class Setting(NamedTuple):
    """One setting. `kind` is "integer", "number", "boolean", "text", "json", "list" or "mode".

    A default of None means that the default is derived, as `help` says.
    """

    name: str
    kind: str
    default: Any
    help: str

    @property
    def variable(self) -> str:
        """The name of the setting in the environment and in a Flask configuration."""
        return PREFIX + self.name.upper()


@functools.cache
def known_settings() -> Mapping[str, Setting]:
    """Every setting by its name, in the order of `--help`."""
    return {row[0]: Setting(*row) for row in _tantor.setting_table()}


def resolve(
    explicit: Mapping[str, object],
    *,
    config: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """The settings that some source gives, by name. All others keep the default.

    The first place that has a value (other than None) wins: `explicit`, the key `TANTOR_<NAME>` of a Flask
    `config`, its dict `TANTOR_CONFIG`, the variable `TANTOR_<NAME>` of `environ` (`os.environ` if None; an
    empty variable counts as not set, and so does an address that Kubernetes sets, such as `tcp://10.43.7.9:8080`).
    Other names that start with `TANTOR_` are left alone; one that is near to a setting's is logged once.

    Errors: an unknown name in `explicit` is a `TypeError`; an unknown key of `TANTOR_CONFIG`, or text that
    cannot be read as the setting's kind, a `SettingError`. Text that another place overrides is not read, and
    ranges are checked where the values are used.
    """
    for name in explicit:
        if name not in known_settings():
            raise TypeError(f"there is no setting {name!r}; {_suggestion(name)}")
    config = {} if config is None else config
    environ = os.environ if environ is None else environ
    table = _flask_dict(config)
    _warn_of_misspellings(config, "the app's configuration")
    _warn_of_misspellings(environ, "the environment")
    result: dict[str, object] = {}
    for name, setting in known_settings().items():
        places = (
            (config.get(setting.variable), setting.variable),
            (table.get(name), f"{name} in TANTOR_CONFIG"),
            (_variable(environ, setting), setting.variable),
        )
        if (value := explicit.get(name)) is not None:
            result[name] = _as_text(setting, value)
        elif found := next((place for place in places if place[0] is not None), None):
            result[name] = _converted(setting, *found)
    return result


def load_toml(path: str | os.PathLike[str]) -> dict[str, object]:
    """The settings in a TOML file: its table `[tantor]`, or its top level if it has none.

    Errors: `OSError` if it cannot be read; `SettingError` if it is not TOML, has an unknown key, or text that
    cannot be read as the setting's kind.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is no valid TOML: {error}") from None
    table = document.get("tantor", document)
    if not isinstance(table, dict):
        raise SettingError(f"tantor in {path} is {table!r}; it takes a table of settings")
    _refuse_unknown(table, f" in {path}")
    return {name: _converted(known_settings()[name], value, f"{name} in {path}") for name, value in table.items()}


def from_text(setting: Setting, text: str, source: str) -> object:
    """Convert text to the setting's kind. A `SettingError` names the source, the text and the valid values."""
    read, takes = _KINDS[setting.kind]
    try:
        text.encode()
        return read(text)
    except UnicodeEncodeError:
        raise SettingError(f"{source} is {text!a}; it takes {takes} in UTF-8 ({setting.help})") from None
    except (ValueError, KeyError):
        raise SettingError(f"{source} is {text!r}; it takes {takes} ({setting.help})") from None


_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}

# The kinds of the table: how their text is read, and what to say when it cannot be.
_KINDS: Mapping[str, tuple[Callable[[str], object], str]] = {
    "integer": (int, "a whole number"),
    "number": (float, "a number"),
    "boolean": (lambda text: _BOOLEANS[text.lower()], "true or false"),
    "text": (str, "a text"),
    "json": (str, "JSON"),
    "list": (str, "names with commas between"),
    "mode": (lambda text: f"{int(text, 8):o}", "octal digits such as 660"),
}


def _variable(environ: Mapping[str, str], setting: Setting) -> str | None:
    """A setting's value in the environment; None for a variable that a platform sets for another purpose."""
    text = environ.get(setting.variable)
    if text and _SERVICE_ADDRESS.match(text):
        _warn_once(
            setting.variable,
            f"{setting.variable} is {text!a}, an address that Kubernetes sets for a Service named tantor; it is "
            f"ignored. Set enableServiceLinks: false, or give {setting.name} in another way",
        )
        return None
    return text or None


def _warn_of_misspellings(names: Iterable[object], where: str) -> None:
    known = {setting.variable for setting in known_settings().values()}
    for name in list(names):
        if not isinstance(name, str) or not name.startswith(PREFIX) or name in known or not name.isascii():
            continue
        if nearest := _tantor.nearest_setting(name.removeprefix(PREFIX).lower()):
            variable = known_settings()[nearest].variable
            _warn_once(name, f"{name} in {where} is not a setting, and is ignored; the nearest is {variable}")


def _warn_once(name: str, message: str) -> None:
    if name not in _warned:
        _warned.add(name)
        logging.getLogger("tantor").warning("%s", message)


def _flask_dict(config: Mapping[str, object]) -> Mapping[str, object]:
    table = config.get("TANTOR_CONFIG")
    if table is None:
        return {}
    if not isinstance(table, Mapping):
        raise SettingError(f"TANTOR_CONFIG is {table!r}; it takes a dict of settings")
    _refuse_unknown(table, " in TANTOR_CONFIG")
    return table


def _refuse_unknown(table: Mapping[Any, object], where: str) -> None:
    for name in table:
        if name not in known_settings():
            raise SettingError(f"there is no setting {name!r}{where}; {_suggestion(str(name))}")


def _converted(setting: Setting, value: object, source: str) -> object:
    return from_text(setting, value, source) if isinstance(value, str) else _as_text(setting, value)


def _as_text(setting: Setting, value: object) -> object:
    """Turn a dict into JSON, a list into text, or permissions into octal digits, where the setting is of this kind.

    Equal values become equal here, however they were written: `init_tantor` compares them.
    """
    if setting.kind == "mode":
        if isinstance(value, str):
            return from_text(setting, value, setting.name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0o777:
            return f"{value:o}"
    if setting.kind == "list" and isinstance(value, list | tuple):
        if not all(isinstance(name, str) and name and "," not in name for name in value):
            raise SettingError(f"{setting.name} is {value!r}; it takes a list of names ({setting.help})")
        return ", ".join(value)
    if setting.kind != "json" or not isinstance(value, Mapping):
        return value
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SettingError(f"{setting.name} is {value!r}, which is no JSON: {error}") from None


def _suggestion(name: str) -> str:
    names: Iterable[str] = known_settings()
    if nearest := difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5):
        return f"the nearest is {nearest[0]!r}"
    return f"there are {', '.join(names)}"
