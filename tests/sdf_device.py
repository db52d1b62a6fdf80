"""The key device of sdf_device.c, compiled: its faults, and a key file for it."""

import ctypes
import secrets
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from yikatong.core.keys.life import Life
from yikatong.core.keys.provider import SIGNING, KeyReference
from yikatong.core.keys.sdf import Device, DeviceFile, DeviceKey, SdfProvider, public_pem, write_device_file
from yikatong.core.keys.store import StoredKey
from yikatong.ext import sm3

ROOT = Path(__file__).resolve().parent.parent
PIN = b"87654321"
KEK_INDEX = 1
FILE_SIGNER = 3


def _sm4(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.SM4(key), modes.ECB()).encryptor().update(block)


class TestDevice:
    """The library, built into a folder, and what can be ordered of it. One process has one device behind one file."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self.library = folder / "sdf_device.so"
        compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
        sources = [ROOT / "tests/sdf_device.c", ROOT / "ext/sm4_generic.c"]
        command = [compiler, "-std=gnu11", "-O1", "-shared", "-fPIC", f"-I{ROOT / 'ext'}", *map(str, sources)]
        subprocess.run([*command, "-o", str(self.library), "-ldl", "-lpthread"], check=True, capture_output=True)
        self._tests = ctypes.CDLL(str(self.library))
        self.kek = secrets.token_bytes(16)
        self.set_kek(self.kek)

    def set_kek(self, kek: bytes) -> None:
        self._tests.test_set_kek(KEK_INDEX, kek)

    def fail(self, call: str, code: int, times: int = 1) -> None:
        self._tests.test_fail(call.encode(), code, times)

    def lose_sessions(self) -> None:
        self._tests.test_lose_sessions()

    def lose_device(self) -> None:
        self._tests.test_lose_device()

    @property
    def live_keys(self) -> int:
        return int(self._tests.test_live_keys())

    @property
    def live_sessions(self) -> int:
        return int(self._tests.test_live_sessions())

    @property
    def opened(self) -> int:
        """How often the device was opened."""
        return int(self._tests.test_opened())

    def device(self, sessions: int = 2, pin: bytes = PIN) -> Device:
        return Device(str(self.library), sessions, pin)

    def write(
        self,
        path: Path,
        keys: Mapping[KeyReference, bytes],
        lives: Mapping[KeyReference, Life] = {},
        levels: Mapping[KeyReference, int] = {},
    ) -> None:
        """A key file of these masters; a key that signs is a pair of the device, its value is not used."""
        device = self.device()
        entries = []
        for key, value in keys.items():
            life = lives.get(key, Life())
            if key.purpose in SIGNING:
                pair = int(key.purpose) % 3 or 1
                with device.session() as session:
                    check_value = sm3.digest(public_pem(session.public_point(pair)))[:3]
                entries.append(DeviceKey(StoredKey(key, 2, False, life, check_value, b""), pair))
            else:
                check_value = _sm4(value, bytes(16))[:3]
                entries.append(DeviceKey(StoredKey(key, levels.get(key, 2), False, life, check_value, _sm4(self.kek, value)), 0))
        write_device_file(path, device, KEK_INDEX, FILE_SIGNER, entries)
        device.close()

    def provider(self, path: Path, sessions: int = 2) -> SdfProvider:
        return SdfProvider(self.device(sessions), DeviceFile.read(path))
