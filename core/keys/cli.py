"""The command line of key ceremonies: `yikatong keys init|list|generate|import|export|rotate|…`.

Whatever changes a store takes two of its operators, each of whom types a passphrase; nothing secret is ever an argument. What is
typed passes through Python's strings, which cannot be wiped: ceremonies belong on a machine of their own."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from rich import box
from rich.console import Console
from rich.table import Table

from yikatong.core import limits
from yikatong.core.keys import sdf
from yikatong.core.keys.life import KeyState, KeyStep, Life
from yikatong.core.keys.provider import ANY_ISSUER, OF_CARDS, SIGNING, KeyReference, Purpose
from yikatong.core.keys.signers import Signer, make_signer
from yikatong.core.keys.source import read_passphrase
from yikatong.core.keys.store import Ceremony, CeremonyRefused, KeyStore, StoredKey, create, verify
from yikatong.core.keys.transfer import COMPONENTS, join, read_wrapped, write_wrapped
from yikatong.ext import sm3
from yikatong.ext.key_holder import KeyHolder

OUT = Console()
GRACE_HOURS: Final = 72.0
TIME_FORMATS: Final = ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d"]


class _Hex(click.ParamType[bytes]):
    """So many bytes in hexadecimal digits."""

    name = "hex"

    def __init__(self, size: int) -> None:
        self.size = size

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if isinstance(value, bytes):
            return value
        try:
            raw = bytes.fromhex(value)
        except ValueError:
            raw = b""
        if len(raw) != self.size:
            self.fail(f"{2 * self.size} hexadecimal digits are wanted", param, ctx)
        return raw


store_argument = click.argument("store", type=click.Path(path_type=Path))
by_option = click.option("--by", "operators", multiple=True, required=True, help="operator of the ceremony; two are wanted")
purpose_option = click.option("--purpose", type=click.Choice([each.name.lower() for each in Purpose]), required=True)
issuer_option = click.option(
    "--issuer", type=_Hex(8), default=ANY_ISSUER, help="issuer identifier, for keys above cards; 16 digits"
)
grace_option = click.option(
    "--grace-hours", type=click.FloatRange(0, limits.KEY_GRACE_S_MAX / 3600), default=GRACE_HOURS, show_default=True,
    help="how long what was made with it is still taken",
)  # fmt: skip


def reference_options(command: Callable[..., None]) -> Callable[..., None]:
    """Which key."""
    for option in (
        issuer_option,
        click.option("--index", type=click.IntRange(0, 255), default=1, show_default=True),
        click.option("--version", type=click.IntRange(0, 255), required=True),
        purpose_option,
    ):
        command = option(command)
    return command


def life_options(command: Callable[..., None]) -> Callable[..., None]:
    """How a new key lives and is used."""
    for option in (
        click.option("--levels", type=click.IntRange(1, 2), default=2, show_default=True, help="2: issuer, card; 1: card"),
        click.option("--uncached", is_flag=True, help="taps are proved by the key store, batch by batch, not by the engine"),
        click.option("--until", type=click.DateTime(TIME_FORMATS), help="nothing new is made with it from then on (UTC)"),
        click.option("--from", "begin", type=click.DateTime(TIME_FORMATS), help="it begins then (UTC); else now"),
        grace_option,
    ):
        command = option(command)
    return command


def _reference(purpose: str, version: int, index: int, issuer: bytes) -> KeyReference:
    return KeyReference(Purpose[purpose.upper()], version, index, issuer)


def _seconds(moment: datetime | None) -> int:
    return 0 if moment is None else int(moment.replace(tzinfo=UTC).timestamp())


def _life(begin: datetime | None, until: datetime | None, grace_hours: float) -> Life:
    from_s, until_s = _seconds(begin) or int(time.time()), _seconds(until)
    if until_s and until_s <= from_s:
        raise click.UsageError("--until is before the key begins")
    return Life(from_s, until_s, until_s + int(grace_hours * 3600) if until_s else 0)


def _ask_secret(text: str, *, twice: bool = False) -> bytearray:
    return bytearray(str(click.prompt(text, hide_input=True, confirmation_prompt=twice, default="", show_default=False)).encode())


def _check_new(passphrase: bytearray, whose: str) -> bytearray:
    if not limits.PASSPHRASE_BYTES_MIN <= len(passphrase) <= limits.PASSPHRASE_BYTES_MAX:
        raise CeremonyRefused(f"{whose}: {limits.PASSPHRASE_BYTES_MIN} to {limits.PASSPHRASE_BYTES_MAX} bytes are wanted")
    return passphrase


def _new_operators(names: tuple[str, ...]) -> dict[str, bytearray]:
    if len(set(names)) != len(names):
        raise click.UsageError("--operator: a name stands there twice")
    return {name: _check_new(_ask_secret(f"new passphrase of {name}", twice=True), f"the passphrase of {name}") for name in names}


def _begin(store: Path, operators: tuple[str, ...]) -> Ceremony:
    """A ceremony, once both operators have typed their passphrases."""
    opened = KeyStore.read(store)
    if len(set(operators)) != 2:
        raise CeremonyRefused("a ceremony takes two operators: --by twice, with two names")
    for name in operators:
        if name not in opened.operators:
            raise CeremonyRefused(f"{name} is none of the store's operators: {', '.join(opened.operators)}")
    return opened.open_by({name: _ask_secret(f"passphrase of {name}") for name in operators})


def _done(what: str, stored: StoredKey) -> None:
    OUT.print(f"{what}: {stored.describe()}, check value {stored.check_value.hex()}", highlight=False, soft_wrap=True)


@click.group("keys")
def keys() -> None:
    """Key ceremonies: make a key store, and the keys in it. Two operators are wanted for whatever changes one."""


@keys.command("init")
@store_argument
@click.option("--operator", "operators", multiple=True, required=True, help="who may hold ceremonies, any two; 2 to 8 names")
def init_command(store: Path, operators: tuple[str, ...]) -> None:
    """Make an empty store: asks for the server's passphrase and each operator's."""
    if store.exists():
        raise CeremonyRefused(f"{store}: is there already")
    passphrase = _check_new(_ask_secret("new passphrase of the server", twice=True), "the passphrase of the server")
    made = create(store, passphrase, _new_operators(operators))
    OUT.print(f"{store}: made, for ceremonies of {', '.join(made.operators)}", highlight=False, soft_wrap=True)


@keys.command("list")
@store_argument
def list_command(store: Path) -> None:
    """Show what keys there are, their check values and states; never a key. Needs no passphrase."""
    opened = KeyStore.read(store)
    table = Table(box=box.SIMPLE, title=f"{store}: generation {opened.generation}")
    for column in ("purpose", "issuer", "version", "index", "levels", "cached", "state", "from", "until", "grace until", "KCV"):
        table.add_column(column)
    now_s = time.time()
    for stored in sorted(opened.keys.values()):
        key, life = stored.key, stored.life
        times = [
            datetime.fromtimestamp(each, UTC).strftime(TIME_FORMATS[0]) if each else "—"
            for each in (life.from_s, life.until_s, life.grace_until_s)
        ]
        table.add_row(
            key.purpose.name.lower(), key.issuer_id.hex() if any(key.issuer_id) else "—", str(key.key_version),
            str(key.key_index),
            str(stored.levels), "yes" if stored.cached else "no", life.state(now_s).name.lower().replace("_", "-"), *times,
            stored.check_value.hex(),
        )  # fmt: skip
    Console(width=200).print(table)


@keys.command("generate")
@store_argument
@reference_options
@life_options
@by_option
def generate_command(
    store: Path, purpose: str, version: int, index: int, issuer: bytes, levels: int, uncached: bool, until: datetime | None,
    begin: datetime | None, grace_hours: float, operators: tuple[str, ...],
) -> None:  # fmt: skip
    """Make a random key."""
    key, life = _reference(purpose, version, index, issuer), _life(begin, until, grace_hours)
    ceremony = _begin(store, operators)
    stored = ceremony.add(key, _random(key.purpose), life, levels, cached=not uncached)
    ceremony.commit("generate")
    _done("made", stored)


def _random(purpose: Purpose) -> KeyHolder | Signer:
    return make_signer(purpose) if purpose in SIGNING else KeyHolder.random()


@keys.command("import")
@store_argument
@reference_options
@life_options
@click.option("--components", type=click.Choice([str(n) for n in COMPONENTS]), default="2", show_default=True)
@click.option("--kcv", type=_Hex(3), required=True, help="check value of the whole key; 6 digits")
@by_option
def import_command(
    store: Path, purpose: str, version: int, index: int, issuer: bytes, levels: int, uncached: bool, until: datetime | None,
    begin: datetime | None, grace_hours: float, components: str, kcv: bytes, operators: tuple[str, ...],
) -> None:  # fmt: skip
    """Put together a key from its components: each custodian types one, unseen, and its check value."""
    key, life = _reference(purpose, version, index, issuer), _life(begin, until, grace_hours)
    if key.purpose in SIGNING:
        raise click.UsageError("--purpose: keys that sign do not come in components")
    ceremony = _begin(store, operators)
    whole = join([_ask_component(number) for number in range(1, int(components) + 1)], kcv)
    stored = ceremony.add(key, whole, life, levels, cached=not uncached)
    ceremony.commit("import")
    _done("imported", stored)


def _ask_component(number: int) -> KeyHolder:
    typed = click.prompt(f"component {number} (32 hexadecimal digits)", hide_input=True, default="", show_default=False)
    try:
        material = bytearray.fromhex(str(typed))
        component = KeyHolder.take(material)
    except ValueError:
        raise CeremonyRefused(f"component {number}: 32 hexadecimal digits are wanted") from None
    stated = click.prompt(f"check value of component {number}", type=_Hex(3))
    if component.check_value() != stated:
        raise CeremonyRefused(f"component {number} is wrong: its check value is not {stated.hex()}")
    return component


@keys.command("split")
@store_argument
@click.option("--version", type=click.IntRange(0, 255), required=True, help="version of the transport key")
@click.option("--components", type=click.Choice([str(n) for n in COMPONENTS]), default="2", show_default=True)
@by_option
def split_command(store: Path, version: int, components: str, operators: tuple[str, ...]) -> None:
    """Make a transport key in components, which custodians carry to another store: each sees one, alone at the screen."""
    ceremony = _begin(store, operators)
    parts = [KeyHolder.random() for _ in range(int(components))]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.xor(part)
    stored = ceremony.add(KeyReference(Purpose.TRANSPORT, version), whole, Life(int(time.time())))
    ceremony.commit("split")  # before anybody sees anything
    for number, part in enumerate(parts, 1):
        click.prompt(f"custodian {number}, alone at the screen: Enter", default="", show_default=False, prompt_suffix="")
        shown = bytearray(16)
        part.copy_into(shown)
        click.echo(f"component {number}: {shown.hex()}\ncheck value: {part.check_value().hex()}")
        shown[:] = bytes(16)
        click.prompt("written down: Enter", default="", show_default=False, prompt_suffix="")
        click.clear()
    _done("made", stored)


@keys.command("export")
@store_argument
@reference_options
@click.option("--transport-version", type=click.IntRange(0, 255), required=True, help="version of the transport key")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="file to write")
@by_option
def export_command(
    store: Path, purpose: str, version: int, index: int, issuer: bytes, transport_version: int, out: Path,
    operators: tuple[str, ...],
) -> None:  # fmt: skip
    """Wrap a key under a transport key, for another store."""
    key = _reference(purpose, version, index, issuer)
    if key.purpose is Purpose.TRANSPORT:
        raise click.UsageError("--purpose: transport keys themselves travel in components")
    ceremony = _begin(store, operators)
    stored = ceremony.find(key)
    transport = _transport(ceremony, transport_version)
    ceremony.note(key)
    ceremony.commit(f"export under transport {transport_version}")  # first: nothing leaves that the log does not know of
    write_wrapped(out, stored, ceremony.value(key), transport)
    _done("wrapped", stored)


def _transport(ceremony: Ceremony, version: int) -> KeyHolder:
    key = KeyReference(Purpose.TRANSPORT, version)
    stored, value = ceremony.find(key), ceremony.value(key)
    if stored.life.state(time.time()) is not KeyState.ACTIVE or not isinstance(value, KeyHolder):
        raise CeremonyRefused(f"{stored.describe()} is not active")
    return value


@keys.command("import-wrapped")
@store_argument
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--transport-version", type=click.IntRange(0, 255), required=True, help="version of the transport key")
@click.option("--uncached", is_flag=True, help="taps are proved by the key store, batch by batch, not by the engine")
@by_option
def import_wrapped_command(store: Path, file: Path, transport_version: int, uncached: bool, operators: tuple[str, ...]) -> None:
    """Take in what `export` of another store has written."""
    ceremony = _begin(store, operators)
    wrapped = read_wrapped(file, _transport(ceremony, transport_version))
    stored = ceremony.add(wrapped.key, wrapped.value, Life(int(time.time())), wrapped.levels, cached=not uncached)
    ceremony.commit(f"import under transport {transport_version}")
    _done("imported", stored)


@keys.command("rotate")
@store_argument
@purpose_option
@issuer_option
@grace_option
@by_option
def rotate_command(store: Path, purpose: str, issuer: bytes, grace_hours: float, operators: tuple[str, ...]) -> None:
    """Make the next version of a key, and retire the one before in the same instant."""
    ceremony = _begin(store, operators)
    now_s = int(time.time())
    before = ceremony.newest(Purpose[purpose.upper()], issuer, now_s)
    key = before.key._replace(key_version=before.key.key_version + 1)
    if key.key_version > 255:
        raise CeremonyRefused("there is no version after 255")
    stored = ceremony.add(key, _random(key.purpose), Life(now_s), before.levels, cached=before.cached)
    ceremony.step(before.key, KeyStep.RETIRE, now_s, int(grace_hours * 3600))
    ceremony.commit("rotate")
    _done("made", stored)
    _done("retired", before)


def _step_command(step: KeyStep, text: str) -> None:
    def command(
        store: Path, purpose: str, version: int, index: int, issuer: bytes, operators: tuple[str, ...],
        grace_hours: float = 0.0, yes: bool = False,
    ) -> None:  # fmt: skip
        key = _reference(purpose, version, index, issuer)
        ceremony = _begin(store, operators)
        stored = ceremony.find(key)
        if step is KeyStep.DESTROY and not yes:
            click.confirm(f"destroy {stored.describe()} for good?", abort=True)
        stored = ceremony.step(key, step, int(time.time()), int(grace_hours * 3600))
        ceremony.commit(step.value)
        _done(stored.life.state(time.time()).name.lower(), stored)

    command.__doc__ = text
    if step is KeyStep.RETIRE:
        command = grace_option(command)
    if step is KeyStep.DESTROY:
        command = click.option("--yes", is_flag=True, help="do not ask again")(command)
    keys.command(step.value)(store_argument(reference_options(by_option(command))))


_step_command(KeyStep.ACTIVATE, "Let a key begin now.")
_step_command(KeyStep.RETIRE, "Make nothing new with a key; what was made with it is taken until the grace is over.")
_step_command(KeyStep.COMPROMISE, "A key got into wrong hands: it is refused at once, without grace.")
_step_command(KeyStep.DESTROY, "Erase a key that is retired, compromised or never began; its entry stays.")


@keys.command("verify")
@store_argument
@click.option("--passphrase-file", default="", help="file with the server's passphrase, or env:NAME; else it is asked for")
def verify_command(store: Path, passphrase_file: str) -> None:
    """Open every key, check signature and check values, and hold the ceremony log against the store."""
    opened = KeyStore.read(store)
    passphrase = (
        read_passphrase(passphrase_file, "passphrase-file") if passphrase_file else _ask_secret("passphrase of the server")
    )
    ceremonies = verify(opened, opened.open(passphrase))
    OUT.print(
        f"{store}: sound. {len(opened.keys)} keys, {ceremonies} ceremonies, generation {opened.generation}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


@keys.command("passphrase")
@store_argument
@by_option
def passphrase_command(store: Path, operators: tuple[str, ...]) -> None:
    """Set another passphrase for the server."""
    ceremony = _begin(store, operators)
    passphrase = _check_new(_ask_secret("new passphrase of the server", twice=True), "the passphrase of the server")
    ceremony.replace_people(passphrase, {})
    ceremony.commit("passphrase")
    OUT.print(f"{store}: the server has another passphrase", highlight=False, soft_wrap=True)


@keys.command("operators")
@store_argument
@by_option
@click.option("--operator", "names", multiple=True, required=True, help="who may hold ceremonies from now on; all of them")
def operators_command(store: Path, operators: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Say anew who may hold ceremonies: two of those before decide, all of the new ones choose passphrases."""
    ceremony = _begin(store, operators)
    ceremony.replace_people(None, _new_operators(names))
    ceremony.commit(f"operators {', '.join(sorted(names))}")
    OUT.print(f"{store}: ceremonies are held by {', '.join(sorted(names))}", highlight=False, soft_wrap=True)


