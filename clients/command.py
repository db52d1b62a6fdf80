"""What the runnable clients share: a connection from the command line, and errors in one line.

python -m yikatong.clients.terminal --help"""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from yikatong.clients.connection import Connection
from yikatong.core.access.callers import Caller, parse_identity
from yikatong.core.access.certificates import identity_of, read_certificates
from yikatong.core.errors import YikatongError


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its `connection`, and the `caller` that the certificate names, or --as where there is none."""

    @click.option("--server", required=True, help="HOST:PORT", envvar="YIKATONG_SERVER")
    @click.option("--ca", type=click.Path(path_type=Path), help="PEM file of the server's authority; else plaintext")
    @click.option("--certificate", type=click.Path(path_type=Path), help="PEM file of the caller's certificate")
    @click.option("--key", type=click.Path(path_type=Path), help="PEM file of its key")
    @click.option("--as", "identity", help="ROLE:NAME, where the connection is plaintext and no certificate says it")
    @functools.wraps(command)
    def wrapped(
        server: str, ca: Path | None, certificate: Path | None, key: Path | None, identity: str | None, **rest: Any
    ) -> None:
        if certificate is not None:
            (shown, *_) = read_certificates(certificate)
            caller = identity_of(shown).caller
            if caller is None:
                raise click.UsageError(f"--certificate: {identity_of(shown).fault}")
        elif identity is not None:
            caller = parse_identity(f"yikatong:{identity.removeprefix('yikatong:')}")
        else:
            raise click.UsageError("--certificate and --key are wanted, or --as for a plaintext connection")
        with Connection(server, ca=ca, certificate=certificate, key=key) as connection:
            command(connection=connection, caller=caller, **rest)

    return wrapped


def name_of(caller: Caller, role: int, wanted: str) -> str:
    """The caller's name, when it has the role. Raises UsageError."""
    if caller.role != role:
        raise click.UsageError(f"{caller} is no {wanted}")
    return caller.name


def say(answer: Message | dict[str, Any]) -> None:
    """Print an answer as one line of JSON."""
    if isinstance(answer, Message):
        answer = MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=False)
    print(json.dumps(answer, ensure_ascii=False))


def run(command: click.Command) -> None:
    """Run a command; what is wrong is told in one line on standard error, the exit status is 1 then, 2 for wrong usage."""
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except grpc.RpcError as error:
        print(f"the server answers {error.code().name}: {error.details()}", file=sys.stderr)
        sys.exit(1)
    except (YikatongError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
