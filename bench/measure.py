"""Rounds of runs: every way in turn, workload by workload."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from bench.figures import Run
from bench.recordings import Recordings
from bench.stage import Stage
from bench.ways import Answer, Setup
from bench.wer import word_errors
from bench.workloads import Workload
from bench.workloads.workload import latencies


def measure(
    ways: Sequence[str],
    workloads: Mapping[str, Workload],
    rounds: int,
    setup: Setup,
    recordings: Recordings,
    on_run: Callable[[Run], None],
) -> list[Run]:
    """Run everything.

    A workload's ways are all loaded while it lasts, each in processes of its own, and one works at a time; who begins
    changes from round to round. The next workload starts with fresh processes, so that its memory is its own.

    Args:
        ways: their names.
        workloads: by name.
        rounds: how often each way does each workload.
        setup: of every way; its scratch folder gets one for each.
        recordings: what is transcribed.
        on_run: told of every run as it ends.

    Raises:
        StageFailed: a way does not start, or fails.
    """
    runs: list[Run] = []
    for name, workload in workloads.items():
        able = [way for way in ways if workload.ways is None or way in workload.ways]
        with ExitStack() as stack:
            stages: dict[str, Stage] = {}
            for way in able:
                scratch = setup.scratch / name / way
                scratch.mkdir(parents=True)
                stages[way] = stack.enter_context(Stage(way, replace(setup, scratch=scratch), recordings))
            for number in range(rounds if able else 0):
                first = number % len(able)
                for way in [*able[first:], *able[:first]]:
                    groups, figures = stages[way].run(workload)
                    for prefix, answers in groups.items():
                        figures |= latencies(prefix, answers)
                    every = list(itertools.chain.from_iterable(groups.values()))
                    run = Run(name, way, number, {**accuracy(every), **figures})
                    runs.append(run)
                    on_run(run)
    return runs


def accuracy(answers: Sequence[Answer]) -> dict[str, float]:
    """Word error rate and its parts, over the answers whose recordings have a reference."""
    pairs = [(answer.recording.reference, answer.text) for answer in answers if answer.recording.reference]
    if not pairs:
        return {}
    errors = word_errors([reference for reference, _ in pairs], [text for _, text in pairs])
    return {
        "wer_percent": errors.percent,
        "substitutions": float(errors.substitutions),
        "deletions": float(errors.deletions),
        "insertions": float(errors.insertions),
        "words": float(errors.words),
    }
