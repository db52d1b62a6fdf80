"""What can go wrong, apart from declines (which are answers). `service/status.py` maps the tree to gRPC."""


class YikatongError(Exception):
    """Root of the tree; the message is for the caller."""


class InvalidRequest(YikatongError):
    """The request cannot be read as what it should be; `field` names the fault's place. Permanent."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class FileFault(YikatongError):
    """A file that somebody wrote is wrong: the file, the line and the field, and the reason. It is refused whole."""

    def __init__(self, file: str, line: int, field: str, reason: str) -> None:
        super().__init__(f"{file}:{line}: {field}: {reason}" if field else f"{file}:{line}: {reason}")
        self.file = file
        self.line = line
        self.field = field
        self.reason = reason


class NotFound(YikatongError):
    """What was asked for is not there. Permanent until somebody makes it."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"there is no {kind} {name}")
        self.kind = kind
        self.name = name


class Unauthenticated(YikatongError):
    """Nobody knows who calls: no identity in the certificate, or more than one, or it is revoked or over. Permanent until the
    caller has another certificate."""


class Forbidden(YikatongError):
    """The caller may not do that, or not to whom it asked for; which of the two things are there is not told. Permanent.

    `why` is "role", "own" or "district"; `wanted` are the role and scope pairs that may call the method."""

    def __init__(self, why: str, message: str, wanted: str = "") -> None:
        super().__init__(message)
        self.why = why
        self.wanted = wanted


class Overloaded(YikatongError):
    """A queue is full: nothing was done, come back later. Transient."""


class RateLimited(Overloaded):
    """The caller asks more often than it may: nothing was done, come back after `retry_s` seconds. Transient."""

    def __init__(self, message: str, retry_s: float) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class LockedOut(RateLimited):
    """After too many wrong proofs none is looked at, for `retry_s` seconds more. Nothing was done."""


class Full(YikatongError):
    """A configured number of cards, accounts or terminals is reached: an operator must act."""


class Unavailable(YikatongError):
    """Not serving: shutting down, or the journal cannot be written. Nothing was acknowledged. Transient."""


class DeadlineOver(YikatongError):
    """The caller's deadline had passed before the work began: nothing was done."""


class ConfigError(YikatongError):
    """A setting is wrong; `key` names it."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key


class DataError(YikatongError):
    """The data directory cannot be used as it is. The message names the place and the fault."""


class DirectoryInUse(DataError):
    """Another process has the data directory."""


class NewerFormat(DataError):
    """The files were written by a newer version of this program."""


class Damaged(DataError):
    """A stored value is not what was written."""


class CommitFailed(DataError):
    """A group could not be made durable: disk full or I/O error."""
