"""A progress bar of requests with tokens a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, int], None]


@contextmanager
def progress_bar(total: int, label: str, hidden: bool = False) -> Iterator[Advance]:
    """Yields `advance(finished, tokens)`. Drawn on standard error, and only on a terminal."""
    if hidden:
        yield lambda finished, tokens: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:>7.1f} tokens/s"),
        TimeElapsedColumn(),
    )
    tokens_so_far = 0
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total, rate=0.0)

        def advance(finished: int, tokens: int) -> None:
            nonlocal tokens_so_far
            tokens_so_far += tokens
            elapsed = progress.tasks[task].elapsed
            progress.update(task, advance=finished, rate=tokens_so_far / elapsed if elapsed else 0.0)

        yield advance


@contextmanager
def share_bar(label: str, hidden: bool = False) -> Iterator[Callable[[float, str], None]]:
    """Yields `advance(share done, what is under way)`. Drawn on standard error, and only on a terminal."""
    if hidden:
        yield lambda share, words: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=1.0, words="")

        def advance(share: float, words: str) -> None:
            progress.update(task, completed=min(share, 1.0), words=words)

        yield advance
