"""A till in a process of its own, to be killed: payments 0 to N, each authorised online and its capture stored, and some voided
or made offline. Started again with the same file it goes on where it was.

    python acquirer_child.py ADDRESS FILE CARD N"""

import hashlib
import sys
from pathlib import Path

from yikatong.clients.acquirer import Acquirer, AnswerUnknown, RetryRules
from yikatong.clients.connection import Connection

RULES = RetryRules(pause_s=0.02, pause_s_max=0.2, call_s=5.0)


def id_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:16]


def main(address: str, file: str, card: str, n: int) -> None:
    with Connection(address) as connection, Acquirer(connection, "till", Path(file), RULES) as till:
        print("open", flush=True)
        for i in range(n):
            own = id_of(f"authorize {i}")
            if i % 5 == 4:
                till.advise("shop", "5999", card, 1 + i, request_id=own)
            else:
                try:
                    till.authorize("shop", "5999", card, 1 + i, request_id=own, deadline_s=20)
                except AnswerUnknown:
                    continue
                if i % 5 == 3:
                    till.void(own, request_id=id_of(f"void {i}"))
                else:
                    till.capture(own, 1 + i, request_id=id_of(f"capture {i}"))
            if i % 3 == 2:
                till.send()
            print(i, flush=True)
        while till.drain(20.0):
            pass
        print("drained", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
