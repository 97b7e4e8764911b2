"""What the user can mend is one line on standard error; the list of commands is whole at 80 columns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tightpack.cli import main

COMMAND = [sys.executable, "-m", "tightpack.cli.main"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def test_a_failed_system_call_is_said_without_its_number(tmp_path: Path) -> None:
    absent = tmp_path / "absent.yaml"
    done = run("serve", "--service-classes", str(absent))
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"error: {absent}: no such file or directory"


def test_too_little_memory_is_one_line() -> None:
    done = run("serve", "--port", "0", "--num-blocks", str(10**10))
    assert done.returncode == 2
    assert done.stderr.startswith("error: num_blocks=10000000000 take")
    assert "Traceback" not in done.stderr


def test_every_command_has_a_whole_line_in_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for option in ("-h", "--help"):
        shown = CliRunner().invoke(main.app, [option])
        assert shown.exit_code == 0
        lines = shown.output.split("Commands:\n")[1].strip().splitlines()
        assert len(lines) == 14
        assert all(line.endswith(".") and not line.endswith("...") for line in lines)
