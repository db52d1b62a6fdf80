"""Key stores: their life, their form, who can open and change them, and every command of a ceremony."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from sdf_device import KEK_INDEX, PIN, TestDevice

from yikatong.core import limits
from yikatong.core.errors import ConfigError
from yikatong.core.keys import ceremony_log, store
from yikatong.core.keys.cli import keys
from yikatong.core.keys.life import TRANSITIONS, KeyState, KeyStep, Life, WrongKeyState
from yikatong.core.keys.provider import KeyReference, Purpose
from yikatong.core.keys.software import SoftwareProvider
from yikatong.core.keys.store import CeremonyRefused, KeyStore, PassphraseWrong, verify
from yikatong.ext.key_holder import KeyHolder

ISSUER = "5980000100000000"
SERVER, LI, WANG, ZHAO = "nine grey herons", "two brown sparrows", "four white cranes", "one black cormorant"
SECRETS = [SERVER, LI, WANG, ZHAO]
BY = ["--by", "li", "--by", "wang"]
TAC = KeyReference(Purpose.TAC, 1, 1, bytes.fromhex(ISSUER))
OF_TAC = ["--purpose", "tac", "--issuer", ISSUER]


def secret(text: str) -> bytearray:
    return bytearray(text.encode())


# ---- life ----

NOW_S = 1_000
LIVES = {
    KeyState.PRE_ACTIVE: Life(NOW_S + 1),
    KeyState.ACTIVE: Life(NOW_S),
    KeyState.RETIRING: Life(1, NOW_S, NOW_S + 1),
    KeyState.RETIRED: Life(1, 2, NOW_S),
    KeyState.COMPROMISED: Life(fate=KeyState.COMPROMISED),
    KeyState.DESTROYED: Life(fate=KeyState.DESTROYED),
}


@pytest.mark.parametrize("state", KeyState)
@pytest.mark.parametrize("step", KeyStep)
def test_every_step_from_every_state(state: KeyState, step: KeyStep) -> None:
    life = LIVES[state]
    assert life.state(NOW_S) is state
    if (state, step) in TRANSITIONS:
        assert life.after(step, NOW_S, grace_s=5).state(NOW_S) is TRANSITIONS[state, step]
    else:
        with pytest.raises(WrongKeyState, match=state.name.lower().replace("_", "-")):
            life.after(step, NOW_S)


def test_time_alone_leads_from_state_to_state() -> None:
    life = Life(10, 20, 30)
    assert [life.state(time_s).name for time_s in (9, 10, 19, 20, 29, 30)] == [
        "PRE_ACTIVE", "ACTIVE", "ACTIVE", "RETIRING", "RETIRING", "RETIRED",
    ]  # fmt: skip
    assert life.after(KeyStep.RETIRE, 15, 0).state(15) is KeyState.RETIRED  # without grace it is over at once


# ---- the command line ----


class Desk:
    """A store, and ceremonies at it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.json"

    def run(self, *arguments: str, typed: list[str] | None = None) -> Result:
        result = CliRunner().invoke(keys, [*arguments], input="".join(line + "\n" for line in typed or []))
        for passphrase in SECRETS:
            assert passphrase not in result.output
        return result

    def _held(self, command: str, arguments: tuple[str, ...], typed: list[str] | None) -> Result:
        """By li and wang, unless something else is typed."""
        if typed is None:
            arguments, typed = (*arguments, *BY), [LI, WANG]
        return self.run(command, str(self.path), *arguments, typed=typed)

    def do(self, command: str, *arguments: str, typed: list[str] | None = None) -> str:
        result = self._held(command, arguments, typed)
        if result.exception:
            raise result.exception
        return result.output

    def refused(self, command: str, *arguments: str, typed: list[str] | None = None) -> str:
        before = self.path.read_bytes() if self.path.exists() else b""
        log = ceremony_log.log_path(self.path)
        log_before = log.read_bytes() if log.exists() else b""
        result = self._held(command, arguments, typed)
        assert result.exit_code != 0
        assert (self.path.read_bytes() if self.path.exists() else b"") == before
        assert (log.read_bytes() if log.exists() else b"") == log_before
        return result.output + str(result.exception)

    def init(self, *names: str) -> "Desk":
        secrets = {"li": LI, "wang": WANG, "zhao": ZHAO}
        operators = [part for name in names or ("li", "wang") for part in ("--operator", name)]
        typed = [SERVER, SERVER, *(text for name in names or ("li", "wang") for text in (secrets[name],) * 2)]
        self.do("init", *operators, typed=typed)
        return self

    def store(self) -> KeyStore:
        return KeyStore.read(self.path)

    def provider(self) -> SoftwareProvider:
        opened = self.store()
        return opened.provider(opened.open(secret(SERVER)))

    def verified(self) -> int:
        opened = self.store()
        return verify(opened, opened.open(secret(SERVER)))


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SCRYPT_N", limits.SCRYPT_N_MIN)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path).init()


