"""The device behind GM/T 0018: faults, lost sessions, a wrong key-encryption key, an altered key file; nothing is left behind."""

import json
import threading
from pathlib import Path

import pytest
from sdf_device import KEK_INDEX, TestDevice

from yikatong.core.errors import ConfigError
from yikatong.core.keys.provider import DeviceFailed, KeyReference, Purpose
from yikatong.core.keys.sdf import Device, DeviceFile, SdfProvider
from yikatong.core.keys.software import SoftwareProvider

ISSUER, SERIAL = bytes.fromhex("5980000100000000"), bytes.fromhex("3104416000000017")
MASTER = bytes.fromhex("fedcba98765432100123456789abcdef")
TAC, DATA = KeyReference(Purpose.TAC, 1, 1, ISSUER), KeyReference(Purpose.PERSON_DATA, 1)
SIGN = KeyReference(Purpose.ASSERTION, 1)
ITEM = (ISSUER, SERIAL), b"", b"message"
COMMFAIL, BUSY = 0x01000003, 0x01010001  # the second is no code of the standard


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> TestDevice:
    return TestDevice(tmp_path_factory.mktemp("device"))


@pytest.fixture
def path(device: TestDevice, tmp_path: Path) -> Path:
    device.set_kek(device.kek)
    device.write(tmp_path / "keys.json", {TAC: MASTER, DATA: MASTER, SIGN: b""})
    return tmp_path / "keys.json"


@pytest.fixture
def right() -> bytes:
    return SoftwareProvider({TAC: MASTER}).mac(TAC, *ITEM)


def test_it_answers_as_software_does_and_leaves_no_key_behind(device: TestDevice, path: Path, right: bytes) -> None:
    provider = device.provider(path, sessions=1)
    provider.mac(TAC, *ITEM)
    kept = device.live_keys
    assert provider.mac_many(TAC, [ITEM] * 20) == [right] * 20
    assert device.live_keys == kept  # masters and the issuer's key stay with the session, cards' keys go
    provider.close()


@pytest.mark.parametrize("call", ["SDF_Encrypt", "SDF_ImportKey", "SDF_CalculateMAC", "SDF_DestroyKey"])
@pytest.mark.parametrize(("code", "again"), [(COMMFAIL, True), (BUSY, False)])
def test_a_lost_session_is_made_anew_and_another_fault_is_told(
    device: TestDevice, path: Path, right: bytes, call: str, code: int, again: bool
) -> None:
    provider = device.provider(path)
    provider.mac(TAC, *ITEM)
    device.fail(call, code)
    if again:
        assert provider.mac(TAC, *ITEM) == right
    else:
        with pytest.raises(DeviceFailed, match=f"{call} failed with 0x01010001") as caught:
            provider.mac(TAC, *ITEM)
        assert caught.value.code == BUSY
    assert provider.mac(TAC, *ITEM) == right
    provider.close()


