"""From times within a chunk of glued speech to times in the recording, and from words to segments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, islice, pairwise
from typing import Final

import msgspec

from metalscribe.engine.messages import AlignedWord, RowDone
from metalscribe.media.messages import Piece
from metalscribe.media.pcm import SAMPLE_RATE
from metalscribe.transcript import Segment, Task, Word

_SENTENCE_END: Final = (".", "!", "?", "…", "。", "！", "？", "।", "؟")
_PAUSE: Final = 1.0
_MAX_SEGMENT: Final = 20.0
_LONGEST_WORD: Final = 2.0
_UNSPACED: Final = frozenset(
    {"zh", "ja", "th", "lo", "my", "yue"}
)  # those whose text the tokenizer cuts letter by letter
_SECONDS_PER_LETTER: Final = 0.06


class Timeline:
    """Where samples of the ring's axis stood in the recording.

    Pieces are appended as chunks arrive and looked up by ring position; both axes only grow.
    """

    def __init__(self) -> None:
        self._pieces: list[tuple[int, int, int]] = []  # ring position, length, place in the recording

    def append(self, start: int, pieces: Iterable[Piece]) -> None:
        """The chunk at ring position ``start`` consists of these pieces."""
        for piece in pieces:
            self._pieces.append((start, piece.length, piece.source))
            start += piece.length

    def forget(self, before: int) -> None:
        """Ring positions before this one will not be asked for."""
        while len(self._pieces) > 1 and self._pieces[0][0] + self._pieces[0][1] <= before:
            self._pieces.pop(0)

    def span(self, start: float, end: float) -> tuple[float, float]:
        """Seconds on the ring's axis to seconds in the recording.

        A span stays within the piece that holds its middle: a word does not stretch across silence that was cut out.
        """
        at, length, source = self._piece((start + end) / 2)
        low, high = source / SAMPLE_RATE, (source + length) / SAMPLE_RATE
        offset = (source - at) / SAMPLE_RATE
        begin = min(max(start + offset, low), high)
        return begin, min(max(end + offset, begin), high)

    def wide_span(self, start: float, end: float) -> tuple[float, float]:
        """Like :meth:`span`, but each end is placed by itself: for what may contain silence."""
        begin = self.span(start, start)[0]
        return begin, max(begin, self.span(end, end)[1])

    def _piece(self, seconds: float) -> tuple[int, int, int]:
        position = seconds * SAMPLE_RATE
        for piece in self._pieces:
            if position <= piece[0] + piece[1]:
                return piece
        return self._pieces[-1]


def whole_words(aligned: Sequence[AlignedWord], language: str, task: Task) -> list[AlignedWord]:
    """The words as they are written: what no space parts from the word before it belongs to it (``o'clock``, ``1,000``, ``e-mail``).

    Alignment cuts at punctuation, and wherever a letter ends if the spoken language is written without spaces, be the text
    a translation into English or not.
    """
    if language in _UNSPACED and task is not Task.TRANSLATE:
        return list(aligned)
    words: list[AlignedWord] = []
    for word in aligned:
        if not words or word.text[:1].isspace():
            words.append(word)
            continue
        last = words[-1]
        tokens = last.tokens + word.tokens
        shares = (last.tokens / tokens, word.tokens / tokens) if tokens else (0.5, 0.5)
        probability = last.probability * shares[0] + word.probability * shares[1]
        words[-1] = AlignedWord(last.start, max(last.end, word.end), last.text + word.text, probability, tokens)
    return words


def place_words(aligned: Sequence[AlignedWord], offset: float, timeline: Timeline) -> list[Word]:
    """Words of a row that begins ``offset`` seconds on the ring's axis, placed in the recording; never backwards."""
    words: list[Word] = []
    floor = 0.0
    for word in lasting(aligned):
        start, end = timeline.span(offset + word.start, offset + word.end)
        if end - start > _LONGEST_WORD:
            # Alignment lets the first and last word of a phrase swallow the pause beside it; the near end is right.
            start, end = (end - _LONGEST_WORD, end) if not words else (start, start + _LONGEST_WORD)
        start = max(start, floor)
        end = max(end, start)
        words.append(Word(start, end, word.text, min(1.0, max(0.0, word.probability)), word.tokens))
        floor = end
    return words


def lasting(aligned: Sequence[AlignedWord]) -> list[AlignedWord]:
    """The words, each of which lasts for a while.

    Alignment has a resolution of 20 ms and hurries over short words: it gives their time to the next word, or to a comma
    behind them, or at the end of a row to the word before. They get a share of it by their letters.
    """
    words = list(aligned)
    begin = 0
    while begin < len(words):
        moment = words[begin].start
        end = begin
        while end < len(words) and words[end].end <= moment:
            end += 1
        hurried = words[begin:end]
        after = words[end] if end < len(words) else None
        if hurried and after is not None and after.start > moment:
            time = _SECONDS_PER_LETTER * sum(map(_letters, hurried))
            words[begin:end] = _sharing(hurried, moment, min(after.start, moment + time))
        elif hurried and after is not None:
            words[begin : end + 1] = _sharing([*hurried, after], moment, after.end)
        elif hurried and begin > 0:
            words[begin - 1 :] = _sharing([words[begin - 1], *hurried], words[begin - 1].start, moment)
        begin = max(end, begin + 1)
    return words


def _sharing(words: Sequence[AlignedWord], start: float, end: float) -> list[AlignedWord]:
    """The words one after another between the two times, each by its letters."""
    shares = list(accumulate((_letters(word) for word in words), initial=0))
    marks = [start + (end - start) * share / shares[-1] for share in shares[:-1]] + [end]
    return [
        msgspec.structs.replace(word, start=begin, end=finish)
        for word, (begin, finish) in zip(words, pairwise(marks), strict=True)
    ]


def _letters(word: AlignedWord) -> int:
    return max(1, len(word.text.strip()))


def sentences(words: Sequence[Word]) -> list[list[Word]]:
    """Words grouped into segments: up to the end of a sentence, a long pause, or about twenty seconds."""
    groups: list[list[Word]] = []
    for word in words:
        if groups and not _closes(groups[-1], word):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def _closes(group: Sequence[Word], following: Word) -> bool:
    last = group[-1]
    if following.start - last.end >= _PAUSE or following.end - group[0].start > _MAX_SEGMENT:
        return True
    if not last.text.rstrip("\"'”’)»").endswith(_SENTENCE_END):
        return False
    # Not after an abbreviation or within a number: the next word would go on in lower case or without a space.
    goes_on = not following.text[:1].isspace() or following.text.strip()[:1].islower()
    return not goes_on or not following.text[:1].isascii()


def segments_of(
    result: RowDone,
    words: Sequence[Word],
    span: tuple[float, float],
    first_index: int,
    temperature: float = 0.0,
) -> list[Segment]:
    """The segments of a row, found at ``temperature``: by its words where they are known, else one for the whole row."""
    tokens = iter(result.tokens)

    def segment(index: int, start: float, end: float, text: str, within: tuple[Word, ...]) -> Segment:
        return Segment(
            index=index,
            start=start,
            end=end,
            text=text,
            words=within,
            avg_logprob=result.avg_logprob,
            no_speech_prob=result.no_speech_prob,
            compression_ratio=result.compression_ratio,
            tokens=tuple(islice(tokens, sum(word.tokens for word in within))) if within else tuple(tokens),
            temperature=temperature,
        )

    if not result.text.strip():
        return []
    if not words:
        return [segment(first_index, span[0], span[1], result.text, ())]
    return [
        segment(first_index + number, group[0].start, group[-1].end, "".join(word.text for word in group), tuple(group))
        for number, group in enumerate(sentences(words))
    ]