def test_a_key_is_made_listed_used_and_logged(desk: Desk) -> None:
    desk.do("generate", *OF_TAC, "--version", "1")
    desk.do("generate", "--purpose", "assertion", "--version", "1")
    listed = desk.run("list", str(desk.path)).output
    provider = desk.provider()
    kcv = provider.check_value(TAC).hex()
    assert re.search(rf"tac\s+{ISSUER}\s+1\s+1\s+2\s+yes\s+active.*{kcv}", listed)
    assert provider.sign(KeyReference(Purpose.ASSERTION, 1), b"x")
    entries = ceremony_log.read(desk.path, desk.store().signer)
    assert [(entry["action"], entry["operators"]) for entry in entries] == [
        ("init", ["li", "wang"]), ("generate", ["li", "wang"]), ("generate", ["li", "wang"]),
    ]  # fmt: skip
    assert entries[1]["keys"] == [{"key": f"tac 1/1 of issuer {ISSUER}", "kcv": kcv}]
    assert desk.verified() == 3
    assert "sound. 2 keys, 3 ceremonies" in desk.do("verify", typed=[SERVER])
    for path in desk.path.parent.iterdir():
        assert path.stat().st_mode & 0o077 == 0
        assert not any(text.encode() in path.read_bytes() for text in SECRETS)


def test_any_two_of_three_operators_hold_a_ceremony_and_one_never_does(tmp_path: Path) -> None:
    desk = Desk(tmp_path).init("li", "wang", "zhao")
    wanted = ["generate", "--purpose", "person_data"]
    for version, (names, typed) in enumerate([("li wang", [LI, WANG]), ("zhao li", [ZHAO, LI]), ("wang zhao", [WANG, ZHAO])]):
        by = [part for name in names.split() for part in ("--by", name)]
        desk.do(*wanted, "--version", str(version), *by, typed=typed)
    for by, typed, says in [
        (["--by", "li"], [LI], "two operators"),
        (["--by", "li", "--by", "li"], [LI, LI], "two operators"),
        (["--by", "li", "--by", "qian"], [LI, LI], "qian is none of the store's operators: li, wang, zhao"),
        (["--by", "li", "--by", "wang"], [LI, ZHAO], "one of the two passphrases is wrong"),
        (["--by", "li", "--by", "wang"], [SERVER, SERVER], "one of the two passphrases is wrong"),
        (["--by", "li", "--by", "wang"], ["short", WANG], "a passphrase has 12 to"),
    ]:
        assert says in desk.refused(*wanted, "--version", "9", *by, typed=typed)
    assert desk.verified() == 4


COMPONENTS = ["0123456789abcdeffedcba9876543210", "fedcba98765432100123456789abcdef", "00112233445566778899aabbccddeeff"]


def kcv_of(component: str) -> str:
    return KeyHolder.take(bytearray.fromhex(component)).check_value().hex()


