"""Service classes: the latency targets that a request was promised."""

from __future__ import annotations

from dataclasses import dataclass

# Large enough that nobody waits for ever, small enough that overload costs the others' goodput little.
DEFAULT_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class ServiceClass:
    """A named pair of targets in seconds; None promises nothing.

    ttft_s: arrival at the server to the first token.
    tpot_s: (last token - first token) / (output tokens - 1).
    share: of the prompt tokens computed, what the class is guaranteed for requests that have waited long.
    """

    name: str
    ttft_s: float | None = None
    tpot_s: float | None = None
    share: float = DEFAULT_SHARE

    def __post_init__(self) -> None:
        for label, target in (("ttft_s", self.ttft_s), ("tpot_s", self.tpot_s)):
            if target is not None and not target > 0:
                raise ValueError(
                    f"service class {self.name!r}: {label} must be positive seconds, got {target}"
                )
        if not 0 < self.share <= 1:
            raise ValueError(f"service class {self.name!r}: share must be in (0, 1], got {self.share}")


INTERACTIVE = ServiceClass("interactive", ttft_s=0.5, tpot_s=0.05)
STANDARD = ServiceClass("standard", ttft_s=2.0, tpot_s=0.1)
BATCH = ServiceClass("batch")
