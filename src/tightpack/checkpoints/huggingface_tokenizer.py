"""A tokenizer and chat template from a Hugging Face directory: tokenizer.json and the files around it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from tightpack.checkpoints.chat_template import ChatTemplate
from tightpack.checkpoints.checkpoint import CheckpointError
from tightpack.checkpoints.json_file import read_object, read_optional_object
from tightpack.checkpoints.tokenizer import Tokenizer

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def huggingface_tokenizer(
    directory: Path, *, bos_token_id: int | None, eos_token_ids: Iterable[int]
) -> Tokenizer:
    """Raises CheckpointError naming the file at fault.

    bos_token_id, eos_token_ids: what the model's configuration says; the tokenizer's own end token is added.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path}: missing; transformers writes it: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path}: not readable as a tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    config = read_optional_object(directory / "tokenizer_config.json")
    _add_missing_tokens(backend, config, directory / "tokenizer_config.json")
    roles = {**read_optional_object(directory / "special_tokens_map.json"), **config}
    texts = {role: text for role in _ROLES if (text := _text(roles.get(role))) is not None}
    ids = {role: backend.token_to_id(text) for role, text in texts.items()}
    _apply_added_ends(backend, config, texts, ids)
    try:
        sources = _templates(directory, config)
        template = ChatTemplate(sources, texts) if sources else None
    except ValueError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    own_end = ids.get("eos_token")
    return Tokenizer(
        backend,
        bos_token_id=ids.get("bos_token") if bos_token_id is None else bos_token_id,
        eos_token_ids=[*eos_token_ids, *([] if own_end is None else [own_end])],
        chat_template=template,
        special_tokens=texts,
    )


def _text(token: Any) -> str | None:
    """Special tokens are written as text or as an object with `content`."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def _add_missing_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any], path: Path) -> None:
    """Tokens that only tokenizer_config.json has (`added_tokens_decoder`: id to token)."""
    added = config.get("added_tokens_decoder") or {}
    for token_id, token in sorted(added.items(), key=lambda item: int(item[0])):
        if backend.token_to_id(token["content"]) is not None:
            continue
        options = {
            name: bool(token.get(name, False))
            for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
        }
        backend.add_tokens([AddedToken(token["content"], **options)])
        if backend.token_to_id(token["content"]) != int(token_id):
            raise CheckpointError(
                f"{path}: 'added_tokens_decoder' gives {token['content']!r} the id {token_id}, but the next "
                f"free id of tokenizer.json is {backend.token_to_id(token['content'])}"
            )


def _apply_added_ends(
    backend: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    texts: Mapping[str, str],
    ids: Mapping[str, int | None],
) -> None:
    """`add_bos_token` and `add_eos_token`, where the publisher states them, override tokenizer.json as they
    do in transformers 5."""
    if "add_bos_token" not in config and "add_eos_token" not in config:
        return
    before, after = (
        [(texts[f"{role}_token"], ids[f"{role}_token"])]
        if config.get(f"add_{role}_token") and ids.get(f"{role}_token") is not None
        else []
        for role in ("bos", "eos")
    )
    single = [*(f"{text}:0" for text, _ in before), "$A:0", *(f"{text}:0" for text, _ in after)]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[*before, *after])


def _templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name; files of their own come before the one inside tokenizer_config.json."""
    sources: dict[str, str] = {}
    given = config.get("chat_template")
    if isinstance(given, str):
        sources["default"] = given
    elif isinstance(given, list):
        sources |= {str(entry["name"]): str(entry["template"]) for entry in given}
    elif given is not None:
        raise ValueError("tokenizer_config.json: 'chat_template' must be text or a list of named templates")
    if (directory / "chat_template.json").is_file():
        sources["default"] = str(read_object(directory / "chat_template.json").get("chat_template") or "")
    if (directory / "chat_template.jinja").is_file():
        sources["default"] = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        sources[path.stem] = path.read_text(encoding="utf-8")
    return {name: source for name, source in sources.items() if source}
