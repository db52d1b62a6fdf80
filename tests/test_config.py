"""Settings: where they come from, which wins, and what is said when one is wrong."""

from pathlib import Path

import pytest

from yikatong.core.config import Settings, read_settings
from yikatong.core.errors import ConfigError
from yikatong.core.keys import key_sets

KEY_FILE = '[[tac]]\nissuer_id = "5980000100000000"\nkey_version = 1\nkey_index = 1\nlevels = 2\nmaster = "{}"\n'
MASTER = "fedcba98765432100123456789abcdef"


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "yikatong.toml"
    file.write_text('service_port = 1001\ntap_port = 1002\nmetrics_port = 1003\ndata = "data"\n')
    environment = {"YIKATONG_TAP_PORT": "2002", "YIKATONG_METRICS_PORT": "2003", "YIKATONG_JSON_LOGS": "true", "OTHER": "x"}
    settings = read_settings(file, environment, metrics_port=3003, json_logs=None)
    assert (settings.service_port, settings.tap_port, settings.metrics_port) == (1001, 2002, 3003)
    assert settings.json_logs is True
    assert settings.data == str(tmp_path / "data")  # relative to the file
    assert settings.drain_s == Settings().drain_s


WRONG = [
    # file, environment, flags, what must be named
    ("servise_port = 1", {}, {}, "servise_port: there is no such setting"),
    ('service_port = "x"', {}, {}, "service_port: int is wanted"),
    ("service_port = true", {}, {}, "service_port: int is wanted"),
    ("service_port = 70000", {}, {}, "service_port: 0 to 65535"),
    ("insecure = 1", {}, {}, "insecure: bool is wanted"),
    ("service_port = ", {}, {}, "is not TOML"),
    ("", {"YIKATONG_SERVICE_PORT": "many"}, {}, "YIKATONG_SERVICE_PORT: int is wanted"),
    ("", {"YIKATONG_INSECURE": "perhaps"}, {}, "YIKATONG_INSECURE: bool is wanted"),
    ("", {}, {"checkpoint_s": 0.0}, "checkpoint_s: 0.05 to"),
    ("", {}, {"host": "localhost"}, "host: an IP address is wanted"),
    ("", {}, {"host": "0.0.0.0", "insecure": True}, "insecure: plaintext is served on a loopback address only"),
]


@pytest.mark.parametrize(("text", "environment", "flags", "says"), WRONG, ids=[row[3] for row in WRONG])
def test_a_wrong_setting_is_named(
    tmp_path: Path, text: str, environment: dict[str, str], flags: dict[str, object], says: str
) -> None:
    file = tmp_path / "yikatong.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_settings(file, environment, **flags)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_settings(tmp_path / "none.toml", {})


def test_plaintext_must_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="tls_certificate"):
        Settings().check_tls()
    with pytest.raises(ConfigError, match="choose one"):
        Settings(insecure=True, tls_certificate="x").check_tls()
    Settings(insecure=True).check_tls()
    Settings(insecure=True, host="::1").check_tls()


def write_keys(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_keys_are_read_and_derived(tmp_path: Path) -> None:
    """The issuer's key of profile.md's worked example stands under its card key."""
    from yikatong.ext import sm4

    key_set = key_sets.load(write_keys(tmp_path / "keys.toml", KEY_FILE.format(MASTER)))[0]
    assert sm4.diversify(key_set.parent(), bytes.fromhex("3104416000000017")).hex() == "ab90fe13030d8c826723ac0928db8607"
    assert (
        sm4.diversify(key_set._replace(levels=1).parent(), bytes.fromhex("3104416000000017")).hex()
        == "9a8ab61305a698653f5e8c18ef3eae86"
    )
    assert MASTER not in repr(key_set)
    assert str(key_set.master) not in repr(key_set)


WRONG_KEYS = [
    ("", 0o600, "one or more"),
    ("x", 0o600, "is not TOML"),
    (KEY_FILE.format(MASTER), 0o644, "only its owner"),
    (KEY_FILE.format(MASTER[:-2]), 0o600, r"tac\[0\].master: 32 hexadecimal digits"),
    (KEY_FILE.format("zz" * 16), 0o600, r"tac\[0\].master: 32 hexadecimal digits"),
    (KEY_FILE.format(MASTER).replace("levels = 2", "levels = 3"), 0o600, r"tac\[0\].levels: 1 to 2"),
    (KEY_FILE.format(MASTER).replace("levels = 2", ""), 0o600, r"tac\[0\].levels: a int is wanted"),
    (KEY_FILE.format(MASTER).replace("levels", "level"), 0o600, "what is level"),
    (KEY_FILE.format(MASTER) * 2, 0o600, "stand there twice"),
]


@pytest.mark.parametrize(("text", "mode", "says"), WRONG_KEYS, ids=[row[2] for row in WRONG_KEYS])
def test_a_wrong_key_file_is_told_and_no_key_is_shown(tmp_path: Path, text: str, mode: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        key_sets.load(write_keys(tmp_path / "keys.toml", text, mode))
    assert MASTER[:-2] not in str(caught.value)
