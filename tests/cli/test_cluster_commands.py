"""`tightpack cluster` and `tightpack batch`: what they refuse before anything starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LINE = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}


def tightpack(*options: str, without_ray: bool = False) -> subprocess.CompletedProcess[str]:
    hide = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n: f(n) if n != 'ray' else None"
    code = f"{hide if without_ray else ''}\nfrom tightpack.cli.main import main; main()"
    command = [sys.executable, "-c", code, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[0]


def test_without_the_extra(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("pools: {main: {replicas: 2}}")
    (tmp_path / "b.jsonl").write_text(json.dumps(LINE))
    said = refused(tightpack("cluster", str(tmp_path / "c.yaml"), without_ray=True))
    assert said.startswith("error: tightpack cluster needs Ray")
    assert "pip install 'tightpack[cluster]'" in said
    options = ("batch", str(tmp_path / "b.jsonl"), "-o", str(tmp_path / "o"), "--replicas", "2")
    assert "pip install 'tightpack[cluster]'" in refused(tightpack(*options, without_ray=True))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pools: {main: {replica: 2}}", "did you mean 'replicas'?"),
        ("pools: [", "is neither YAML nor JSON"),
        ("[]", "must be a mapping with pools"),
    ],
)
def test_a_wrong_configuration(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert said in refused(tightpack("cluster", str(tmp_path / "c.yaml")))


def test_a_missing_configuration(tmp_path: Path) -> None:
    assert "no such file" in refused(tightpack("cluster", str(tmp_path / "none.yaml")))


def test_wrong_batches(tmp_path: Path) -> None:
    file, out = tmp_path / "b.jsonl", str(tmp_path / "o")
    file.write_text("\n".join([json.dumps(LINE)] * 2))
    assert "duplicate_custom_id: 'a' on lines 1 and 2" in refused(tightpack("batch", str(file), "-o", out))
    file.write_text("\n")
    assert "has no lines" in refused(tightpack("batch", str(file), "-o", out))
    file.write_text(json.dumps(LINE))
    assert "another file" in refused(tightpack("batch", str(file), "-o", str(file)))
    said = refused(tightpack("batch", str(file), "-o", out, "--url", "http://x", "--model", "m"))
    assert "Give one of them" in said
    said = refused(tightpack("batch", str(file), "-o", out, "--url", "http://127.0.0.1:9"))
    assert "does not answer as an OpenAI-compatible server" in said
