"""The conversation in the terminal, over an engine without a model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tightpack.cli.chat import chat


class Parrot:
    """Answers with the last word; is interrupted by "stop" and refuses "long"."""

    model_name = "parrot"

    def __init__(self, **arguments: Any) -> None:
        self.closed = False
        self.tokenizer = self
        self.heard: list[str] = []

    def render_chat(self, messages: Sequence[dict[str, str]], **how: Any) -> str:
        self.heard.append("|".join(message["content"] for message in messages))
        return messages[-1]["content"]

    def encode(self, text: str, **how: Any) -> str:
        return text

    async def stream(self, prompt: dict[str, str], params: Any) -> AsyncGenerator[Any]:
        said = prompt["prompt_token_ids"]
        if said == "long":
            raise ValueError("the prompt has 9000 tokens")
        yield SimpleNamespace(text=said.upper(), error=None)
        if said == "stop":
            raise KeyboardInterrupt

    def close(self) -> None:
        self.closed = True


def test_what_goes_wrong_with_one_answer_does_not_end_the_conversation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parrot = Parrot()
    monkeypatch.setattr("tightpack.async_llm.AsyncLLM", lambda **arguments: parrot)
    app = typer.Typer()
    app.command()(chat)
    done = CliRunner().invoke(app, ["--system", "s"], input="hello\nlong\nstop\nagain\n/clear\nanew\n/exit\n")
    assert done.exit_code == 0, done.output
    assert "the prompt has 9000 tokens; /clear begins anew" in done.output
    assert "STOP [stopped]" in done.output
    assert parrot.heard == [
        "s|hello",
        "s|hello|HELLO|long",
        "s|hello|HELLO|stop",
        "s|hello|HELLO|again",
        "s|anew",
    ]
    assert parrot.closed