@keys.command("device")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--library", required=True, help="the device's library (GM/T 0018)")
@click.option("--kek-index", type=click.IntRange(1, 1 << 16), default=1, show_default=True, help="its key-encryption key")
@click.option("--sign-index", type=click.IntRange(1, 1 << 16), default=1, show_default=True, help="key pair that signs the file")
@click.option("--pin-file", default="", help="file with the PIN of that key pair, or env:NAME; else it is asked for")
@click.option("--wrapped", type=_Hex(16), help="the key under the key-encryption key; else a new one is made")
@click.option("--kcv", type=_Hex(3), help="its check value; with --wrapped")
@click.option("--key-pair", type=click.IntRange(1, 1 << 16), help="key pair of the device, for keys that sign")
@reference_options
@life_options
def device_command(
    file: Path, library: str, kek_index: int, sign_index: int, pin_file: str, wrapped: bytes | None, kcv: bytes | None,
    key_pair: int | None, purpose: str, version: int, index: int, issuer: bytes, levels: int, uncached: bool,
    until: datetime | None, begin: datetime | None, grace_hours: float,
) -> None:  # fmt: skip
    """Add a key to the key file of a device (made where there is none). Who may do so is up to the device."""
    key, life = _reference(purpose, version, index, issuer), _life(begin, until, grace_hours)
    if (key.purpose in SIGNING) != (key_pair is not None) or (wrapped is None) != (kcv is None):
        raise click.UsageError("--key-pair is for keys that sign, and --wrapped goes with --kcv")
    if any(issuer) != (key.purpose in OF_CARDS):
        raise click.UsageError("--issuer is for keys above cards, and they need it")
    pin = read_passphrase(pin_file, "pin-file") if pin_file else _ask_secret("PIN of the device")
    device = sdf.Device(library, 1, pin)
    try:
        before = sdf.SdfProvider(device, sdf.DeviceFile.read(file)).file if file.exists() else None
        known = dict(before.keys) if before is not None else {}
        if before is not None:
            kek_index, sign_index = before.kek_index, before.sign_index
        if key in known:
            raise CeremonyRefused(f"there is a key {known[key].stored.describe()} already")
        with device.session() as session:
            if key_pair is not None:
                wrapped, made = b"", sm3.digest(sdf.public_pem(session.public_point(key_pair)))[:3]
            else:
                wrapped = wrapped or session.generate_wrapped(kek_index)
                made = session.encrypt(session.import_wrapped(kek_index, wrapped), sdf.SGD_SM4_ECB, b"", bytes(16))[:3]
        if kcv is not None and made != kcv:
            raise CeremonyRefused(f"the device makes check value {made.hex()} of it, not {kcv.hex()}")
        stored = StoredKey(key, levels, False, life, made, wrapped)
        known[key] = sdf.DeviceKey(stored, key_pair or 0)
        sdf.write_device_file(file, device, kek_index, sign_index, list(known.values()))
    finally:
        device.close()
    _done("added", stored)


def add_keys_commands(cli: click.Group) -> None:
    """Add the group to the command line."""
    cli.add_command(keys)
