"""TOML files that somebody writes: one way to read them."""

import tomllib
from pathlib import Path
from typing import Any

from yikatong.core.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any]:
    """What stands in a file. Raises ConfigError where it cannot be read or is not TOML in UTF-8."""
    return _parse(path, tells=True)


def read_secret_toml(path: Path) -> dict[str, Any]:
    """The same for a file that only its owner may be able to read; what is wrong with its text is not told, since that may show
    some of it."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(str(path), "only its owner may be able to read it (chmod 600)")
    except OSError as error:
        raise ConfigError(str(path), error.strerror or "cannot be read") from error
    return _parse(path, tells=False)


def _parse(path: Path, *, tells: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(str(path), error.strerror or "cannot be read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"is not TOML in UTF-8: {error}" if tells else "is not TOML in UTF-8") from error
