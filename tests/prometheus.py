"""A real Prometheus server for tests: Debian's package, in a temporary directory, on a loopback port.

with prometheus(["127.0.0.1:7402"], rules) as server:
    assert server.wait_for("yikatong_serving == 1")
"""

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

START_S = 60.0
STOP_S = 10.0
POLL_S = 0.1

# What stands in the environment about proxies is not for the loopback.
_http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def binary(name: str) -> str:
    """Path of `prometheus` or `promtool`; without it the test fails."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not installed: install Debian's package prometheus (apt-get install prometheus)")
    return path


def promtool(*arguments: str | Path, stdin: str | None = None) -> None:
    """Run promtool; the test fails with what it says if it finds fault."""
    command = [binary("promtool"), *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    # `check metrics` writes its complaints to stderr, and `test rules` to stdout.
    assert done.returncode == 0, f"{' '.join(command[1:])}:\n{done.stdout}{done.stderr}"


@dataclass(frozen=True)
class Sample:
    """One element of an instant vector."""

    labels: dict[str, str]
    value: float


class Prometheus:
    """A server that runs; `url` is its root."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """`data` of an answer of the HTTP API, such as get("rules"). Fails with the server's reason."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with _http.open(address, timeout=10) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode(errors='replace')}") from None

    def query(self, expression: str) -> list[Sample]:
        """The instant vector that a PromQL expression is now."""
        result = self.get("query", query=expression)["result"]
        return [Sample(element["metric"], float(element["value"][1])) for element in result]

    def wait_for(self, expression: str, seconds: float = 60.0) -> list[Sample]:
        """Ask until the expression is not empty; the test fails if that takes longer than this."""
        deadline = time.monotonic() + seconds
        while not (samples := self.query(expression)):
            if time.monotonic() > deadline:
                pytest.fail(f"after {seconds} s there is still nothing for {expression}")
            time.sleep(POLL_S)
        return samples

    def rules(self) -> dict[str, dict[str, Any]]:
        """The alert rules by name, with `state`, `health` and `alerts`."""
        return {rule["name"]: rule for group in self.get("rules")["groups"] for rule in group["rules"]}


@contextlib.contextmanager
def prometheus(targets: list[str], rules: Path, job: str = "yikatong", interval_s: int = 1) -> Iterator[Prometheus]:
    """Start a server that scrapes these targets ("host:port") and evaluates a rules file; stop it in the end."""
    with tempfile.TemporaryDirectory(prefix="prometheus-") as name:
        directory = Path(name)
        pause = f"{interval_s}s"
        config = {
            "global": {"scrape_interval": pause, "scrape_timeout": pause, "evaluation_interval": pause},
            "rule_files": [str(rules.resolve())],
            "scrape_configs": [{"job_name": job, "static_configs": [{"targets": targets}]}],
        }
        (directory / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML too
        process, server = _start(directory)
        try:
            yield server
        finally:
            _stop(process)


def _start(directory: Path) -> tuple[subprocess.Popen[bytes], Prometheus]:
    log = directory / "log"
    for _ in range(3):  # the port that was found free may be taken by another until the server binds it
        port = _free_port()
        with log.open("wb") as out:
            process = subprocess.Popen(
                [
                    binary("prometheus"),
                    f"--config.file={directory}/prometheus.yml",
                    f"--storage.tsdb.path={directory}/data",
                    f"--web.listen-address=127.0.0.1:{port}",
                    "--log.level=warn",
                ],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            if _wait_ready(process, f"http://127.0.0.1:{port}/-/ready"):
                return process, Prometheus(f"http://127.0.0.1:{port}")
        except BaseException:
            _stop(process)
            raise
        _stop(process)
        if "address already in use" not in log.read_text(errors="replace"):
            break
    pytest.fail(f"Prometheus did not start:\n{log.read_text(errors='replace')}")


def _wait_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), _http.open(url, timeout=1):
            return True
        time.sleep(POLL_S)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
