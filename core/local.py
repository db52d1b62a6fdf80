"""A core of one's own process, without ports: for commands that work on a data directory while no server does."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from yikatong.core.memory import Memory, Progress
from yikatong.core.store import DataDirectory
from yikatong.core.writer import Core, CoreSettings, Work


class LocalCore:
    """Opens a data directory and serves `ask` until it is closed. Raises DirectoryInUse where a server has it."""

    def __init__(self, data: Path, settings: CoreSettings | None = None, progress: Progress = lambda done, total: None) -> None:
        self.data = data
        self._directory = DataDirectory(data)
        try:
            self.core = Core(self._directory, [], settings or CoreSettings(), self._deliver, progress=progress)
        except BaseException:
            self._directory.close()
            raise

    @staticmethod
    def _deliver(works: list[Work]) -> None:
        for work in works:
            work.tag.set()

    def ask(self, command: Callable[[Memory, int], Any]) -> Any:
        """Run a command on the writer's thread; its answer, once that is durable. Raises what the command raised."""
        done = threading.Event()
        work = Work(command=command, tag=done)
        self.core.submit(work)
        done.wait()
        if work.error is not None:
            raise work.error
        return work.response

    def close(self) -> None:
        self.core.close()
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
