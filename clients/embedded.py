"""A server of one's own: `yikatong serve` as a child process, for demos, replays, benches and tests."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from yikatong.core.errors import YikatongError

START_S_MAX = 60.0


class ServerFailed(YikatongError):
    """The child did not come up; the message is what it printed."""


class EmbeddedServer:
    """Runs from construction on; `address` is its service port, `ports` are all by setting. Plaintext on loopback unless
    `arguments` say otherwise."""

    def __init__(
        self, data: Path, keys: Path, *arguments: str, environment: dict[str, str] | None = None, insecure: bool = True
    ) -> None:
        self.data = data
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.log_path = data / "serve.log"
        ready = data / "ready.json"
        ready.unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "yikatong.core.cli", "serve", "--data", str(data), "--keys", str(keys),
            "--service-port", "0", "--tap-port", "0", "--metrics-port", "0", "--ready", str(ready),
            *(["--insecure"] if insecure else []), *arguments,
        ]  # fmt: skip
        own = {name: value for name, value in os.environ.items() if not name.startswith("YIKATONG_")}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=own | (environment or {})
            )
        ports = self.ports = self._wait(ready)
        self.address = f"127.0.0.1:{ports['service_port']}"
        self.metrics_address = f"127.0.0.1:{ports['metrics_port']}"
        self.tap_address = f"127.0.0.1:{ports['tap_port']}" if ports.get("tap_port") else None

    def _wait(self, ready: Path) -> dict[str, int]:
        deadline = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline:
            if ready.exists():
                ports: dict[str, int] = json.loads(ready.read_text())
                return ports
            if self.process.poll() is not None:
                raise ServerFailed(self.log_path.read_text()[-2000:].strip())
            time.sleep(0.02)
        self.kill()
        raise ServerFailed(f"the server was not ready after {START_S_MAX:.0f} s")

    def kill(self) -> None:
        """End it without warning (SIGKILL)."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Let it drain (SIGTERM); returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
