"""The bundled model: its logits against transformers reading the same file, and that it knows a capital."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tightpack.checkpoints.open import bundled_gguf, open_checkpoint
from tightpack.scheduling.plan import StepPlan

TEXT = """\
The harbour town woke early on market days. Before the sun had cleared the low hills, carts were already \
rattling over the bridge, loaded with barley, cheese, and baskets of late apples. Anna, who kept the ledger \
for the mill, counted them from her window: eleven from the valley, four from the coast road, and one, \
painted blue, that she had never seen before.

"Who drives the blue one?" she asked her brother at breakfast.

"A surveyor," said Tom. "He measures rivers. He says that ours moves 3.5 metres to the west every century, \
and that by 2140 the old church will stand on an island."

She laughed, but she wrote the number down. Numbers were her trade. In 1987 the mill had ground 412 tonnes \
of flour; in 1988 only 390; after the flood of 1989 it was closed for seven months, and the family lived on \
what the garden gave them. If the river moved, the wheel would stop. What would they sell then?

That afternoon she walked down to the bank with a rope and a notebook. The method was simple. First, fix a \
post that cannot move. Second, measure the distance to the water's edge at the same hour each week. Third, \
write everything down, even when nothing changes, because nothing is also a result. A small program could \
keep the averages: for week in weeks: total += distance[week]; mean = total / len(weeks).

The surveyor found her there at dusk, with mud on her boots and a frown on her face. He looked at the page, \
then at the post, and smiled. "You have made an error of sign," he said kindly. "The river is not leaving \
you. It is coming." They stood for a while without speaking and watched the current pull at the reeds. The \
town bell rang six times. Somewhere behind them a door opened, warm light fell across the path, and a \
child's voice called that supper was ready, that there was soup, and that the bread was getting cold. Anna \
closed the book. Tomorrow she would move the post, begin a new column, and ask the old people what the \
church records said about the years before the bridge was built, when the ferry still crossed at the ford \
below the willows and the toll was a penny for a man and two for a horse.
"""


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint("smollm2-135m")


@pytest.fixture(scope="module")
def exact(checkpoint, make_executor):
    return make_executor(checkpoint, block_size=16, num_blocks=80, max_model_len=512)


def reference_logits(tokens):
    """transformers' model with its own reading of the GGUF (its loader would want one more package)."""
    with torch.device("meta"):  # no memory, and no random numbers for weights to be replaced
        names = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=30))
        loaded = load_gguf_checkpoint(str(bundled_gguf()), return_tensors=True, model_to_load=names)
        config = transformers.AutoConfig.for_model(**loaded["config"])
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = loaded["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]


def relative_error(ours, reference):
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def test_logits_match_transformers_on_512_tokens(checkpoint, exact, make_request, sequencer):
    """One prompt whole, and again in chunks and single tokens beside another request."""
    tokens = checkpoint.tokenizer.encode(TEXT)[:512]
    assert len(tokens) == 512
    expected = reference_logits(tokens)
    whole = exact.logits([sequencer(exact).chunk(make_request(tokens))])
    assert relative_error(whole, expected) < 1e-4
    assert (whole.argmax(-1) == expected.argmax(-1)).float().mean() > 0.99
    blocks = sequencer(exact, seed=1)
    request, other = make_request(tokens), make_request(tokens[100:], "other")
    parts = []
    for count in (1, 200, 97, 1, 1, 1, 150, 61):
        parts.append(exact.logits([blocks.chunk(other, 7), blocks.chunk(request, count)])[7:])
    assert relative_error(torch.cat(parts), expected) < 1e-4


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=str)
def executor(request, checkpoint, make_executor, exact):
    return exact if request.param == torch.float32 else make_executor(checkpoint, dtype=request.param)


def test_it_knows_the_capital_of_france(executor, checkpoint, make_request, sequencer):
    blocks = sequencer(executor)
    request = make_request(checkpoint.tokenizer.encode("The capital of France is"))
    for _ in range(8):
        result = executor.execute(StepPlan((blocks.chunk(request),)))
        request.token_ids.append(result.sampled["request"].token_id)
    assert "Paris" in checkpoint.tokenizer.decode(request.output_token_ids)
