"""LMDB, and the data directory that holds it: the only module that imports `lmdb`.

A data directory is one process's by a lock for as long as it serves; readers (check, export, backup) come beside it at any
time, since LMDB gives each transaction a picture that does not change."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import lmdb

from yikatong.core import limits
from yikatong.core.errors import CommitFailed, DataError, DirectoryInUse, Unavailable
from yikatong.core.failpoints import failpoint

JOURNAL = "journal"
STATE = "state"
DATABASES = {
    JOURNAL: ("groups", "probe"),
    STATE: ("meta", "cards", "accounts", "terminals", "rides", "operators", "requests", "segments", "documents"),
}
MAP_BYTES = {JOURNAL: limits.JOURNAL_MAP_BYTES, STATE: limits.STATE_MAP_BYTES}


class Reader:
    """A picture of one file that does not change. Values are views that are good until the reader is closed."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._transaction = store.environment.begin(buffers=True)

    def get(self, database: str, key: bytes) -> memoryview | None:
        value: memoryview | None = self._transaction.get(key, db=self._store.databases[database])
        return value

    def items(self, database: str, start: bytes = b"") -> Iterator[tuple[bytes, memoryview]]:
        """In order of key, from `start` on; none of a database that an older file does not have."""
        if database not in self._store.databases:
            return
        with self._transaction.cursor(db=self._store.databases[database]) as cursor:
            found = cursor.set_range(start) if start else cursor.first()
            while found:
                yield bytes(cursor.key()), cursor.value()
                found = cursor.next()

    def at_or_before(self, database: str, key: bytes) -> tuple[bytes, memoryview] | None:
        """The item with the greatest key that is not above `key`."""
        with self._transaction.cursor(db=self._store.databases[database]) as cursor:
            found = cursor.set_range(key)
            if not found:
                found = cursor.last()
            elif bytes(cursor.key()) != key:
                found = cursor.prev()
            return (bytes(cursor.key()), cursor.value()) if found else None

    def last(self, database: str) -> tuple[bytes, memoryview] | None:
        with self._transaction.cursor(db=self._store.databases[database]) as cursor:
            return (bytes(cursor.key()), cursor.value()) if cursor.last() else None

    def count(self, database: str) -> int:
        return int(self._transaction.stat(self._store.databases[database])["entries"])

    def close(self) -> None:
        self._transaction.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Writer:
    """One transaction that stands or falls as a whole; durable when it has been left without an error."""

    def __init__(self, store: "Store", failpoints: str = "") -> None:
        self._store = store
        self._failpoints = failpoints
        self._transaction = store.environment.begin(write=True, buffers=True)

    def put(self, database: str, key: bytes, value: bytes | memoryview, *, append: bool = False) -> None:
        if not self._transaction.put(key, value, db=self._store.databases[database], append=append, overwrite=not append):
            raise DataError(f"{self._store.path}: the key {key.hex()} is already there")

    def append_parts(self, database: str, key: bytes, *parts: bytes) -> None:
        """Put one value made of parts, behind all that are there."""
        self.put(database, key, b"".join(parts), append=True)

    def get(self, database: str, key: bytes) -> memoryview | None:
        value: memoryview | None = self._transaction.get(key, db=self._store.databases[database])
        return value

    def delete(self, database: str, key: bytes) -> None:
        self._transaction.delete(key, db=self._store.databases[database])

    def drop_all(self) -> None:
        """Delete every item of every database of the file."""
        for database in self._store.databases.values():
            self._transaction.drop(database, delete=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._transaction.abort()
            return
        if self._failpoints:
            failpoint(f"{self._failpoints}-before-commit")
        self._transaction.commit()
        if self._failpoints:
            failpoint(f"{self._failpoints}-after-commit")


class Store:
    """One LMDB file of a data directory."""

    def __init__(self, directory: Path, name: str, *, readonly: bool) -> None:
        self.path = directory / f"{name}.mdb"
        if readonly and not self.path.exists():
            raise DataError(f"{self.path}: there is no such file")
        missing = (lmdb.NotFoundError,) if readonly else ()  # an older file does not have all of them
        try:
            self.environment = lmdb.open(
                str(self.path),
                subdir=False,
                readonly=readonly,
                create=not readonly,
                map_size=MAP_BYTES[name],
                max_dbs=len(DATABASES[name]),
                max_readers=limits.JOURNAL_READERS_MAX,
                mode=0o600,
                readahead=False,
                meminit=True,  # unused parts of pages would hold what the heap held: keys, names
            )
            self.databases = {}
            for database in DATABASES[name]:
                with contextlib.suppress(*missing):
                    self.databases[database] = self.environment.open_db(database.encode(), create=not readonly)
        except (lmdb.Error, OSError) as error:
            raise DataError(f"{self.path}: {error}") from error

    def read(self) -> Reader:
        """Raises Unavailable while the file is closed because the core starts anew from it."""
        try:
            return Reader(self)
        except lmdb.Error as error:
            raise Unavailable(f"{self.path.name} cannot be read now") from error

    @contextmanager
    def write(self, failpoints: str = "") -> Iterator[Writer]:
        """Raises CommitFailed when what was put cannot be made durable; then nothing of it is there."""
        try:
            with Writer(self, failpoints) as writer:
                yield writer
        except (lmdb.Error, OSError) as error:
            raise CommitFailed(f"{self.path}: {error}") from error

    def copy_to(self, path: Path) -> None:
        """A consistent copy, hot: without free pages, in a file of its own."""
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError as error:
            raise DataError(f"{path}: is already there") from error
        try:
            self.environment.copyfd(descriptor, compact=True)
            os.fsync(descriptor)
        except (lmdb.Error, OSError) as error:
            raise DataError(f"{path}: {error}") from error
        finally:
            os.close(descriptor)

    def empty(self) -> None:
        """Forget everything in the file. Raises CommitFailed; then all of it is still there."""
        with self.write() as writer:
            writer.drop_all()

    def close(self) -> None:
        self.environment.close()


class DataDirectory:
    """The journal and the state of one core. Raises DirectoryInUse when another process serves from it."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        self.readonly = readonly
        self._lock = -1
        if readonly:
            if not path.is_dir():
                raise DataError(f"{path}: there is no such data directory")
        else:
            try:
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            except OSError as error:
                raise DataError(f"{path}: {error.strerror}") from error
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._lock)
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise DataError(f"{path}: {error.strerror}") from error
                raise DirectoryInUse(f"{path}: another process serves from this data directory") from error
        try:
            self.state = Store(path, STATE, readonly=readonly)
            self.journal = Store(path, JOURNAL, readonly=readonly)
        except DataError:
            self._unlock()
            raise

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def reopen(self) -> None:
        """After a write has failed: LMDB may refuse an environment that has seen an I/O error."""
        self.journal.close()
        self.state.close()
        self.state = Store(self.path, STATE, readonly=False)
        self.journal = Store(self.path, JOURNAL, readonly=False)

    def close(self) -> None:
        self.journal.close()
        self.state.close()
        self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
