"""Word error rate, as speech recognition papers count it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
from whisper_normalizer.english import EnglishTextNormalizer


@dataclass(frozen=True, slots=True)
class WordErrors:
    """Errors over all texts together: (substitutions + deletions + insertions) / words of the references."""

    words: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def percent(self) -> float:
        """The word error rate, in percent."""
        return 100 * (self.substitutions + self.deletions + self.insertions) / self.words


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Compare texts after Whisper's English normalisation (spelling, numbers, punctuation, fillers).

    Raises:
        ValueError: no words to compare with.
    """
    normalize = EnglishTextNormalizer()
    pairs = [(normalize(reference), normalize(text)) for reference, text in zip(references, hypotheses, strict=True)]
    spoken = [(reference, text) for reference, text in pairs if reference]
    if not spoken:
        raise ValueError("no words to compare with")
    output = jiwer.process_words([reference for reference, _ in spoken], [text for _, text in spoken])
    words = output.hits + output.substitutions + output.deletions
    return WordErrors(words, output.substitutions, output.deletions, output.insertions)
