"""Chat templates against transformers' rendering, and what happens when they object."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import transformers

from tightpack.checkpoints.chat_template import ChatTemplate
from tightpack.checkpoints.open import bundled_gguf, open_checkpoint
from tightpack.checkpoints.tokenizer import Tokenizer

MESSAGES = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": '  And of "Perù"? '},
]
TOOLS = [{"type": "function", "function": {"name": "zip", "parameters": {"é": "<&>", "a": [1, None]}}}]
RICH = """
{%- for message in messages -%}
    {%- if message.role == 'system' %}{% continue %}{% endif -%}
    {{ '<' + message['role'] + '>' }}
    {% generation %}{{ message.content | trim }}{% endgeneration %}
{% endfor %}
{%- if tools %}{% for tool in tools %}{{ tool | tojson }}|{{ tool | tojson(indent=2) }}{% endfor %}{% endif %}
{%- set ns = namespace(count=0) %}{% for m in messages %}{% set ns.count = ns.count + 1 %}{% endfor %}
{{ ns.count }}{{ bos_token }}{{ eos_token }}{{ extra if extra is defined else 'none' }}
{%- if add_generation_prompt %}GO{% endif %}
"""


def test_smollm_as_transformers_renders_it() -> None:
    ours = open_checkpoint("smollm2-135m").tokenizer
    path = bundled_gguf()
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[:1]):
        for prompted in (True, False):
            text = ours.render_chat(messages, add_generation_prompt=prompted)
            assert text == theirs.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompted
            )
            ids = theirs.apply_chat_template(messages, add_generation_prompt=prompted, return_dict=False)
            assert ours.encode(text, add_special_tokens=False) == list(ids)


@pytest.fixture
def with_template(directory_of: Callable[[str], Path], tmp_path: Path) -> Callable[[Any], Path]:
    def build(template: Any) -> Path:
        directory = Path(shutil.copytree(directory_of("llama"), tmp_path / "llama"))
        (directory / "chat_template.jinja").unlink()
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
        return directory

    return build


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_what_templates_count_on(tools: Any, with_template: Callable[[Any], Path]) -> None:
    directory = with_template(RICH)
    ours: Tokenizer = open_checkpoint(str(directory)).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    for extra in ({}, {"extra": "given"}):
        text = ours.render_chat(MESSAGES, tools=tools, **extra)
        wanted = theirs.apply_chat_template(
            MESSAGES, tools=tools, tokenize=False, add_generation_prompt=True, **extra
        )
        assert text == wanted
    assert "GO" in text
    assert "given" in text


def test_named_templates(with_template: Callable[[Any], Path]) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    tokenizer = open_checkpoint(str(with_template(named))).tokenizer
    assert tokenizer.render_chat(MESSAGES) == "plain"
    assert tokenizer.render_chat(MESSAGES, tools=TOOLS) == "tools"


def test_template_files(with_template: Callable[[Any], Path]) -> None:
    directory = with_template("inside")
    assert open_checkpoint(str(directory)).tokenizer.render_chat(MESSAGES) == "inside"
    (directory / "chat_template.json").write_text('{"chat_template": "json"}')
    assert open_checkpoint(str(directory)).tokenizer.render_chat(MESSAGES) == "json"
    (directory / "chat_template.jinja").write_text("jinja")
    assert open_checkpoint(str(directory)).tokenizer.render_chat(MESSAGES) == "jinja"
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text("more")
    assert open_checkpoint(str(directory)).tokenizer.render_chat(MESSAGES, tools=TOOLS) == "more"


def test_no_template(with_template: Callable[[Any], Path]) -> None:
    tokenizer = open_checkpoint(str(with_template(None))).tokenizer
    assert not tokenizer.has_chat_template
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.render_chat(MESSAGES)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses the messages: roles must alternate"),
        ("{{ messages[9].content.strip() }}", "has no element 9|undefined"),
        ("{{ 1 / 0 }}", "failed on the messages: division by zero"),
        ("{{ messages[0]['content'] + 1 }}", "failed on the messages: .*str"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|access"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ range(10 ** 9) }}", "(?i)range too big"),
    ],
)
def test_objections_are_clear(source: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ChatTemplate({"default": source}, {}).render(MESSAGES, add_generation_prompt=True, tools=None)


def test_syntax_errors_name_the_line() -> None:
    with pytest.raises(ValueError, match="syntax error on line 2"):
        ChatTemplate({"default": "fine\n{% for %}"}, {})


def test_date() -> None:
    template = ChatTemplate({"default": "{{ strftime_now('%Y') }}"}, {})
    years = {str(datetime.now().year), str(datetime.now().year + 1)}
    assert template.render([], add_generation_prompt=False, tools=None) in years
