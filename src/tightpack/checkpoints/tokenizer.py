"""Text to token ids and back, and the model's chat template, over Hugging Face's tokenizers library."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from tightpack.checkpoints.chat_template import ChatTemplate

_FALLBACK_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SENTENCEPIECE_SPACE = "\u2581"


class Tokenizer:
    """A model's tokenizer.

    backend: the tokenizers.Tokenizer; nothing in it is changed.
    chat_template: what `render_chat` renders, or None.
    special_tokens: roles to text, `bos_token`, `eos_token`, `pad_token`, `unk_token`.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token_id: int | None = None,
        eos_token_ids: Iterable[int] = (),
        chat_template: ChatTemplate | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.backend = backend
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(dict.fromkeys(eos_token_ids))
        self.chat_template = chat_template
        self.special_tokens = dict(special_tokens or {})
        added = backend.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._byte_level = _is_byte_level(backend)
        self._size = max(backend.get_vocab_size(with_added_tokens=True), max(self._added, default=-1) + 1)

    @property
    def vocab_size(self) -> int:
        """Ids that stand for something; a model's embedding may be padded beyond."""
        return self._size

    @property
    def kind(self) -> str:
        """In words, for people."""
        model = type(self.backend.model).__name__
        return f"byte-level {model}" if self._byte_level else f"{model} with byte fallback"

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Tokens that `decode` leaves out."""
        return self._special_ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids. Special tokens written out in the text become their ids.

        add_special_tokens: also what the model expects around a text, such as a beginning-of-text token.
        """
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text; bytes that are no UTF-8 become U+FFFD. Ids that stand for nothing are left out."""
        text: str = self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling, or None for an id that stands for nothing."""
        token: str | None = self.backend.id_to_token(token_id)
        return token

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for inside a text: joined over a sequence they are the text, UTF-8
        encoded.

        A token may hold part of a character. Special tokens give their text; ids that stand for nothing, b"".
        (SentencePiece drops the space that it puts before a text's first word; here that space is kept, as is
        right for a text that continues another.)
        """
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self.token(token_id)
        if token is None:
            return b""
        if self._byte_level:
            alphabet = byte_of_character()
            if all(character in alphabet for character in token):
                return bytes(alphabet[character] for character in token)
            return token.encode()
        fallback = _FALLBACK_BYTE.fullmatch(token)
        if fallback:
            return bytes([int(fallback[1], 16)])
        return token.replace(_SENTENCEPIECE_SPACE, " ").encode()

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **template_kwargs: Any,
    ) -> str:
        """The conversation as the model's prompt; encode it with add_special_tokens=False.

        Raises ValueError when the model has no chat template, or with what the template says.
        """
        if self.chat_template is None:
            raise ValueError("this model has no chat template; use a plain prompt")
        return self.chat_template.render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, **template_kwargs
        )


@functools.cache
def byte_of_character() -> Mapping[str, int]:
    """GPT-2's alphabet for bytes (Radford et al. 2019): printable Latin-1 stands for itself, the 68 others
    in order for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """Told from the decoder, the one part that must know how bytes are spelled."""
    decoder = backend.decoder
    if decoder is None:
        return False
    state = json.loads(decoder.__getstate__())
    parts = [state, *state.get("decoders", ())]
    return any(part.get("type") == "ByteLevel" for part in parts)
