"""The methods of the service port without a socket: as any caller, at any journal time, in this process."""

import asyncio
import secrets
import threading
from pathlib import Path
from typing import Any

import uvloop
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from yikatong.core.access.callers import LOCAL, Caller, parse_identity, serving
from yikatong.core.access.oversight import method_of
from yikatong.core.access.rate_limits import Rates
from yikatong.core.keys import key_sets
from yikatong.core.keys.software import SoftwareProvider
from yikatong.core.metrics import Metrics
from yikatong.core.service import Service, deliver_to
from yikatong.core.services.host import HostOptions
from yikatong.core.store import DataDirectory
from yikatong.core.writer import Core, CoreSettings, Work


def operator(name: str) -> Caller:
    return parse_identity(f"yikatong:operator:{name}")


def department(name: str) -> Caller:
    return parse_identity(f"yikatong:department:{name}")


class ServicePort:
    """Runs from construction on; `call` is a call of a method."""

    def __init__(self, data: Path, key_file: Path, rates: Rates | None = None) -> None:
        self.provider: SoftwareProvider = key_sets.load_provider(key_file)
        self.metrics = Metrics()
        self._loop = uvloop.new_event_loop()  # as a server has
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._directory = DataDirectory(data)
        masters = key_sets.load(key_file)
        self.core = Core(self._directory, masters, CoreSettings(), deliver_to(self._loop), self.metrics)
        self.service: Service = self._run(self._make(rates))

    async def _make(self, rates: Rates | None) -> Service:
        return Service(self.core, self.metrics, self.provider, HostOptions(rates=rates))

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def call(self, method: str, request: Message | None = None, caller: Caller = LOCAL, **fields: Any) -> Any:
        """Call "AuditService/ListAccesses"; its response message. Raises what the service would turn into a status."""
        name = f"yikatong.v1.{method}"
        descriptor = method_of(name)
        message: Any = request if request is not None else GetMessageClass(descriptor.input_type)(**fields)
        if "request_id" in descriptor.input_type.fields_by_name and not message.request_id:
            message.request_id = secrets.token_bytes(16)

        async def as_caller() -> bytes:
            with serving(caller):
                return await self.service.oversight.serve(name, message.SerializeToString(), None)

        return GetMessageClass(descriptor.output_type).FromString(self._run(as_caller()))

    def ask(self, command: Any) -> Any:
        """Run command(memory, time_us) on the writer's thread."""

        async def submit() -> Any:
            work = Work(command=command, tag=asyncio.get_running_loop().create_future())
            self.core.submit(work)
            return await work.tag

        return self._run(submit())

    def metric(self, name: str, **labels: str) -> float:
        return float(self.metrics.registry.get_sample_value(name, labels) or 0.0)

    def close(self) -> None:
        self.core.close()
        self._directory.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def __enter__(self) -> "ServicePort":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
