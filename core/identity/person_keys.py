"""A key of its own for each person, in the file `person_keys` beside the journal.

What tells who a person is lies in the journal sealed by that person's key, and the journal is never rewritten. The keys lie
here, each in a slot of 64 bytes and wrapped by the master of purpose PERSON_DATA; overwriting a slot is what erases a person.
Slots are written before the change that uses them and destroyed after the change that drops them is durable, so a crash leaves
at most a key that nobody uses, never data without its key.

A copy of the file (a backup) holds the keys until it is overwritten itself: backups must end when the law says. A disk that
writes elsewhere instead of over what is there (flash, copy-on-write file systems) may keep the old bytes for a while; they are
wrapped, and of use only with the master."""

import os
import secrets
import struct
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from yikatong.core.errors import CommitFailed, DataError
from yikatong.core.keys.provider import (
    GCM_NONCE_BYTES,
    GCM_TAG_BYTES,
    KeyProvider,
    KeyReference,
    Purpose,
    SealedDataWrong,
)

FILE: Final = "person_keys"
KEY_BYTES: Final = 16
_SLOT: Final = struct.Struct(">16sBB2x44s")  # person id, version and index of the master, nonce ‖ wrapped key ‖ tag
_PURPOSE: Final = b"key"


class DataKey(NamedTuple):
    """A person's key, and where it lies."""

    slot: int
    value: bytes

    def __repr__(self) -> str:
        """Without the key."""
        return f"DataKey(slot={self.slot})"

    def seal(self, plaintext: bytes, associated: bytes) -> bytes:
        """SM4-GCM (RFC 8998) under a fresh random nonce: nonce 12 ‖ ciphertext ‖ tag 16."""
        nonce = secrets.token_bytes(GCM_NONCE_BYTES)
        encryptor = Cipher(algorithms.SM4(self.value), modes.GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(associated)
        return nonce + encryptor.update(plaintext) + encryptor.finalize() + encryptor.tag

    def open(self, sealed: bytes, associated: bytes) -> bytes:
        """What was sealed. Raises SealedDataWrong."""
        nonce, tag = sealed[:GCM_NONCE_BYTES], sealed[-GCM_TAG_BYTES:]
        decryptor = Cipher(algorithms.SM4(self.value), modes.GCM(nonce, tag)).decryptor()
        decryptor.authenticate_additional_data(associated)
        try:
            return decryptor.update(sealed[GCM_NONCE_BYTES:-GCM_TAG_BYTES]) + decryptor.finalize()
        except InvalidTag:
            raise SealedDataWrong("a person's data is not what was sealed, or is another person's") from None


class PersonKeys:
    """The file. Made with its first key; any thread may read and destroy, one alone makes keys."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self._file = -1
        self._lock = threading.Lock()

    def _open(self, *, make: bool) -> int:
        with self._lock:
            if self._file < 0:
                try:
                    self._file = os.open(self.path, os.O_RDWR | (os.O_CREAT if make else 0), 0o600)
                except OSError as error:
                    raise DataError(f"{self.path}: {error.strerror}") from error
            return self._file

    def make(self, provider: KeyProvider, person_ids: Sequence[bytes]) -> list[DataKey]:
        """New random keys, durable when this returns. Raises CommitFailed, and KeyUnknown where there is no master."""
        master = provider.newest(Purpose.PERSON_DATA)
        values = [secrets.token_bytes(KEY_BYTES) for _ in person_ids]
        slots = [
            _SLOT.pack(person_id, master.key_version, master.key_index, provider.seal(master, value, person_id + _PURPOSE))
            for person_id, value in zip(person_ids, values, strict=True)
        ]
        file = self._open(make=True)
        try:
            first = -(-os.fstat(file).st_size // _SLOT.size)  # behind a slot that was torn, too
            written = os.pwrite(file, b"".join(slots), first * _SLOT.size)
            if written != len(slots) * _SLOT.size:
                raise OSError(None, "no space left on device")
            os.fdatasync(file)
        except OSError as error:
            raise CommitFailed(f"{self.path}: {error.strerror}") from error
        return [DataKey(first + at, value) for at, value in enumerate(values)]

    def get(self, provider: KeyProvider, person_id: bytes, slot: int) -> DataKey:
        """A person's key. Raises SealedDataWrong when it was destroyed or is another's, KeyUnknown or KeyRetired for its master,
        DataError when the file is not there."""
        raw = os.pread(self._open(make=False), _SLOT.size, slot * _SLOT.size)
        if len(raw) < _SLOT.size or not any(raw):
            raise SealedDataWrong("the person's key was destroyed")
        owner, version, index, sealed = _SLOT.unpack(raw)
        if owner != person_id:
            raise SealedDataWrong("the key is another person's")
        master = KeyReference(Purpose.PERSON_DATA, version, index)
        return DataKey(slot, provider.open(master, sealed, person_id + _PURPOSE))

    def destroy(self, slots: Iterable[int]) -> None:
        """Overwrite keys, durable when this returns; again does no harm. Raises CommitFailed."""
        file = self._open(make=False)
        try:
            for slot in slots:
                os.pwrite(file, bytes(_SLOT.size), slot * _SLOT.size)
            os.fsync(file)
        except OSError as error:
            raise CommitFailed(f"{self.path}: {error.strerror}") from error

    def close(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
