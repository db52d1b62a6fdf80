"""What the documents say is so: the settings table is the generated one, commands, links and packages are there."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from yikatong.bench.run import BENCHES
from yikatong.core import cli
from yikatong.core.config import read_settings, settings_table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_settings_table_is_the_generated_one() -> None:
    assert settings_table() in README


def test_every_command_is_in_the_table_and_runs() -> None:
    named = set(re.findall(r"^\| `yikatong ([\w-]+)", README, re.MULTILINE))
    assert named == set(cli.cli.commands)
    for name in named:
        command = [sys.executable, "-m", "yikatong.core.cli", name, "--help"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_commands_in_code_blocks_use_flags_that_exist() -> None:
    for line in re.findall(r"^(?:\.venv/bin/)?yikatong (.+)$", README, re.MULTILINE):
        name, *words = line.split()
        command = cli.cli.commands[name]
        if isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line
        if name == "bench":
            assert {word for word in words if not word.startswith("--")} <= set(BENCHES)


@pytest.mark.parametrize("document", ["README.md", "core/README.md", "bench/README.md"])
def test_links_and_named_files_are_there(document: str) -> None:
    path = ROOT / document
    text = path.read_text("utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / link).exists(), link
    for name in re.findall(r"`((?:core|ext|clients|bench|tests|proto)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_configuration_shown_can_be_read(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```toml\n(.+?)```", README, re.DOTALL)
    file = tmp_path / "yikatong.toml"
    file.write_text(shown)
    assert read_settings(file, {}).json_logs


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=]", requirement)[0]
        assert re.search(rf"^\|[^|]*\b{re.escape(name)}\b", README, re.MULTILINE), name
