"""Fetching a model of the Hugging Face hub by its id."""

from __future__ import annotations

from pathlib import Path

from tightpack.checkpoints.checkpoint import CheckpointError

# Never pickles, never code; `original/` and `onnx/` repeat the weights in other layouts.
_WANTED = ("*.json", "*.safetensors", "*.jinja")
_UNWANTED = ("original/*", "onnx/*", "consolidated*")


def fetch(model_id: str) -> Path:
    """The local directory of a hub id, downloaded where it is not in the cache.

    Raises CheckpointError saying why it cannot be had and what to give instead.
    """
    # Imported here: its start-up costs as much as opening a local model.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    instead = "If you have its files, give the directory that holds config.json instead"
    try:
        return Path(
            snapshot_download(model_id, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED))
        )
    except GatedRepoError as error:
        reason = "it asks you to accept its conditions on the hub and to log in (hf auth login)"
        raise CheckpointError(f"{model_id}: cannot be fetched: {reason}. {instead}") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{model_id}: no such model on the hub, and no such directory. {instead}"
        ) from error
    except Exception as error:  # the client lets through whatever its HTTP library raises
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{model_id}: neither a directory here nor in the cache, and the hub cannot be reached "
            f"({cause}). {instead}"
        ) from error