@pytest.mark.parametrize("count", [2, 3])
def test_components_make_a_key(desk: Desk, count: int) -> None:
    parts = COMPONENTS[:count]
    whole = bytes(count)
    value = 0
    for part in parts:
        value ^= int(part, 16)
    whole = value.to_bytes(16, "big")
    typed = [LI, WANG, *(line for part in parts for line in (part, kcv_of(part)))]
    out = desk.do("import", *OF_TAC, "--version", "1", "--components", str(count), "--kcv", kcv_of(whole.hex()), *BY, typed=typed)
    assert not any(part in out for part in parts)
    item = [bytes(8)], b"", b"message"
    assert desk.provider().mac(TAC, *item) == SoftwareProvider({TAC: whole}).mac(TAC, *item)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ([COMPONENTS[0], "000000"], "component 1 is wrong"),
        ([COMPONENTS[0], kcv_of(COMPONENTS[0]), COMPONENTS[1][:-1] + "0", kcv_of(COMPONENTS[1])], "component 2 is wrong"),
        ([COMPONENTS[0][:-1], kcv_of(COMPONENTS[0])], "component 1: 32 hexadecimal digits"),
        (["zz" * 16, "000000"], "component 1: 32 hexadecimal digits"),
        ([COMPONENTS[0], kcv_of(COMPONENTS[0])] * 2, "two components are the same"),
        ([line for part in COMPONENTS[1:] for line in (part, kcv_of(part))], "make a key with check value"),
    ],
)
def test_a_wrong_component_is_told_and_not_shown(desk: Desk, typed: list[str], says: str) -> None:
    whole = f"{int(COMPONENTS[0], 16) ^ int(COMPONENTS[1], 16):032x}"
    out = desk.refused("import", *OF_TAC, "--version", "1", "--kcv", kcv_of(whole), *BY, typed=[LI, WANG, *typed])
    assert says in out
    assert not any(part in out for part in COMPONENTS)


def _with_transport(desk: Desk, kcv: str = "") -> None:
    typed = [LI, WANG, *(line for part in COMPONENTS[:2] for line in (part, kcv_of(part)))]
    whole = f"{int(COMPONENTS[0], 16) ^ int(COMPONENTS[1], 16):032x}"
    desk.do("import", "--purpose", "transport", "--version", "1", "--kcv", kcv_of(whole), *BY, typed=typed)


@pytest.mark.parametrize("purpose", ["tac", "assertion"])
def test_a_key_goes_wrapped_from_store_to_store(desk: Desk, tmp_path: Path, purpose: str) -> None:
    (tmp_path / "other").mkdir()
    other = Desk(tmp_path / "other").init()
    for each in (desk, other):
        _with_transport(each)
    of_key = ["--purpose", purpose, "--version", "1", *(["--issuer", ISSUER] if purpose == "tac" else [])]
    desk.do("generate", *of_key)
    wrapped = tmp_path / "wrapped.json"
    desk.do("export", *of_key, "--transport-version", "1", "--out", str(wrapped))
    assert ceremony_log.read(desk.path, desk.store().signer)[-1]["action"] == "export under transport 1"
    content = wrapped.read_text()
    for field, value in (("version", 2), ("levels", 1), ("kcv", "000000"), ("transport_kcv", "000000"), ("purpose", "load")):
        wrapped.write_text(json.dumps(json.loads(content) | {field: value}))
        assert re.search(
            "altered|another transport key|sealed: 44 to",
            other.refused("import-wrapped", str(wrapped), "--transport-version", "1"),
        )
    wrapped.write_text(content)
    other.do("import-wrapped", str(wrapped), "--transport-version", "1")
    assert [key.check_value for key in other.store().keys.values()] == [key.check_value for key in desk.store().keys.values()]
    assert "there is a key" in other.refused("import-wrapped", str(wrapped), "--transport-version", "1")
    assert "no such key" in desk.refused("export", *of_key, "--transport-version", "2", "--out", str(wrapped))
    assert "travel in components" in desk.refused(
        "export", "--purpose", "transport", "--version", "1", "--transport-version", "1", "--out", str(wrapped)
    )


