"""The baseline of the ledger: balances in LMDB, updated in place, in durable batches of 1,024."""

import random
from pathlib import Path
from typing import Final

from yikatong.core.store import STATE, Store

BATCH: Final = 1_024


class InPlaceLedger:
    """`accounts` balances in an LMDB file under `folder`."""

    def __init__(self, folder: Path, accounts: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._store = Store(folder, STATE, readonly=False)
        self._accounts = accounts
        self._random = random.Random(1)
        balance = (1 << 40).to_bytes(16, "big")
        with self._store.write() as writer:
            for account in range(accounts):
                writer.put("accounts", account.to_bytes(8, "big"), balance)

    def batch(self, updates: int = BATCH) -> None:
        """One durable batch: each update reads a random account's balance, takes a fare off it and writes it back."""
        with self._store.write() as writer:
            for _ in range(updates):
                key = self._random.randrange(self._accounts).to_bytes(8, "big")
                value = writer.get("accounts", key)
                assert value is not None
                writer.put("accounts", key, (int.from_bytes(value, "big") - 200).to_bytes(16, "big"))

    def close(self) -> None:
        self._store.close()
