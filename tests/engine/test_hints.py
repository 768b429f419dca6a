"""Hints change how a name is spelt: a synthesised sentence with a name that no model knows (recordings/make.sh)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from engines import done, serving
from numpy.typing import NDArray

from common import MakeWav
from metalscribe.cli.trial import SAMPLE
from metalscribe.engine.local import LocalEngine
from metalscribe.media.recording import Recording
from metalscribe.transcript import Mode

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

NAME = "Kallistryn"
RECORDING = Path(__file__).parent / "recordings" / "name.flac"
HINTS = [{"hotwords": NAME}, {"prompt": f"A letter to {NAME}."}]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine(demo_model: Path) -> AsyncIterator[LocalEngine]:
    async with serving(demo_model, "demo") as one:
        yield one


def decoded(path: Path) -> NDArray[np.float32]:
    with path.open("rb") as file:
        return np.concatenate(list(Recording(file).blocks()))


@pytest.mark.parametrize("mode", list(Mode))
async def test_a_name_is_spelt_as_hinted(engine: LocalEngine, mode: Mode) -> None:
    plain = (await done(engine, RECORDING, mode=mode)).transcript.text
    assert NAME.lower() not in plain.lower(), "the model knows the name without a hint"
    assert plain.startswith("Please send the invoice to")
    for hint in HINTS:
        text = (await done(engine, RECORDING, mode=mode, **hint)).transcript.text
        assert NAME in text, hint
        assert text.startswith("Please send the invoice to"), hint


@pytest.mark.parametrize("mode", list(Mode))
async def test_a_hint_holds_to_the_end_of_a_long_recording(engine: LocalEngine, mode: Mode, make_wav: MakeWav) -> None:
    """The name comes in a later chunk, behind much text that has nothing to do with it."""
    before = decoded(SAMPLE)
    path = make_wav(np.concatenate([before, before, decoded(RECORDING)]))
    for hint in HINTS:
        ended = await done(engine, path, mode=mode, **hint)
        assert ended.statistics.chunks > 1
        assert NAME in ended.transcript.text, hint