@pytest.mark.parametrize("count", [2, 3])
def test_custodians_carry_a_transport_key_to_another_store(desk: Desk, tmp_path: Path, count: int) -> None:
    (tmp_path / "other").mkdir()
    other, wrapped = Desk(tmp_path / "other").init(), tmp_path / "wrapped.json"
    typed = [LI, WANG, *[""] * (2 * count)]
    out = desk.do("split", "--version", "7", "--components", str(count), *BY, typed=typed)
    shown = re.findall(r"component \d: ([0-9a-f]{32})\ncheck value: ([0-9a-f]{6})", out)
    assert len(shown) == count
    whole = re.findall(r"check value ([0-9a-f]{6})$", out.strip())[0]
    assert not any(part in desk.path.read_text() + ceremony_log.log_path(desk.path).read_text() for part, _ in shown)
    carried = [LI, WANG, *(line for pair in shown for line in pair)]
    of_key = ["--purpose", "transport", "--version", "7", "--components", str(count), "--kcv", whole]
    other.do("import", *of_key, *BY, typed=carried)
    desk.do("generate", *OF_TAC, "--version", "1")
    desk.do("export", *OF_TAC, "--version", "1", "--transport-version", "7", "--out", str(wrapped))
    other.do("import-wrapped", str(wrapped), "--transport-version", "7")
    assert other.provider().check_value(TAC) == desk.provider().check_value(TAC)


def test_a_life_from_ceremony_to_ceremony(desk: Desk) -> None:
    def states() -> dict[int, KeyState]:
        return {key.key_version: stored.life.state(10_000_000_000) for key, stored in desk.store().keys.items()}

    one, two = [*OF_TAC, "--version", "1"], [*OF_TAC, "--version", "2"]
    assert "no key for tac is active" in desk.refused("rotate", *OF_TAC)
    desk.do("generate", *one)
    assert "there is a key" in desk.refused("generate", *one)
    assert "cannot be destroyed" in desk.refused("destroy", *one, "--yes")
    desk.do("rotate", *OF_TAC, "--grace-hours", "1")
    assert states() == {1: KeyState.RETIRED, 2: KeyState.ACTIVE}
    assert desk.provider().newest(Purpose.TAC, TAC.issuer_id).key_version == 2
    assert desk.provider().check_value(TAC)  # in its grace
    desk.do("retire", *one, "--grace-hours", "0")
    desk.do("destroy", *one, *BY, typed=[LI, WANG, "y"])
    assert not desk.store().keys[TAC].sealed
    desk.do("compromise", *two)
    assert states() == {1: KeyState.DESTROYED, 2: KeyState.COMPROMISED}
    desk.do("generate", *OF_TAC, "--version", "3", "--from", "2999-01-01", "--until", "2999-12-31")
    desk.do("activate", *OF_TAC, "--version", "3")
    assert "cannot be activated" in desk.refused("activate", *OF_TAC, "--version", "3")
    assert "before the key begins" in desk.refused("generate", *OF_TAC, "--version", "4", "--until", "2020-01-01")
    assert "no such key" in desk.refused("retire", *OF_TAC, "--version", "9")
    assert desk.verified() == 8
    assert [key.refused for key in desk.provider().tap_keys()] == [True, True, False]


