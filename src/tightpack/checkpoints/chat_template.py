"""A model's chat template: Jinja in a sandbox, with the functions that published templates count on.

Follows what transformers offers to templates: trimmed blocks, loop controls, `tojson` without HTML escapes,
`raise_exception`, `strftime_now`, and `{% generation %}` (which marks the assistant's words for training).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class ChatTemplate:
    """One template, or several by name ("default", "tool_use"), of which the request picks.

    special_tokens: `bos_token`, `eos_token`, ... as text, which templates write out.
    Raises ValueError when a template does not parse.
    """

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        if not sources:
            raise ValueError("a chat template needs at least one source")
        self.sources = dict(sources)
        self._special_tokens = dict(special_tokens)
        environment = _environment()
        try:
            self._templates = {name: environment.from_string(text) for name, text in self.sources.items()}
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"the chat template has a syntax error on line {error.lineno}: {error.message}"
            ) from error

    @property
    def source(self) -> str:
        """The template used when a request names none and brings no tools."""
        return self.sources.get("default") or next(iter(self.sources.values()))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        **template_kwargs: Any,
    ) -> str:
        """The prompt as text. Raises ValueError with what the template says against the messages."""
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        template = self._templates.get(name) or next(iter(self._templates.values()))
        variables = {
            **self._special_tokens,
            "messages": [dict(message) for message in messages],
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **template_kwargs,
        }
        try:
            return template.render(variables)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses the messages: {error.message or error}") from error
        except (TypeError, KeyError, AttributeError, IndexError, ZeroDivisionError, OverflowError) as error:
            raise ValueError(f"the chat template failed on the messages: {error}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationBlock(Extension):
    """`{% generation %} ... {% endgeneration %}` renders as its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration is an instance attribute of this name

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes <, > and & for HTML, which models were not trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
