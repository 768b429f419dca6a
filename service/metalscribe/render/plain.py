"""The transcript as words alone, and as a table of segments."""

from __future__ import annotations

from metalscribe.render.lettering import one_line
from metalscribe.render.times import milliseconds
from metalscribe.transcript import Transcript


def to_text(transcript: Transcript) -> str:
    """The whole text and a line end; empty where nothing was said. Line ends inside the text stay."""
    text = "\n".join(one_line(line) for line in transcript.text.splitlines()).strip()
    return f"{text}\n" if text else ""


def to_tsv(transcript: Transcript) -> str:
    """Tab-separated values: a header, then start and end in milliseconds and the text of each segment that has any.

    Nothing is quoted (IANA's text/tab-separated-values): a tab or line end inside a text becomes a space.
    Unlike cues, segments may overlap here where they do in the transcript.
    """
    rows = ["start\tend\ttext\n"]
    for segment in transcript.segments:
        text = one_line(segment.text)
        if text:
            start = milliseconds(segment.start)
            rows.append(f"{start}\t{max(start, milliseconds(segment.end))}\t{text}\n")
    return "".join(rows)
