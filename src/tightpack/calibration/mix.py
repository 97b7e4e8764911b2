"""Which precision each site takes where they are mixed: solved from measured sensitivities, and solved again
for less where the result came out further from the original than it may be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from tightpack.calibration.mixed_precision import Option, assign_precisions, smallest_assignment
from tightpack.calibration.sensitivity import Candidate, Unit
from tightpack.calibration.sites import DENSE, SiteScheme

# Of max_kl, what a first mix is expected to reach: the text that it is then held to is another.
_MARGIN = 0.7
# Of what measured over expected says, what a further one is: the ratio is not quite the same for every mix.
_FURTHER = 0.95
# A result that is still too far after so many is not one of expectations that were a little off.
_MOST_MIXES = 4
_DENSE_BITS = 16


@dataclass(frozen=True, slots=True)
class Mix:
    """A choice among the candidates of each site.

    candidates: of each quantized site, with the KL divergence that each is expected to bring.
    chosen: index of the candidate of each site, in their order.
    tries: mixes solved so far, this one included.
    """

    candidates: Mapping[Unit, Sequence[Candidate]]
    chosen: tuple[int, ...]
    tries: int = 1

    @classmethod
    def within_bits(cls, candidates: Mapping[Unit, Sequence[Candidate]], target_bits: float) -> Mix:
        """The least sum of expected divergences within so many bits a weight.

        ValueError where the smallest candidates take more.
        """
        budget = int(target_bits / _DENSE_BITS * _dense_bytes(candidates))
        try:
            return cls(candidates, tuple(assign_precisions(_options(candidates), budget)))
        except ValueError as error:
            smallest = sum(min(one.num_bytes for one in found) for found in candidates.values())
            least = _DENSE_BITS * smallest / _dense_bytes(candidates)
            raise ValueError(
                f"target_bits={target_bits:g} is too few: the smallest schemes take {least:.3f} bits a weight"
            ) from error

    @classmethod
    def within_divergence(cls, candidates: Mapping[Unit, Sequence[Candidate]], max_kl: float) -> Mix:
        """The fewest bytes whose expected divergences sum to seven tenths of `max_kl` at most.

        ValueError where no site can be quantized within that.
        """
        mix = cls(candidates, tuple(smallest_assignment(_options(candidates), _MARGIN * max_kl)))
        if mix._quantizes_nothing:
            raise ValueError(
                f"max_kl={max_kl:g} is too little: no linear can be quantized and keep within it"
            )
        return mix

    def tightened(self, measured_kl: float, max_kl: float) -> Mix | None:
        """A mix that is expected to keep `max_kl`, now that this one was measured above it: divergences are
        taken to be off by one factor. None where there was a fair number of tries, and where nothing but
        16 bits is left."""
        if self.tries >= _MOST_MIXES:
            return None
        aim = _FURTHER * self.expected_kl * max_kl / measured_kl
        mix = replace(
            self, chosen=tuple(smallest_assignment(_options(self.candidates), aim)), tries=self.tries + 1
        )
        return None if mix._quantizes_nothing else mix

    @property
    def expected_kl(self) -> float:
        """Nats: the sum over the sites."""
        return sum(candidate.error for candidate in self._taken)

    @property
    def bits_per_weight(self) -> float:
        """Scales and zero-points included, over the sites."""
        taken = sum(candidate.num_bytes for candidate in self._taken)
        return _DENSE_BITS * taken / _dense_bytes(self.candidates)

    @property
    def schemes(self) -> dict[Unit, SiteScheme]:
        return {unit: candidate.scheme for unit, candidate in zip(self.candidates, self._taken, strict=True)}

    def as_json(self) -> str:
        found = [
            [layer, site, [asdict(candidate) for candidate in candidates]]
            for (layer, site), candidates in self.candidates.items()
        ]
        return json.dumps({"candidates": found, "chosen": self.chosen, "tries": self.tries})

    @classmethod
    def from_json(cls, text: str) -> Mix:
        stored = json.loads(text)
        candidates = {
            (layer, site): [
                Candidate(SiteScheme(**one["scheme"]), one["num_bytes"], one["error"]) for one in found
            ]
            for layer, site, found in stored["candidates"]
        }
        return cls(candidates, tuple(stored["chosen"]), stored["tries"])

    @property
    def _taken(self) -> list[Candidate]:
        return [found[index] for found, index in zip(self.candidates.values(), self.chosen, strict=True)]

    @property
    def _quantizes_nothing(self) -> bool:
        return all(candidate.scheme == DENSE for candidate in self._taken)


def _options(candidates: Mapping[Unit, Sequence[Candidate]]) -> list[list[Option]]:
    return [[Option(one.num_bytes, one.error) for one in found] for found in candidates.values()]


def _dense_bytes(candidates: Mapping[Unit, Sequence[Candidate]]) -> int:
    """Of all sites, where none is quantized: every one has that candidate."""
    return sum(one.num_bytes for found in candidates.values() for one in found if one.scheme == DENSE)