def test_people_change(desk: Desk) -> None:
    desk.do("generate", *OF_TAC, "--version", "1")
    kcv = desk.provider().check_value(TAC)
    new = "another passphrase of the server"
    desk.do("passphrase", *BY, typed=[LI, WANG, new, new])
    with pytest.raises(PassphraseWrong):
        desk.provider()
    desk.do("operators", *BY, "--operator", "zhao", "--operator", "wang", typed=[LI, WANG, ZHAO, ZHAO, WANG, WANG])
    assert "none of the store's operators" in desk.refused("generate", *OF_TAC, "--version", "2")
    desk.do("generate", *OF_TAC, "--version", "2", "--by", "wang", "--by", "zhao", typed=[WANG, ZHAO])
    opened = desk.store()
    assert opened.provider(opened.open(secret(new))).check_value(TAC) == kcv


@pytest.mark.parametrize(
    ("operators", "typed", "says"),
    [
        (["li"], [SERVER, SERVER, LI, LI], "2 to 8 operators"),
        (["li", "li"], [SERVER, SERVER], "a name stands there twice"),
        (["Li", "wang"], [SERVER, SERVER, LI, LI, WANG, WANG], "small letters"),
        (["li", "wang"], ["short", "short"], "12 to 1024 bytes"),
        (["li", "wang"], [SERVER, SERVER, "short", "short"], "passphrase of li: 12 to 1024 bytes"),
    ],
)
def test_no_store_is_made_of_wrong_input(tmp_path: Path, operators: list[str], typed: list[str], says: str) -> None:
    desk = Desk(tmp_path)
    assert says in desk.refused("init", *(part for name in operators for part in ("--operator", name)), typed=typed)
    assert not desk.path.exists()


def test_a_store_is_not_made_twice(desk: Desk) -> None:
    assert "is there already" in desk.refused("init", "--operator", "li", "--operator", "wang", typed=[SERVER] * 2)


@pytest.mark.parametrize("arguments", [["--issuer", "59"], ["--version", "256"], ["--purpose", "all"], ["--levels", "3"], []])
def test_wrong_arguments_are_named(desk: Desk, arguments: list[str]) -> None:
    says = desk.refused(
        "generate", *OF_TAC, *(["--version", "1"] if arguments[:1] != ["--version"] else []), *arguments, typed=[]
    )
    assert not arguments or arguments[0] in says


@pytest.mark.parametrize(
    ("purpose", "issuer"), [("tac", ""), ("person_data", ISSUER)], ids=["no issuer above cards", "an issuer elsewhere"]
)
def test_keys_above_cards_have_an_issuer(desk: Desk, purpose: str, issuer: str) -> None:
    arguments = ["--purpose", purpose, "--version", "1", *(["--issuer", issuer] if issuer else [])]
    assert "keys above cards have an issuer" in desk.refused("generate", *arguments)


# ---- the file ----


def _change(document: dict[str, Any], path: str, value: object) -> None:
    *places, last = path.split(".")
    at: Any = document
    for place in places:
        at = at[int(place)] if place.isdigit() else at[place]
    if value is None:
        del at[int(last) if last.isdigit() else last]
    else:
        at[int(last) if last.isdigit() else last] = value


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    desk = Desk(tmp_path_factory.mktemp("store")).init()
    desk.do("generate", *OF_TAC, "--version", "1")
    desk.do("generate", *OF_TAC, "--version", "2")
    made: dict[str, Any] = json.loads(desk.path.read_text())
    return made


def written(tmp_path: Path, document: dict[str, Any], mode: int = 0o600) -> Path:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(document))
    path.chmod(mode)
    return path


ALTERED = [
    ("keys.0", None),
    ("keys.0.until", "2030-01-01T00:00:00Z"),
    ("keys.0.fate", "compromised"),
    ("keys.0.levels", 1),
    ("keys.0.cached", False),
    ("keys.0.kcv", "000000"),
    ("keys.0.version", 7),
    ("generation", 99),
    ("pairs", []),
    ("server.sealed", "00" * 44),
]


