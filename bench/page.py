"""The page of the documentation that shows the results: its tables stand between markers and are written by the command."""

from __future__ import annotations

from pathlib import Path

from bench import profile, result
from bench.errors import BenchmarkError
from bench.plots import draw
from bench.report import describe, markdown, table


class MarkersBroken(BenchmarkError):
    """A marker begins without an end."""


def refresh(page: Path, results: Path) -> list[Path]:
    """Write every result of a folder into the page, and draw its picture beside it; returns what was written.

    Raises:
        MarkersBroken: the page's markers do not match.
    """
    text = page.read_text()
    written = [page]
    for path in sorted(results.glob("*.json")):
        if path.stem.endswith("-profile"):
            measured = profile.read(path)
            text = refreshed(text, measured.key, profile_table(measured))
            continue
        found = result.read(path)
        picture = page.with_name(f"performance-{found.key}.svg")
        draw(found, picture)
        written.append(picture)
        content = f"![Throughput and latency, {found.model} on {found.device}]({picture.name})\n\n{markdown(found)}"
        text = refreshed(text, found.key, content)
    page.write_text(text)
    return written


def refreshed(text: str, key: str, content: str) -> str:
    """``text`` with ``content`` between the markers of ``key``; a section at the end where there are none.

    Raises:
        MarkersBroken: only one of the two is there.
    """
    begin, end = f"<!-- bench {key} -->", f"<!-- /bench {key} -->"
    before, opened, rest = text.partition(begin)
    if not opened:
        if end in text:
            raise MarkersBroken(f"{end} without {begin}")
        return f"{text.rstrip()}\n\n## {key}\n\n{begin}\n{content}\n{end}\n"
    _, closed, after = rest.partition(end)
    if not closed:
        raise MarkersBroken(f"{begin} without {end}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def profile_table(measured: profile.Profile) -> str:
    """A profile as two tables: the model's thread, and the processes."""
    samples = sum(measured.samples.values())
    threads = [[name, f"{100 * count / samples:.1f} %"] for name, count in measured.samples.items()]
    total = sum(measured.cpu_seconds.values())
    processes = [
        [name, f"{seconds:.1f}", f"{100 * seconds / total:.1f} %", f"{1000 * seconds / measured.audio_seconds:.1f}"]
        for name, seconds in measured.cpu_seconds.items()
    ]
    return "\n\n".join(
        (
            f"Model `{measured.model}`, {measured.device}; {measured.measured}; {describe(measured.machine)}.",
            f"CTranslate2 had **{measured.model_percent:.1f} %** of the time that the model's thread was busy.",
            table(["the model's thread", "share"], threads),
            table(["processor time of", "s", "share", "ms per audio s"], processes),
        )
    )
