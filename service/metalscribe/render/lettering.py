"""What a line of text is made of: which characters may stand in it, how wide they are, where it may break."""

from __future__ import annotations

import re
import unicodedata

_SURROGATES = re.compile("[\ud800-\udfff]")
# Control characters (C0, DEL, C1), the line and paragraph separators, and every space but the no-break ones.
_GAPS = re.compile(r"(?:[^\S\u00a0\u2007\u202f]|[\x00-\x1f\x7f-\x9f\u2028\u2029])+")
_ARROW = re.compile("-{2,}>")
_HYPHENS = re.compile("-{2,}")

# Han, kana, bopomofo and their punctuation: a line may break between any two of them. Hangul is left out although it is
# as wide: Korean puts spaces between words. Emoji are left out because a sequence of them may be one picture.
_EAST_ASIAN = re.compile("[\u2e80-\u312f\u31a0-\ua4cf\uf900-\ufaff\uff00-\uff9f\uffe0-\uffee\U00020000-\U0003ffff]")
# Thai, Lao, Myanmar and Khmer also write words without spaces, but only a dictionary or the model knows the words.
_SOUTH_EAST_ASIAN = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\uaa60-\uaa7f]")

# After Unicode's line breaking rules (UAX #14, classes CL, CP, EX, NS, CM against OP), by general category.
_NEVER_FIRST = frozenset({"Pe", "Pf", "Po", "Mn", "Mc", "Me", "Cf", "Sk"})
_NEVER_LAST = frozenset({"Ps", "Pi", "Sc", "Cf"})
_NEVER_FIRST_LETTERS = frozenset(
    "ー々〻ゝゞヽヾ〜～ぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶｧｨｩｪｫｬｭｮｯｰﾞﾟ"
    "\u0e30\u0e32\u0e33\u0e45\u0e46\u0e2f\u0eb0\u0eb2\u0eb3\u0ebd\u0ec6"  # Thai and Lao signs that end a syllable
)
_NEVER_LAST_LETTERS = frozenset("\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4")  # vowels written first

_SENTENCE_ENDS = frozenset(".!?…。！？｡．؟۔।॥։።။។")
_CLAUSE_ENDS = frozenset(",;:、，；：､،؛၊–—")
_CLOSERS = frozenset("\"'”’»›)]}」』）】〉》")


def encodable(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot carry, replaced by U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def one_line(text: str) -> str:
    """The text on one line: each run of spaces, line ends and control characters becomes one space, none at the ends.

    No-break spaces inside the text stay: French sets one before its question mark.
    """
    return _GAPS.sub(" ", encodable(text)).strip()


def squashed(text: str) -> str:
    """The text's characters without any white space, to compare spellings whatever their spacing."""
    return "".join(one_line(text).split())


def without_arrows(text: str) -> str:
    """The text with ``-->``, which separates the times in SRT and WebVTT, shortened to ``->``."""
    return _ARROW.sub("->", text)


def speaker_label(speaker: str | None) -> str | None:
    """A speaker's name fit for ``[…]`` in SRT and for a WebVTT voice tag; None when nothing is left of it.

    Square brackets would close the SRT prefix early. Hyphens are thinned out because a voice tag's own ``>`` would make
    an arrow of two at the end.
    """
    if speaker is None:
        return None
    return _HYPHENS.sub("-", one_line(speaker).replace("[", "(").replace("]", ")")) or None


def columns(text: str) -> int:
    """Width in columns of a fixed-pitch screen: wide and full-width characters (Unicode's UAX #11) take two."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def may_break(before: str, after: str, *, between_words: bool) -> bool:
    """Whether a line may end between two neighbouring characters that no space separates.

    Args:
        before: the character that would end the line.
        after: the character that would start the next one.
        between_words: the model says that a word ends here, which is what scripts such as Thai need to know.
    """
    if before.isascii() and after.isascii():
        return False
    spaceless = any(_EAST_ASIAN.match(character) for character in (before, after)) or (
        between_words and any(_SOUTH_EAST_ASIAN.match(character) for character in (before, after))
    )
    return (
        spaceless
        and unicodedata.category(after) not in _NEVER_FIRST
        and after not in _NEVER_FIRST_LETTERS
        and unicodedata.category(before) not in _NEVER_LAST
        and before not in _NEVER_LAST_LETTERS
    )


def ends_sentence(text: str) -> bool:
    """Whether the text ends with a full stop, question mark or the like, closing quotes and brackets aside."""
    return _last_letter(text) in _SENTENCE_ENDS


def ends_clause(text: str) -> bool:
    """Whether the text ends with a comma, colon, dash or the like."""
    return _last_letter(text) in _CLAUSE_ENDS


def _last_letter(text: str) -> str:
    for character in reversed(text):
        if character not in _CLOSERS:
            return character
    return ""
