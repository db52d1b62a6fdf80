"""Where `yikatong serve` has its keys from: a key store, a device, or a plain file of test keys; and that they changed."""

import contextlib
import getpass
import ipaddress
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from yikatong.core import limits
from yikatong.core.config import Settings
from yikatong.core.errors import ConfigError
from yikatong.core.keys import key_sets
from yikatong.core.keys.provider import KeyProvider
from yikatong.core.keys.sdf import SdfProvider
from yikatong.core.keys.software import SoftwareProvider
from yikatong.core.keys.store import KeyStore
from yikatong.ext.key_holder import KeyHolder

log = logging.getLogger(__name__)

ENVIRONMENT: Final = "env:"


class _Stamp(NamedTuple):
    """What tells one version of a file from the next."""

    inode: int
    bytes: int
    modified_ns: int


def read_passphrase(place: str, setting: str = "key_passphrase_file") -> bytearray:
    """A passphrase from a file that only its owner may read, from an environment variable ("env:NAME"), or, where nothing is
    said, from the terminal. Raises ConfigError, without showing anything of it."""
    if place.startswith(ENVIRONMENT):
        name = place.removeprefix(ENVIRONMENT)
        if not os.environ.get(name):
            raise ConfigError(setting, f"the environment variable {name} is not set")
        return bytearray(os.environ[name].encode())
    if not place:
        if not sys.stdin.isatty():
            raise ConfigError(setting, "is not set, and there is no terminal to ask for the passphrase")
        return bytearray(getpass.getpass("passphrase of the key store: ").encode())
    path = Path(place)
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(str(path), "only its owner may be able to read it (chmod 600)")
        content = bytearray(limits.PASSPHRASE_BYTES_MAX + 2)
        with path.open("rb", buffering=0) as file:
            size = file.readinto(content) or 0
    except OSError as error:
        raise ConfigError(str(path), error.strerror or "cannot be read") from error
    passphrase = content[:size].rstrip(b"\r\n")
    content[:] = bytes(len(content))
    return passphrase


class KeySource:
    """The keys that the settings name, opened. Raises ConfigError, PassphraseWrong or DeviceFailed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = Path(settings.keys)
        self._kek: KeyHolder | None = None
        self._stamp = self._look()
        self._opened = self._open()

    @property
    def provider(self) -> KeyProvider:
        """The same one through all reloads."""
        return self._opened

    def set_clock(self, now_s: Callable[[], float]) -> None:
        """Keys begin and end by this clock: journal time."""
        self._opened.now_s = now_s

    def changed(self) -> bool:
        """Whether the file is another one than was last read."""
        return self._look() != self._stamp

    def reload(self) -> None:
        """Read the file again; `provider` has its keys then. Raises as the constructor; then the keys stay as they were."""
        stamp = self._look()
        provider = self._open()
        if type(provider) is not type(self._opened):
            raise ConfigError(str(self._path), "is of another kind now; that takes a restart")
        self._opened.adopt(provider)  # type: ignore[arg-type]
        self._stamp = stamp

    def close(self) -> None:
        """Let go of the keys."""
        if self._kek is not None:
            self._kek.wipe()
        if isinstance(self._opened, SdfProvider):
            self._opened.close()
        else:
            self._opened.wipe()

    def _look(self) -> _Stamp | None:
        with contextlib.suppress(OSError):
            status = self._path.stat()
            return _Stamp(status.st_ino, status.st_size, status.st_mtime_ns)
        return None

    def _open(self) -> SoftwareProvider | SdfProvider:
        if self._settings.sdf_library:
            pin = read_passphrase(self._settings.sdf_pin_file, "sdf_pin_file") if self._settings.sdf_pin_file else bytearray()
            return SdfProvider.of_files(self._path, self._settings.sdf_library, pin, self._settings.sdf_sessions)
        if not _is_store(self._path):
            return self._open_plain()
        store = KeyStore.read(self._path)
        if self._kek is None:
            self._kek = store.open(read_passphrase(self._settings.key_passphrase_file))
        provider = store.provider(self._kek)
        if unlocked := provider.unlocked():
            log.warning("%d keys could not be locked into memory and may reach the swap: raise the limit (ulimit -l)", unlocked)
        return provider

    def _open_plain(self) -> SoftwareProvider:
        provider = key_sets.load_provider(self._path)
        if not key_sets.is_for_tests(self._path):
            raise ConfigError(
                str(self._path),
                "plain keys are for tests only, where the file says `test = true`; make a store: yikatong keys init",
            )
        if not ipaddress.ip_address(self._settings.host).is_loopback:
            raise ConfigError(
                str(self._path), f"test keys are served on a loopback address only, and host is {self._settings.host}"
            )
        log.warning("%s: test keys, good for nothing else", self._path)
        return provider


def _is_store(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(1) == b"{"
    except OSError as error:
        raise ConfigError(str(path), error.strerror or "cannot be read") from error
