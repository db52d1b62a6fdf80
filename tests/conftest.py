"""Fixtures that more than one test file uses."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer
from yikatong.core.keys import key_sets

SHARED_TAPS = Path(__file__).resolve().parents[2] / "shared/data/shenzhen_taps_10k.csv"


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key file with one random master."""
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    key_sets.make_test_keys(path)
    return path


@pytest.fixture(scope="session")
def key_set(key_file: Path) -> key_sets.KeySet:
    return key_sets.load(key_file)[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> Iterator[EmbeddedServer]:
    """A server in a process of its own, plaintext on loopback."""
    with EmbeddedServer(tmp_path_factory.mktemp("server") / "data", key_file) as running:
        yield running


@pytest.fixture(scope="module")
def connection(server: EmbeddedServer) -> Iterator[Connection]:
    with Connection(server.address) as made:
        yield made
