"""The tables of core/services: each has its service's methods, and each method the messages that its descriptor names."""

import functools
import inspect
import typing
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from service_port import ServicePort

import yikatong.core.services
from yikatong.core.service import DESCRIPTORS, TABLES
from yikatong.core.services.host import Raw, on_wire

NOT_SERVICES = {"__init__", "host", "resolvers"}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> typing.Iterator[dict[str, dict[str, Any]]]:
    with ServicePort(tmp_path_factory.mktemp("services") / "data", key_file) as port:

        async def read() -> dict[str, dict[str, Any]]:
            return {table.SERVICE.full_name: dict(table.methods(port.service.host)) for table in TABLES}

        yield port._run(read())


def innermost(function: Any) -> Any:
    """The function that a method ends in, under what was wrapped around it."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            return function


def wrong(method: MethodDescriptor, entry: Any) -> str:
    """What is amiss with a table's entry; empty where nothing is."""
    function = innermost(entry)
    hints = typing.get_type_hints(function)
    returned = hints.pop("return")
    messages = [hint for hint in hints.values() if inspect.isclass(hint) and issubclass(hint, Message)]
    asked, answered = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    if messages and asked not in messages:
        return f"{method.full_name}: {function.__qualname__} takes {messages}"
    if inspect.isclass(returned) and issubclass(returned, Message) and returned not in (answered, Message):
        return f"{method.full_name}: {function.__qualname__} returns {returned}"
    return "" if messages else f"{method.full_name}: {function.__qualname__} takes no message"


def test_each_method_takes_and_returns_what_its_descriptor_names(tables: dict[str, dict[str, Any]]) -> None:
    faults = []
    for service in DESCRIPTORS:
        assert set(tables[service.full_name]) == {method.name for method in service.methods}
        for method in service.methods:
            entry = tables[service.full_name][method.name]
            if not isinstance(entry, Raw):
                faults.append(wrong(method, entry))
    assert not [fault for fault in faults if fault]


def test_a_swapped_entry_is_found(tables: dict[str, dict[str, Any]]) -> None:
    found = 0
    for service in DESCRIPTORS:
        entries = tables[service.full_name]
        for method in service.methods:
            others = [entries[name] for name in entries if name != method.name and not isinstance(entries[name], Raw)]
            found += sum(bool(wrong(method, other)) for other in others)
            assert all(wrong(method, other) for other in others)
    assert found > 500


def test_each_file_is_in_the_table() -> None:
    folder = Path(next(iter(yikatong.core.services.__path__)))
    assert {path.stem for path in folder.glob("*.py")} - NOT_SERVICES == {table.__name__.rpartition(".")[2] for table in TABLES}
    for table in TABLES:
        assert table.SERVICE.file.name == f"yikatong/v1/{table.__name__.rpartition('.')[2]}_service.proto"


def test_a_name_that_the_service_does_not_have() -> None:
    with pytest.raises(KeyError):
        on_wire(TABLES[0].SERVICE, {"GetNothing": Raw(lambda request, deadline: None)})  # type: ignore[arg-type,return-value]
