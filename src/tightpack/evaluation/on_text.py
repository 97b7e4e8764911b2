"""A model judged on a text, alone or beside its original."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from tightpack.calibration.data_sets import open_text
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.open import open_checkpoint
from tightpack.evaluation.comparison import Quality, measure
from tightpack.evaluation.sequence_logits import SequenceLogits
from tightpack.torch_backend.sizing import resolve_device, resolve_dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEvaluation:
    """Which sequences are measured, and how they are computed.

    text: a file or a data set, as `data_sets.open_text` takes it.
    samples: sequences at the most; None takes all that follow `skip`.
    sequence_length: tokens of each, read from an empty context.
    skip: sequences to leave out at the start; negative counts from the end.
    dtype: of dense weights and activations in PyTorch.
    native: judge the model in the executor that serves on CPUs, with `activation_dtype`; the reference stays
        in PyTorch.
    """

    text: str
    samples: int | None = None
    sequence_length: int = 512
    skip: int = 0
    dtype: str = "float32"
    device: str = "auto"
    num_threads: int | None = None
    native: bool = False
    activation_dtype: str = "auto"

    def of(self, model: str, reference: str | None) -> tuple[Quality, str]:
        """The quality of `model`, and the name of its checkpoint.

        Both run side by side, a sequence at a time, so that no logits are kept. Raises ValueError where the
        two do not share a vocabulary, or the text is too short.
        """
        checkpoint = open_checkpoint(model)
        original = None if reference is None else open_checkpoint(reference)
        if original is not None and original.spec.vocab_size != checkpoint.spec.vocab_size:
            raise ValueError(
                f"{model} has a vocabulary of {checkpoint.spec.vocab_size} and {reference} of "
                f"{original.spec.vocab_size}: their distributions cannot be compared"
            )
        # The reference's tokenizer would give the same ids; the judged model's is the one that must be right.
        wanted = None
        if self.samples is not None and self.skip >= 0:
            wanted = (self.skip + self.samples) * self.sequence_length
        tokens = open_text(self.text, checkpoint.tokenizer, wanted)
        sequences = tokens.sequences(self.sequence_length, skip=self.skip, count=self.samples)
        with ExitStack() as stack:
            own = stack.enter_context(self._logits(checkpoint, self.native)).each(sequences)
            other = None
            if original is not None:
                other = stack.enter_context(self._logits(original, native=False)).each(sequences)
            return measure(sequences, own, other), checkpoint.name

    def _logits(self, checkpoint: Checkpoint, native: bool) -> SequenceLogits:
        return SequenceLogits(
            checkpoint,
            sequence_length=self.sequence_length,
            dtype=resolve_dtype(self.dtype, checkpoint),
            device=resolve_device(self.device),
            num_threads=self.num_threads,
            native=native,
            activation_dtype=self.activation_dtype,
        )
