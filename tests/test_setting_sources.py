"""Where settings come from: arguments, a Flask configuration, the environment, a TOML file."""

import logging
from pathlib import Path
from typing import Any

import pytest
from tantor import SettingError, Tantor
from tantor.settings import known_settings, load_toml, resolve

EXPLICIT = {"heartbeat_interval": 1}
FLASK_KEY = {"TANTOR_HEARTBEAT_INTERVAL": 2}
FLASK_DICT = {"TANTOR_CONFIG": {"heartbeat_interval": 3}}
ENVIRONMENT = {"TANTOR_HEARTBEAT_INTERVAL": "4"}


@pytest.fixture(autouse=True)
def no_variable_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TANTOR_RUNTIME_DIR")


@pytest.mark.parametrize(
    ("explicit", "config", "environ", "expected"),
    [
        (EXPLICIT, FLASK_KEY | FLASK_DICT, ENVIRONMENT, 1),
        ({}, FLASK_KEY | FLASK_DICT, ENVIRONMENT, 2),
        ({}, FLASK_DICT, ENVIRONMENT, 3),
        ({}, {}, ENVIRONMENT, 4),
        ({"heartbeat_interval": None}, FLASK_KEY, ENVIRONMENT, 2),
        ({}, {"TANTOR_HEARTBEAT_INTERVAL": None} | FLASK_DICT, ENVIRONMENT, 3),
        ({}, {"TANTOR_CONFIG": {"heartbeat_interval": None}}, ENVIRONMENT, 4),
        ({}, {"TANTOR_CONFIG": None}, ENVIRONMENT, 4),
    ],
)
def test_the_first_place_that_has_a_value_wins(
    explicit: dict[str, Any], config: dict[str, Any], environ: dict[str, str], expected: float
) -> None:
    assert resolve(explicit, config=config, environ=environ) == {"heartbeat_interval": expected}


def test_what_is_given_nowhere_is_left_to_the_default() -> None:
    assert resolve({"port": None, "host": None}, config={}, environ={}) == {}


def test_an_empty_variable_counts_as_not_set() -> None:
    assert resolve({}, environ={"TANTOR_PORT": "", "TANTOR_HOST": ""}) == {}


def test_what_others_keep_under_the_prefix_is_left_alone() -> None:
    others = {"TANTOR_HOME": "/srv", "TANTOR_CONFIG": "x.toml", "TANTOR_PORT_8080_TCP": "tcp://10.0.0.1:8080"}
    assert resolve({}, environ=others) == {}
    assert resolve({}, config={"TANTOR_COLOUR": "green"}, environ={}) == {}


