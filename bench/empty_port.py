"""An empty handler on the native transport: AuthorizeTap answered with the same bytes, without decoding, engine or disk. What the
transport alone can do on this machine; `python -m yikatong.bench.empty_port` prints its port and serves until it is killed."""

import asyncio

import uvloop

from yikatong.core.config import Settings
from yikatong.core.tap_port import transport_limits
from yikatong.ext import transport
from yikatong.ext.engine import Calls
from yikatong.v1 import result_pb2, tap_service_pb2

ANSWER = tap_service_pb2.AuthorizeTapResponse(
    outcome=tap_service_pb2.TapOutcome(
        result=result_pb2.RESULT_ACCEPTED,
        charged_fen=200,
        balance_after_fen=1_000_000,
        sequence=1_000_000,
        settlement_date=20250101,
    )
).SerializeToString()


async def serve() -> None:
    """Serve on a free loopback port."""
    loop = asyncio.get_running_loop()

    def answer(calls: Calls) -> None:
        calls.fill(ANSWER)
        port.answer(calls, None)

    nothing = transport.Failure(12, "nothing here", b"")
    port = transport.Transport(
        loop, transport_limits(Settings()), answer, lambda call: call.fail(nothing), lambda *_: None, nothing, nothing
    )
    port.register("/yikatong.v1.TapService/AuthorizeTap", transport.LANE_AUTHORIZE)
    server = await loop.create_server(port.protocol, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve())
