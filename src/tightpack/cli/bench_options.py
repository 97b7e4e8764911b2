"""The options of `tightpack bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

REQUESTS, CAPACITY_REQUESTS, INPUT_LEN, OUTPUT_LEN = 32, 128, 128, 64
# Three times the wait that a queue may grow to: an overload of a third shows, a smaller one by its misses.
PROBE_SECONDS = 36.0
# Well under the default number of requests: with one batch for all there would be no policy to compare.
MAX_NUM_SEQS = 8
# A simulated device has room for more, and serves thousands.
SIMULATED_MAX_NUM_SEQS = 256


def _panel(name: str) -> Any:
    """Makes options of one panel of the help."""

    def option(help: str, *names: str, metavar: str | None = None, envvar: str | None = None) -> Any:
        return typer.Option(*names, help=help, metavar=metavar, envvar=envvar, rich_help_panel=name)

    return option


_workload, _server = _panel("Workload"), _panel("A server instead of this process")
_simulation = _panel("A simulation instead of this machine")
_capacity, _results = _panel("Capacity"), _panel("Results")

PoliciesOption = Annotated[
    str | None, typer.Option(metavar="P,P,…", help="Those to compare, comma-separated.  [default: all]")
]
RequestsOption = Annotated[
    int | None, _workload(f"How many.  [default: {REQUESTS}; {CAPACITY_REQUESTS} with --find-capacity]")
]
InputLenOption = Annotated[int | None, _workload(f"Prompt tokens of each.  [default: {INPUT_LEN}]")]
OutputLenOption = Annotated[int | None, _workload(f"Output tokens of each.  [default: {OUTPUT_LEN}]")]
MixedOption = Annotated[
    bool, _workload("Long-tailed (log-normal) lengths; those above are their means.", "--mixed")
]
RateOption = Annotated[
    str | None,
    _workload("Arrivals a second, or several to try in turn; without it all come at once.", metavar="R,R,…"),
]
BurstinessOption = Annotated[
    float | None,
    _workload("Shape of the gamma-distributed gaps: 1 is Poisson, less comes in bursts.  [default: 1]"),
]
ClientsOption = Annotated[
    int | None,
    _workload("Closed loop: so many clients, each sending its next request when it has its answer."),
]
TraceOption = Annotated[
    Path | None,
    _workload(
        "Replay arrivals and lengths from TIMESTAMP, ContextTokens and GeneratedTokens.", metavar="FILE.csv"
    ),
]
TraceSkipOption = Annotated[int | None, _workload("Leave out the trace's first requests.  [default: 0]")]
TimeScaleOption = Annotated[
    float | None, _workload("Multiply the trace's gaps; 2 halves the load.  [default: 1]")
]
LengthScaleOption = Annotated[float | None, _workload("Multiply the trace's lengths.  [default: 1]")]
ServiceClassOption = Annotated[
    list[str] | None,
    _workload(
        "Targets of a service class in seconds, and its share, as interactive:ttft=0.5,tpot=0.05,share=0.3"
        " (none drops a target); repeatable.",
        metavar="NAME:…",
    ),
]
MixOption = Annotated[
    str | None,
    _workload(
        "How many requests are of which class, as interactive=0.7,batch=0.3.  [default: all standard]",
        metavar="NAME=SHARE,…",
    ),
]
ScenarioOption = Annotated[
    str | None,
    _workload("A workload and limits that show one thing: mixed or long-prompt.", metavar="NAME"),
]
SeedOption = Annotated[int, _workload("Of lengths, arrivals, classes and prompts; repeats count up from it.")]
MaxNumSeqsOption = Annotated[
    int | None,
    typer.Option(
        help=f"Requests in a batch at the most.  [default: {MAX_NUM_SEQS}; {SIMULATED_MAX_NUM_SEQS} on a"
        " simulated device]"
    ),
]
MaxNumBatchedTokensOption = Annotated[
    int | None,
    typer.Option(
        help="Tokens a step of chunked-prefill and slo; others take whole prompts.  [default: by device]"
    ),
]
MaxModelLenOption = Annotated[
    int | None, typer.Option(help="Context; longer requests are clipped.  [default: the model's]")
]
PrefixCachingOption = Annotated[
    bool,
    typer.Option("--enable-prefix-caching", help="Off unless given: random prompts share no beginnings."),
]
NoWarmupOption = Annotated[
    bool, typer.Option("--no-warmup", help="Measure at once, without a few short requests before.")
]
RepeatsOption = Annotated[
    int,
    typer.Option(
        help="Runs of each policy, in turns, each on newly drawn requests (or the trace's next segment); that"
        " of median throughput is shown, with 95 % confidence intervals of the means."
    ),
]
SimulateOption = Annotated[
    str | None,
    _simulation(
        "Everything on a virtual clock: a device by its data sheet and a model by name or config.json"
        " (8xh100:… for eight that share each layer; --quantization and --kv-cache-dtype as usual), or a"
        " file that `tightpack calibrate-cost` wrote.",
        metavar="DEVICE:MODEL|FILE",
    ),
]
UrlOption = Annotated[
    str | None,
    _server("Measure this OpenAI-compatible server over HTTP, whoever made it.", metavar="http://HOST:PORT"),
]
ServedModelOption = Annotated[
    str | None, _server("The model's name there.  [default: the one it lists]", "--model", metavar="NAME")
]
EndpointOption = Annotated[
    str, _server("completions, with prompts of token ids; or chat, with words, about a token each.")
]
IgnoreEosOption = Annotated[
    bool, _server("Ask for outputs of exactly the wanted length; not every server knows how.")
]
ApiKeyOption = Annotated[
    str | None, _server("The bearer token; it is in no result.", envvar="OPENAI_API_KEY")
]
FindCapacityOption = Annotated[
    bool,
    _capacity("Search the largest rate that meets the service level below.", "--find-capacity"),
]
AttainmentOption = Annotated[
    float | None,
    _capacity("The share of requests that must meet the targets of their class.  [default: 0.99]"),
]
LongestTtftOption = Annotated[
    float | None, _capacity("Seconds within which every request must have its first token.  [default: 12]")
]
BatchTokensOption = Annotated[
    float | None,
    _capacity("The share of the tokens of requests without targets that must be served.  [default: 0.9]"),
]
ResolutionOption = Annotated[
    float | None, _capacity("How closely to search, relative to the rate.  [default: 0.05]")
]
ProbeSecondsOption = Annotated[
    float | None,
    _capacity(
        "How long requests come at each rate tried, at the least; there are --requests at the least, too."
        f"  [default: {PROBE_SECONDS:g}]"
    ),
]
LabelOption = Annotated[
    str | None, _results("The name of these results beside others.  [default: the precision]")
]
HtmlOption = Annotated[
    Path | None, _results("Write one self-contained page with charts.", "--html", metavar="OUT.html")
]
BesideOption = Annotated[
    list[Path] | None,
    _results("Show these earlier results on the page as well; repeatable.", metavar="FILE.json"),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
