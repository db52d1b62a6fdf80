"""A running server: the core, its ports, health, and an orderly end."""

import asyncio
import contextlib
import functools
import itertools
import logging
import resource
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from yikatong.core import limits, tap_port
from yikatong.core.access import export_permits
from yikatong.core.access.rate_limits import Rates
from yikatong.core.access.tls import Tls
from yikatong.core.acquiring import authorization
from yikatong.core.cards import card_life, issuance, replacement
from yikatong.core.cards.codes import RideCodeRules
from yikatong.core.commands import Command
from yikatong.core.config import Settings
from yikatong.core.day.day import DayRules
from yikatong.core.errors import ConfigError, Overloaded, Unavailable, YikatongError
from yikatong.core.identity import foreign_codes, login, persons, portals, visibility
from yikatong.core.identity.identity_service import ISSUER, Identity, IdentityOptions
from yikatong.core.identity.oidc import OidcPort
from yikatong.core.keys.provider import TapKey
from yikatong.core.keys.source import KeySource
from yikatong.core.memory import EngineSettings, Progress
from yikatong.core.metrics import Metrics
from yikatong.core.metrics_port import MetricsServer
from yikatong.core.rules import card_rules, purse_rules
from yikatong.core.rules.card_rules import CardRules
from yikatong.core.rules.purse_rules import PurseRules
from yikatong.core.service import SERVICES, Service, deliver_to
from yikatong.core.services.host import HostOptions
from yikatong.core.store import DataDirectory
from yikatong.core.tap import TapRules
from yikatong.core.tap_port import TapPort
from yikatong.core.tariffs import read_tariffs
from yikatong.core.writer import Core, CoreSettings, Phase, Work

log = logging.getLogger(__name__)

GIL_SWITCH_S: Final = 0.0005  # how long the loop waits for another thread's Python code before it may go on; 5 ms is the default
SWEEP_S: Final = 1.0
US: Final = 1_000_000
OVERDUE_SWEEPS: Final = 60  # sweeps from one count of overdue applications to the next
SWEEPS: Final = (authorization.expire_due, login.expire_due, card_life.lift_due, replacement.follow_heirs)
LAME_DUCK_S: Final = 0.5  # between NOT_SERVING and refusing new calls, so that balancers can turn away first
OPTIONS: Final = [
    ("grpc.max_receive_message_length", limits.REQUEST_BYTES_MAX),
    ("grpc.max_send_message_length", limits.REQUEST_BYTES_MAX),
    # gRPC's own shedding answers CANCELLED from a thousand calls on; ours answers RESOURCE_EXHAUSTED, and later.
    ("grpc.server.max_pending_requests", 2 * limits.CALLS_AT_ONCE_MAX),
    ("grpc.server.max_pending_requests_hard_limit", 4 * limits.CALLS_AT_ONCE_MAX),
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server beside the first
]


def core_settings(settings: Settings) -> CoreSettings:
    """What of the settings concerns the core. Raises RuleError when a tariff file is wrong."""
    return CoreSettings(
        engine=EngineSettings(
            cards_max=settings.cards_max,
            terminals_max=settings.terminals_max,
            stored_grace_s=settings.stored_grace_s,
            overdraft_fen=settings.overdraft_fen,
            tariffs=read_tariffs(Path(settings.tariffs)) if settings.tariffs else None,
            hash_seed=secrets.randbits(64),
            taps_expected=min(settings.checkpoint_records, 10 * limits.CHECKPOINT_RECORDS),
        ),
        taps=TapRules(clock_ahead_s_max=settings.clock_ahead_s),
        checkpoint_s=settings.checkpoint_s,
        checkpoint_records=settings.checkpoint_records,
    )