def test_a_device_that_stays_away_is_asked_twice_and_comes_back(
    device: TestDevice, path: Path, right: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yikatong.core.keys.sdf.TELL_S", 1e6)  # the machine may be slow
    provider = device.provider(path)
    device.fail("SDF_OpenSession", 0x01000006, 100)
    device.lose_device()
    with pytest.raises(DeviceFailed, match="SDF_OpenSession failed with 0x01000006"):
        provider.mac(TAC, *ITEM)
    with pytest.raises(DeviceFailed):
        provider.mac(TAC, *ITEM)
    assert [record.message.split(" failed")[0] for record in caplog.records] == ["key device: SDF_OpenSession"]  # told once
    device.fail("SDF_OpenSession", 0, 0)
    assert provider.mac(TAC, *ITEM) == right
    opened = device.opened
    device.lose_device()
    assert provider.mac(TAC, *ITEM) == right
    assert device.opened == opened + 1
    device.lose_sessions()
    assert provider.sign(SIGN, b"x")  # the right to use the private key went with the session, and is asked for again
    provider.close()
    assert device.live_sessions == 0


def test_many_threads_share_few_sessions(device: TestDevice, path: Path, right: bytes) -> None:
    provider = device.provider(path, sessions=2)
    answers: list[bytes] = []

    def work() -> None:
        for _ in range(50):
            answers.append(provider.mac(TAC, *ITEM))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for i, thread in enumerate(threads):
        thread.start()
        if i == 3:
            device.lose_sessions()
    for thread in threads:
        thread.join()
    assert answers == [right] * 300
    assert device.live_sessions <= 2
    provider.close()
    assert device.live_sessions == 0


def test_many_macs_go_over_all_sessions(device: TestDevice, path: Path) -> None:
    provider, software = device.provider(path, sessions=4), SoftwareProvider({TAC: MASTER})
    items = [((ISSUER, bytes([n]) * 8), b"", b"message") for n in range(101)]
    assert provider.mac_many(TAC, items) == software.mac_many(TAC, items)
    assert device.live_sessions <= 4
    device.fail("SDF_CalculateMAC", BUSY)
    with pytest.raises(DeviceFailed):
        provider.mac_many(TAC, items)
    other = device.provider(path)
    provider.adopt(other)
    assert provider.mac_many(TAC, items) == software.mac_many(TAC, items)
    provider.close()
    assert device.live_sessions == 0


def test_all_sessions_work_at_once(device: TestDevice, path: Path) -> None:
    meeting = threading.Barrier(4)

    def vendor(session: object, key: object, factors: object, session_data: bytes, message: bytes) -> bytes:
        if message == b"first":
            meeting.wait(60)  # all four come, or none goes on
        return message.ljust(16)

    provider = SdfProvider(device.device(sessions=4), DeviceFile.read(path), vendor)
    items = [((ISSUER, SERIAL), b"", b"first" if n % 25 == 0 else b"%d" % n) for n in range(100)]
    assert provider.mac_many(TAC, items) == [item[2].ljust(16) for item in items]
    assert device.live_sessions == 4
    provider.close()


def test_a_wrong_key_encryption_key_is_told_at_the_start(device: TestDevice, path: Path) -> None:
    device.set_kek(bytes(16))
    with pytest.raises(ConfigError, match=r"tac 1/1 of issuer 5980000100000000 has another check value"):
        device.provider(path)


@pytest.mark.parametrize(
    ("at", "value"), [("until", "2020-01-01T00:00:00Z"), ("kcv", "000000"), ("sealed", "00" * 16), ("levels", 1)]
)
def test_an_altered_key_file_is_told(device: TestDevice, path: Path, at: str, value: object) -> None:
    document = json.loads(path.read_text())
    document["keys"][0][at] = value
    if at == "until":
        document["keys"][0]["grace_until"] = value
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="not signed by this device"):
        device.provider(path)


WRONG_FILES = [
    ({"format": 2}, "format"),
    ({"kek_index": 0}, "kek_index"),
    ({"sign_index": "3"}, "sign_index"),
    ({"keys": [{}]}, r"keys\[0\]"),
    ({"keys": {}}, "keys"),
    ({"signature": "00"}, "signature"),
    ({"more": 1}, "nothing else"),
]


@pytest.mark.parametrize(("change", "says"), WRONG_FILES, ids=[row[1] for row in WRONG_FILES])
def test_a_wrong_key_file_is_told_with_its_field(path: Path, change: dict[str, object], says: str) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=says):
        DeviceFile.read(path)


def test_a_wrong_pin_and_a_library_that_is_none(device: TestDevice, path: Path, tmp_path: Path) -> None:
    provider = SdfProvider(device.device(pin=b"12345678"), DeviceFile.read(path))
    with pytest.raises(DeviceFailed, match="0x01000007"):
        provider.sign(SIGN, b"x")
    provider.close()
    (tmp_path / "none.so").write_bytes(b"none")
    for name in ("none.so", "missing.so"):
        with pytest.raises(ConfigError, match="sdf_library"):
            Device(str(tmp_path / name))
    with pytest.raises(ConfigError, match="no SDF library"):
        Device("libc.so.6")


def test_a_vendors_one_call_is_used_where_there_is_one(device: TestDevice, path: Path) -> None:
    seen: list[object] = []

    def vendor(session: object, key: object, factors: object, session_data: bytes, message: bytes) -> bytes:
        seen.append((factors, session_data, message))
        return b"v" * 16

    provider = SdfProvider(device.device(), DeviceFile.read(path), vendor)
    assert provider.mac(TAC, *ITEM) == b"v" * 16
    assert seen == [ITEM]
    provider.close()


def test_what_the_device_says_of_itself_and_new_keys(device: TestDevice) -> None:
    made = device.device()
    with made.session() as session:
        assert session.info() == ("yikatong tests", "software", "0001")
        assert len(session.random(20)) == 20
        wrapped = session.generate_wrapped(KEK_INDEX)
        assert len(wrapped) == 16
        assert session.mac(session.import_wrapped(KEK_INDEX, wrapped), b"") != session.mac(
            session.import_wrapped(KEK_INDEX, session.generate_wrapped(KEK_INDEX)), b""
        )
    made.close()