@pytest.mark.parametrize(("path", "value"), ALTERED, ids=[row[0] for row in ALTERED])
def test_what_was_altered_outside_a_ceremony_is_refused(
    tmp_path: Path, document: dict[str, Any], path: str, value: object
) -> None:
    changed = json.loads(json.dumps(document))
    _change(changed, path, value)
    if path == "keys.0.until":
        _change(changed, "keys.0.grace_until", value)
    with pytest.raises(ConfigError, match="altered outside a ceremony"):
        KeyStore.read(written(tmp_path, changed))


def test_who_knows_the_key_encryption_key_alone_cannot_pass_off_a_store(
    tmp_path: Path, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where a signature over the file is made to fit: each key is bound to what is said of it, the signer to the store."""
    other = store.create(tmp_path / "other.json", secret(SERVER), {"a": secret(LI), "b": secret(WANG)})
    swapped = json.loads(json.dumps(document))
    swapped["keys"][0]["sealed"], swapped["keys"][1]["sealed"] = swapped["keys"][1]["sealed"], swapped["keys"][0]["sealed"]
    foreign = document | {"signer": other.document["signer"]}
    later = json.loads(json.dumps(document))
    later["keys"][0]["from"] = "2030-01-01T00:00:00Z"
    monkeypatch.setattr("yikatong.core.sm2.PublicKey.verify", lambda *_: True)
    for changed, says in (
        (swapped, "is not what was stored"),
        (later, "is not what was stored"),
        (foreign, "is not the ceremony key"),
    ):
        opened = KeyStore.read(written(tmp_path, changed))
        with pytest.raises(ConfigError, match=says):
            opened.held(opened.open(secret(SERVER)))


WRONG = [
    ("format", 2, "format: 1 to 1"),
    ("more", 1, "and nothing else is wanted"),
    ("scrypt.n", 1 << 30, "scrypt.n"),
    ("scrypt.n", 40_000, "scrypt.n: a power of two"),
    ("scrypt.p", True, "scrypt.p"),
    ("operators.0.name", "../x", r"operators\[0\].name"),
    ("pairs.0.operators", ["wang", "li"], r"pairs\[0\].operators"),
    ("keys.0.purpose", "all", r"keys\[0\].purpose"),
    ("keys.0.version", 256, r"keys\[0\].version"),
    ("keys.0.issuer_id", "00", r"keys\[0\].issuer_id"),
    ("keys.0.from", "tomorrow", r"keys\[0\].from"),
    ("keys.0.until", "2030-01-01T00:00:00Z", r"keys\[0\].grace_until"),
    ("keys.0.sealed", "zz", r"keys\[0\].sealed"),
    ("keys.1.version", 1, "stands there twice"),
    ("keys", {}, "keys: a list"),
    ("signer", "x", "signer"),
]


@pytest.mark.parametrize(("path", "value", "says"), WRONG, ids=[f"{row[0]}-{row[2]}" for row in WRONG])
def test_a_wrong_file_is_told_with_its_field(
    tmp_path: Path, document: dict[str, Any], path: str, value: object, says: str
) -> None:
    changed = json.loads(json.dumps(document))
    _change(changed, path, value)
    with pytest.raises(ConfigError, match=says):
        KeyStore.read(written(tmp_path, changed))


NAMES = st.sampled_from(["format", "store", "keys", "signature", "scrypt", "n"])
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)


@given(st.recursive(LEAVES, lambda each: st.lists(each) | st.dictionaries(NAMES, each), max_leaves=8))
def test_whatever_stands_in_the_file_it_is_told(tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content))
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        KeyStore.read(path)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path, document: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="only its owner"):
        KeyStore.read(written(tmp_path, document, 0o640))
    (tmp_path / "big.json").write_bytes(b" " * (limits.KEY_STORE_BYTES_MAX + 1))
    (tmp_path / "big.json").chmod(0o600)
    with pytest.raises(ConfigError, match="larger than"):
        KeyStore.read(tmp_path / "big.json")


# ---- the log ----


def _drop_line(log: Path, desk: Desk, old: bytes) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:1] + lines[2:]))


def _alter_line(log: Path, desk: Desk, old: bytes) -> None:
    log.write_bytes(log.read_bytes().replace(b'"operators":["li","wang"]', b'"operators":["li","qian"]', 1))


def _cut_end(log: Path, desk: Desk, old: bytes) -> None:
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))


def _old_store(log: Path, desk: Desk, old: bytes) -> None:
    desk.path.write_bytes(old)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_drop_line, "does not follow the line before"),
        (_alter_line, "signature is not that of"),
        (_cut_end, "does not know generation"),
        (_old_store, "an older store was put back"),
    ],
)
def test_harm_to_the_log_or_an_older_store_shows(desk: Desk, harm: Callable[[Path, Desk, bytes], None], says: str) -> None:
    desk.do("generate", *OF_TAC, "--version", "1")
    old = desk.path.read_bytes()
    desk.do("generate", *OF_TAC, "--version", "2")
    assert desk.verified() == 3
    harm(ceremony_log.log_path(desk.path), desk, old)
    with pytest.raises(ConfigError, match=says):
        desk.verified()


def test_a_ceremony_that_is_cut_off_leaves_the_store_and_the_next_goes_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.do("generate", *OF_TAC, "--version", "1")
    before = desk.path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(store, "write_file", lambda *_: (_ for _ in ()).throw(ConfigError("disk", "is full")))
        with pytest.raises(ConfigError, match="is full"):
            desk.do("generate", *OF_TAC, "--version", "2")
    assert desk.path.read_bytes() == before
    with pytest.raises(ConfigError, match="cut off"):
        desk.verified()
    desk.do("generate", *OF_TAC, "--version", "2")
    assert desk.verified() == 4


def test_two_ceremonies_at_once_do_not_undo_each_other(desk: Desk) -> None:
    passphrases = {"li": LI, "wang": WANG}
    first, second = (desk.store().open_by({name: secret(text) for name, text in passphrases.items()}) for _ in range(2))
    first.add(TAC, KeyHolder.random(), Life(1))
    first.commit("generate")
    second.add(TAC, KeyHolder.random(), Life(1))
    with pytest.raises(CeremonyRefused, match="another ceremony came between"):
        second.commit("generate")
    assert desk.verified() == 2


# ---- a device's key file ----


def test_keys_are_added_to_a_devices_file(tmp_path: Path) -> None:
    device = TestDevice(tmp_path)
    desk = Desk(tmp_path)
    library = ["--library", str(device.library), "--kek-index", str(KEK_INDEX)]
    pin = PIN.decode()
    desk.do("device", *library, *OF_TAC, "--version", "1", typed=[pin])
    desk.do("device", *library, "--purpose", "assertion", "--version", "1", "--key-pair", "2", typed=[pin])
    wrapped = json.loads(desk.path.read_text())["keys"][0]
    given = ["--wrapped", wrapped["sealed"], "--kcv", wrapped["kcv"]]
    desk.do("device", *library, *OF_TAC, "--version", "2", *given, typed=[pin])
    for arguments, says in [
        ([*OF_TAC, "--version", "2"], "there is a key"),
        ([*OF_TAC, "--version", "3", "--wrapped", wrapped["sealed"], "--kcv", "000000"], "makes check value"),
        ([*OF_TAC, "--version", "3", "--wrapped", wrapped["sealed"]], "--wrapped goes with --kcv"),
        ([*OF_TAC, "--version", "3", "--key-pair", "1"], "--key-pair is for keys that sign"),
    ]:
        assert says in desk.refused("device", *library, *arguments, typed=[pin])
    assert "0x01000007" in desk.refused("device", *library, *OF_TAC, "--version", "3", typed=["12345678"])
    provider = device.provider(desk.path)
    assert provider.check_value(TAC) == provider.check_value(TAC._replace(key_version=2))
    assert len(provider.sign(KeyReference(Purpose.ASSERTION, 1), b"x")) == 64
    provider.close()
