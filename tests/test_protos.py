"""The protos: lint-clean, and compatible with what was released (proto/released.binpb, made by `buf build`)."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUF = ROOT / "build/buf/node_modules/.bin/buf"


def buf(*arguments: str) -> None:
    assert BUF.exists(), "buf is not here: run `sh .ci/packages test`"
    done = subprocess.run([BUF, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lint() -> None:
    buf("lint")


def test_nothing_that_was_released_breaks() -> None:
    buf("breaking", "--against", "proto/released.binpb")


def test_a_break_would_be_seen(tmp_path: Path) -> None:
    """The check itself works: a renumbered field is refused."""
    (tmp_path / "buf.yaml").write_text((ROOT / "buf.yaml").read_text())
    for proto in (ROOT / "proto").rglob("*.proto"):
        target = tmp_path / proto.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(proto.read_text().replace("int64 amount_fen = 8;", "int64 amount_fen = 80;"))
    with pytest.raises(AssertionError, match="amount_fen"):
        buf("breaking", str(tmp_path), "--against", "proto/released.binpb")