def test_text_that_is_overridden_is_not_read() -> None:
    environ = {"TANTOR_PORT": "eighty"}
    assert resolve({"port": 9000}, environ=environ) == {"port": 9000}
    with pytest.raises(SettingError, match=r"TANTOR_PORT is 'eighty'; it takes a whole number"):
        resolve({}, environ=environ)


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log of a process that has warned of nothing yet."""
    monkeypatch.setattr("tantor.settings._warned", set())
    caplog.set_level(logging.WARNING, logger="tantor")
    return caplog


# what Kubernetes sets in each container of a namespace that has a Service named `tantor`
KUBERNETES = {
    "TANTOR_SERVICE_HOST": "10.43.7.9",
    "TANTOR_SERVICE_PORT": "8080",
    "TANTOR_SERVICE_PORT_HTTP": "8080",
    "TANTOR_PORT": "tcp://10.43.7.9:8080",
    "TANTOR_PORT_8080_TCP": "tcp://10.43.7.9:8080",
    "TANTOR_PORT_8080_TCP_PROTO": "tcp",
    "TANTOR_PORT_8080_TCP_PORT": "8080",
    "TANTOR_PORT_8080_TCP_ADDR": "10.43.7.9",
}


def test_addresses_that_kubernetes_sets_are_ignored_with_one_line(warned: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert resolve({}, environ=KUBERNETES) == {}
    assert len(warned.messages) == 1, warned.messages
    assert "TANTOR_PORT is 'tcp://10.43.7.9:8080'" in warned.messages[0]
    assert resolve({}, config={"TANTOR_PORT": 9000}, environ=KUBERNETES) == {"port": 9000}
    assert resolve({}, environ={"TANTOR_DEFAULT_CHANNEL": "udp://10.43.7.9:53"}) == {}
    assert len(warned.messages) == 2, warned.messages


@pytest.mark.parametrize("name", ["PORT", "DEFAULT_CHANNEL", "DURABLE", "HEARTBEAT_INTERVAL"])
def test_a_variable_that_is_not_utf_8_is_named(name: str) -> None:
    environ = {f"TANTOR_{name}": "a\udcff"}
    with pytest.raises(SettingError, match=rf"TANTOR_{name} is 'a\\udcff'; it takes .* in UTF-8"):
        resolve({}, environ=environ)


def test_a_misspelled_key_is_told_once_with_the_nearest(warned: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert resolve({}, config={"TANTOR_PROT": 9000, "SECRET_KEY": "x", 7: 8}, environ={}) == {}
    assert resolve({}, environ={"TANTOR_HISTROY_SIZE": "5"}) == {}
    assert warned.messages == [
        "TANTOR_PROT in the app's configuration is not a setting, and is ignored; the nearest is TANTOR_PORT",
        "TANTOR_HISTROY_SIZE in the environment is not a setting, and is ignored; the nearest is TANTOR_HISTORY_SIZE",
    ]


def test_names_of_other_programs_are_not_told(warned: pytest.LogCaptureFixture) -> None:
    others = {"TANTOR_HOME": "/srv", "TANTOR_CONFIG": "x", "TANTOR_WHEEL": "x.whl", "TANTOR_": "x", "TANTOR_DSN": "x"}
    assert resolve({}, environ=others | {"TANTOR_\udcff": "x"}) == {}
    assert warned.messages == []


def test_toml_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tantor.toml"
    path.write_bytes(b"\xef\xbb\xbf[tantor]\nport = 9000\n")
    assert load_toml(path) == {"port": 9000}


@pytest.mark.parametrize("name", list(known_settings()))
def test_every_setting_is_read_from_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = known_settings()[name]
    assert setting.variable == f"TANTOR_{name.upper()}"
    assert setting.help
    value = Tantor().setting(name)
    if setting.default is not None:
        assert value == setting.default
    monkeypatch.setenv(setting.variable, str(value))
    assert resolve({}) == ({} if value == "" else {name: value}), "an empty variable counts as not set"
    assert Tantor().setting(name) == value


@pytest.mark.parametrize(
    ("variable", "text", "takes"),
    [
        ("TANTOR_PORT", "eighty", "a whole number"),
        ("TANTOR_PORT", "80.5", "a whole number"),
        ("TANTOR_MAX_CONNECTIONS", "1e3", "a whole number"),
        ("TANTOR_HEARTBEAT_INTERVAL", "soon", "a number"),
    ],
)
def test_text_of_the_wrong_kind_names_the_variable_the_text_and_what_it_takes(
    variable: str, text: str, takes: str
) -> None:
    with pytest.raises(SettingError, match=rf"^{variable} is '{text}'; it takes {takes}"):
        resolve({}, environ={variable: text})
    with pytest.raises(SettingError, match=rf"^{variable} is '{text}'; it takes {takes}"):
        resolve({}, config={variable: text}, environ={})
    name = variable.removeprefix("TANTOR_").lower()
    with pytest.raises(SettingError, match=rf"^{name} in TANTOR_CONFIG is '{text}'; it takes {takes}"):
        resolve({}, config={"TANTOR_CONFIG": {name: text}}, environ={})


def test_text_in_a_flask_configuration_is_read_as_the_kind() -> None:
    config = {"TANTOR_PORT": "9000", "TANTOR_CONFIG": {"heartbeat_interval": "2.5"}}
    assert resolve({}, config=config, environ={}) == {"port": 9000, "heartbeat_interval": 2.5}


def test_an_unknown_argument_names_the_nearest_setting() -> None:
    with pytest.raises(TypeError, match=r"'heartbeat_intervall'.*'heartbeat_interval'"):
        resolve({"heartbeat_intervall": 1})
    with pytest.raises(TypeError, match=r"'prot'.*'port'"):
        resolve({"prot": None})
    with pytest.raises(TypeError, match=r"'qqqqqqqq'; there are port, host, "):
        resolve({"qqqqqqqq": 1})


def test_an_unknown_key_of_the_flask_dict_names_the_nearest_setting() -> None:
    with pytest.raises(SettingError, match=r"'max_conections' in TANTOR_CONFIG; the nearest is 'max_connections'"):
        resolve({}, config={"TANTOR_CONFIG": {"max_conections": 5}}, environ={})
    with pytest.raises(SettingError, match=r"TANTOR_CONFIG is 5; it takes a dict"):
        resolve({}, config={"TANTOR_CONFIG": 5}, environ={})


@pytest.mark.parametrize("text", ['port = 9000\nhost = "::1"', '[other]\nx = 1\n[tantor]\nport = 9000\nhost = "::1"'])
def test_a_toml_file_has_settings_at_its_top_or_in_a_table(text: str, tmp_path: Path) -> None:
    file = tmp_path / "tantor.toml"
    file.write_text(text)
    assert load_toml(file) == {"port": 9000, "host": "::1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 9000", r"no setting 'prot' in .*tantor\.toml; the nearest is 'port'"),
        ("[tantor]\nprot = 9000", r"no setting 'prot' in .*tantor\.toml; the nearest is 'port'"),
        ('port = "eighty"', r"port in .*tantor\.toml is 'eighty'; it takes a whole number"),
        ("port = \nhost = 1", r"tantor\.toml is no valid TOML: .*line 1"),
        ("tantor = 5", r"tantor in .*tantor\.toml is 5; it takes a table"),
    ],
)
def test_what_is_wrong_in_a_toml_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "tantor.toml"
    file.write_text(text)
    with pytest.raises(SettingError, match=message):
        load_toml(file)


def test_a_toml_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_toml(tmp_path / "nothing.toml")