def identity_options(settings: Settings, masters: list[TapKey]) -> IdentityOptions:
    """What of the settings concerns identity. Raises ConfigError."""
    services = foreign_codes.read(Path(settings.code_services)) if settings.code_services else []
    return IdentityOptions(
        issuer=settings.issuer or ISSUER,
        portals=portals.read(Path(settings.portals)) if settings.portals else {},
        visibility=visibility.read(Path(settings.visibility)) if settings.visibility else None,
        foreign=foreign_codes.ForeignCodes([foreign_codes.HttpCodeService(entry) for entry in services]),
        levels={each.reference: each.levels for each in masters},
    )


class MetricsObserver(Metrics):
    """Metrics, and health that follows the core's phase."""

    on_phase_change: Callable[[Phase], None] | None = None

    def on_phase(self, phase: Phase) -> None:
        super().on_phase(phase)
        if self.on_phase_change is not None:
            self.on_phase_change(phase)


class Server:
    """Made by `start`; `service_port` and `metrics_port` are the ports that were bound."""

    def __init__(
        self,
        settings: Settings,
        directory: DataDirectory,
        core: Core,
        metrics: MetricsObserver,
        rules: PurseRules,
        keys: KeySource,
        tls: Tls | None,
        of_cards: CardRules,
    ) -> None:
        self.settings = settings
        self._purse_rules = rules
        self._card_rules = of_cards
        self._keys = keys
        self.tls = tls
        self._watching: list[asyncio.Task[None]] = []
        self._keys_signalled = asyncio.Event()
        self.core = core
        self.metrics = metrics
        self._directory = directory
        self._health = HealthServicer()
        self._grpc = grpc.aio.server(options=OPTIONS)
        self._metrics_server: Any = None
        self._taps: TapPort | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._identity: Identity | None = None
        self._oidc: OidcPort | None = None
        self._draining = False
        self.service_port = 0
        self.metrics_port = 0

    @classmethod
    async def start(cls, settings: Settings, progress: Progress = lambda done, total: None) -> "Server":
        """Open the data directory, restore, and listen. Raises ConfigError, RuleError or DataError; then nothing is left open."""
        sys.setswitchinterval(GIL_SWITCH_S)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # connections take a descriptor each
        settings.check_tls()
        for name in ("data", "keys"):
            if not getattr(settings, name):
                raise ConfigError(name, "is not set")
        tls = None if settings.insecure else Tls(settings)
        keys = await asyncio.to_thread(KeySource, settings)
        masters = keys.provider.tap_keys()
        rules = purse_rules.read(Path(settings.purse_rules)) if settings.purse_rules else purse_rules.read()
        of_cards = card_rules.read(Path(settings.card_rules)) if settings.card_rules else card_rules.default()
        day_rules = DayRules.read(Path(settings.data), settings.agreements, settings.seal_key)
        identity = identity_options(settings, masters)
        of_core = core_settings(settings)
        loop = asyncio.get_running_loop()
        directory = DataDirectory(Path(settings.data))
        metrics = MetricsObserver(key_versions={key.key_version for key in masters if not key.refused})
        core: Core | None = None
        try:
            core = await asyncio.to_thread(
                lambda: Core(directory, masters, of_core, deliver_to(loop), metrics, progress=progress, provider=keys.provider)
            )
            journal = core  # whose time keys begin and end by
            keys.set_clock(lambda: max(time.time(), journal.last_time_us / US))
            server = cls(settings, directory, core, metrics, rules, keys, tls, of_cards)
            await server._listen(day_rules, identity)
            return server
        except BaseException:
            if core is not None:
                await asyncio.to_thread(core.close)
            directory.close()
            keys.close()
            raise

    async def _listen(self, day_rules: DayRules, identity: IdentityOptions) -> None:
        settings, tls, loop = self.settings, self.tls, asyncio.get_running_loop()
        if tls is not None and tls.is_mutual:
            await self._ask(export_permits.want)
        self.metrics.watch_deny_list(lambda: self.core.deny_list)
        ride_codes = RideCodeRules.read(
            settings.ride_code_certificate, settings.ride_code_authority, settings.ride_code_hours,
            settings.ride_code_limit_fen, self._keys.provider,
        )  # fmt: skip
        options = HostOptions(
            purse_rules=self._purse_rules,
            day_rules=day_rules,
            card_rules=self._card_rules,
            settlement_bank=settings.settlement_bank,
            e_card_devices_max=settings.e_card_devices_max,
            ride_code_rules=ride_codes,
            identity=identity,
            rates=Rates(settings.rate_general_per_s, settings.rate_personal_per_s, settings.rate_proof_per_s),
        )
        service = Service(self.core, self.metrics, self._keys.provider, options, tls=tls)
        self._grpc.add_generic_rpc_handlers(service.handlers())
        self._identity = service.identity
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = [*SERVICES, "grpc.health.v1.Health", reflection.SERVICE_NAME, "grpc.reflection.v1.ServerReflection"]
        self._add_reflection(names)
        address = settings.url(settings.service_port)
        try:
            if tls is None:
                self.service_port = self._grpc.add_insecure_port(address)
            else:
                self.service_port = self._grpc.add_secure_port(address, tls.credentials())
        except RuntimeError as error:
            raise ConfigError("service_port", f"cannot listen on {address}") from error
        self._metrics_server = MetricsServer(self.metrics.registry, settings.host, settings.metrics_port)
        self.metrics_port = self._metrics_server.port
        if tap_port.available():
            self._taps = await TapPort.listen(self.core, self.metrics, settings, self.service_port, service, tls)
        if settings.oidc_port >= 0:
            assert self._identity is not None
            self._oidc = oidc = await OidcPort.listen(self._identity, settings, self.metrics)
            if tls is not None:
                tls.on_change.append(lambda: loop.call_soon_threadsafe(oidc.take_up_certificate))
        await self._grpc.start()

        def follow(phase: Phase) -> None:
            loop.call_soon_threadsafe(self._follow, phase)

        self.metrics.on_phase_change = follow
        await self._set_health(serving=self.core.phase is Phase.SERVING)
        self._sweeping = asyncio.create_task(self._sweep())
        self._watching.append(asyncio.create_task(self._watch_keys()))
        if tls is not None:
            self._watching.append(asyncio.create_task(self._watch_tls(tls)))

    @staticmethod
    async def _watch_tls(tls: Tls) -> None:
        """Notice new certificates, keys, authorities and revocation lists."""
        while True:
            await asyncio.sleep(limits.TLS_POLL_S)
            try:
                await asyncio.to_thread(tls.poll)  # a revocation list may be long
            except Exception:
                log.exception("TLS files could not be looked at")

    async def _sweep(self) -> None:
        """Once a second, do what the time alone makes due, also when nobody asks anything: holds and temporary losses end, and
        what came late to cards that were replaced follows to those that replaced them."""
        loop = asyncio.get_running_loop()
        for second in itertools.count():
            await asyncio.sleep(SWEEP_S)
            if second % OVERDUE_SWEEPS == 0:
                with contextlib.suppress(YikatongError):
                    counts = await self._ask(issuance.count_overdue)
                    self.metrics.on_overdue_counted({step.name.lower(): count for step, count in counts.items()})
                    await asyncio.to_thread(persons.destroy_dropped_keys, functools.partial(self._ask_blocking, loop))
            for command in SWEEPS:
                with contextlib.suppress(Overloaded, Unavailable):  # it is due again in a second
                    await self._ask(command)

    async def _ask(self, command: Command) -> Any:
        """Run a command on the writer's thread."""
        done = asyncio.get_running_loop().create_future()
        self.core.submit(Work(command=command, tag=done))
        return await done

    def _ask_blocking(self, loop: asyncio.AbstractEventLoop, command: Command) -> Any:
        """From another thread than the loop's."""
        return asyncio.run_coroutine_threadsafe(self._ask(command), loop).result()

    async def _watch_keys(self) -> None:
        """Take up keys that a ceremony changed: on SIGHUP, or when the file is another one; unless it cannot be read."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._keys_signalled.wait(), limits.KEY_STORE_LOOK_S)
            if not self._keys_signalled.is_set() and not self._keys.changed():
                continue
            self._keys_signalled.clear()
            try:
                await asyncio.to_thread(self._keys.reload)
                self.core.set_keys(self._keys.provider.tap_keys())
                log.info("the keys were read again")
            except YikatongError as error:
                log.error("the keys could not be read again, those from before stay: %s", error)
                await asyncio.sleep(limits.KEY_STORE_LOOK_S)

    def _add_reflection(self, names: list[str]) -> None:
        """Reflection, v1alpha by grpcio-reflection and v1 by the same servicer: the two protocols differ in name only."""
        servicer = ReflectionServicer(names)
        handler = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        for service in (reflection.SERVICE_NAME, "grpc.reflection.v1.ServerReflection"):
            generic = grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": handler})
            self._grpc.add_generic_rpc_handlers([generic])

    def _follow(self, phase: Phase) -> None:
        if not self._draining:
            task = asyncio.ensure_future(self._set_health(serving=phase is Phase.SERVING))
            task.add_done_callback(lambda done: done.exception())

    async def _set_health(self, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        if self._taps is not None:
            self._taps.serving = serving
        for name in ("", *SERVICES):
            await self._health.set(name, status)

    def ports(self) -> dict[str, int]:
        """The ports that were bound, by setting."""
        ports = {"service_port": self.service_port, "metrics_port": self.metrics_port}
        if self._taps is not None:
            ports["tap_port"] = self._taps.port
        if self._oidc is not None:
            ports["oidc_port"] = self._oidc.port
        return ports

    def announce(self) -> None:
        """Say in the log what is served where."""
        settings = self.settings
        log.info(
            "serving %s at sequence %d: gRPC on %s (%s), metrics on http://%s/metrics",
            settings.data,
            self.core.journal.next_sequence - 1,
            settings.url(self.service_port),
            "plaintext" if settings.insecure else "mTLS" if settings.tls_client_ca else "TLS",
            settings.url(self.metrics_port),
        )
        if self._taps is None:
            log.info("no tap port: this build was made without nghttp2; all methods are on the service port")
        else:
            log.info("native taps on %s", settings.url(self._taps.port))
        if self._oidc is not None:
            log.info("OpenID Connect on %s as %s", settings.url(self._oidc.port), self._oidc.issuer)

    async def stop(self) -> None:
        """Drain: health turns NOT_SERVING, calls in flight finish, then journal and checkpoint are closed."""
        if self._draining:
            return
        self._draining = True
        for task in (self._sweeping, *self._watching):
            if task is not None:
                task.cancel()
        await self._set_health(serving=False)
        await asyncio.sleep(min(LAME_DUCK_S, self.settings.drain_s))
        stops = [self._grpc.stop(self.settings.drain_s)]
        if self._taps is not None:
            stops.append(self._taps.stop(self.settings.drain_s))
        if self._oidc is not None:
            stops.append(self._oidc.stop(self.settings.drain_s))
        await asyncio.gather(*stops)
        if self._identity is not None:
            await self._identity.close()
        await asyncio.to_thread(self.core.close)
        self._metrics_server.close()
        self._directory.close()
        self._keys.close()

    def _look_again(self) -> None:
        """SIGHUP: certificates and keys may be new."""
        self._keys_signalled.set()
        if self.tls is not None:
            asyncio.get_running_loop().run_in_executor(None, self.tls.reload)

    async def run_until_signal(self) -> None:
        """Serve until SIGTERM or SIGINT, then stop."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._look_again)
        await stopping.wait()
        log.info("draining")
        await self.stop()
        log.info("stopped")
