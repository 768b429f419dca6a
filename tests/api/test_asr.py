"""``/asr`` and ``/detect-language``, as their clients call them: whisper-asr-webservice's, WhisperX's, Speakr's."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
import srt
import webvtt

from models import ModelNotInstalled, base_model

from .harness import KEY, Service, problem, running, says, send, silence

pytestmark = pytest.mark.model

Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def ask(service: Service, sample: bytes) -> Ask:
    def post(params: dict[str, Any] | None = None, *, path: str = "/asr", **options: Any) -> httpx.Response:
        options = {"files": {"audio_file": ("sample.flac", sample)}, **options}
        return service.client().post(path, params=params or {}, **options)

    return post


@pytest.fixture(scope="module")
def said(service: Service, sample: bytes) -> str:
    """What the native dialect says of the sample."""
    text: str = send(service.client(), sample).json()["text"]
    return text


# --- wrapped ----------------------------------------------------------------------------------------------------------


def test_by_default_the_segments_are_wrapped_and_have_words(ask: Ask, said: str) -> None:
    answer = ask()
    document = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert list(document) == ["text", "language", "segments", "word_segments"]
    assert document["text"] == document["segments"]
    assert document["language"] == "en"
    assert "".join(segment["text"] for segment in document["segments"]).strip() == said
    words = [word for segment in document["segments"] for word in segment["words"]]
    assert words == document["word_segments"]
    for segment in document["segments"]:
        ends = [segment["start"], *(word["end"] for word in segment["words"])]
        assert all(set(word) == {"word", "start", "end", "score"} for word in segment["words"])
        assert all(end <= word["start"] <= word["end"] for end, word in zip(ends, segment["words"], strict=False))
        assert ends[-1] <= segment["end"]
        assert "".join(word["word"] for word in segment["words"]) == "".join(segment["text"].split())
    assert all(0 <= word["score"] <= 1 and word["word"] == word["word"].strip() for word in words)


def test_words_may_be_left_out(ask: Ask) -> None:
    document = ask({"word_timestamps": "false"}).json()
    assert document["word_segments"] == []
    assert not any("words" in segment for segment in document["segments"])


@pytest.mark.parametrize("form", ["text", "srt", "vtt", "tsv"])
def test_other_formats_are_wrapped_under_their_names(ask: Ask, said: str, form: str) -> None:
    document = ask({"output_format": form}).json()
    assert list(document) == [form]
    text = document[form]
    match form:
        case "text":
            assert text == said
        case "srt":
            assert says(" ".join(cue.content for cue in srt.parse(text)), said)
        case "vtt":
            assert says(" ".join(cue.text for cue in webvtt.from_string(text).captions), said)
        case "tsv":
            assert text.splitlines()[0] == "start\tend\ttext"
    assert ask({"output": "text"}).json() == {"text": said}


# --- plain ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["txt", "srt", "vtt", "tsv"])
def test_plain_answers_are_the_format_itself(ask: Ask, said: str, form: str) -> None:
    answer = ask({"output": form})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["asr-engine"] == "metalscribe"
    name = f"sample.flac.{form}"
    assert answer.headers["content-disposition"] == f"attachment; filename=\"{name}\"; filename*=UTF-8''{name}"
    wrapped = ask({"output_format": {"txt": "text"}.get(form, form)}).json()
    assert answer.text.strip() == next(iter(wrapped.values())).strip()


def test_plain_json_is_faster_whispers(ask: Ask, said: str) -> None:
    document = ask({"output": "json"}).json()
    assert document["text"] == said
    assert document["language"] == "en"
    keys = {"id", "seek", "start", "end", "text", "tokens", "avg_logprob", "compression_ratio", "no_speech_prob"}
    assert all(set(segment) == keys | {"words", "temperature"} for segment in document["segments"])
    assert all(segment["words"] is None and segment["tokens"] for segment in document["segments"])
    document = ask({"output": "json", "word_timestamps": "true"}).json()
    for segment in document["segments"]:
        assert "".join(word["word"] for word in segment["words"]) == segment["text"]
        assert set(segment["words"][0]) == {"start", "end", "word", "probability"}


def test_the_name_of_a_recording_cannot_break_out_of_its_header(ask: Ask, sample: bytes) -> None:
    answer = ask({"output": "txt"}, files={"audio_file": ("../ä; x=y.flac", sample)})
    name = "%C3%A4%3B%20x%3Dy.flac.txt"
    assert answer.headers["content-disposition"] == f"attachment; filename=\"{name}\"; filename*=UTF-8''{name}"


# --- parameters -------------------------------------------------------------------------------------------------------


def test_query_and_form_are_the_same_and_unknown_names_are_ignored(ask: Ask) -> None:
    options = {"output": "srt", "language": "English", "encode": "true", "vad_filter": "false", "new": "thing"}
    query, form = ask(options), ask(data=options)
    assert query.status_code == form.status_code == 200
    assert query.text == form.text
    both = ask({"output": "srt"}, data={"output": "vtt"})
    assert problem(both, 400, "invalid_parameter")["parameter"] == "output"


@pytest.mark.parametrize("name", ["whisper-1", "demo", "whisper-demo"])
def test_models_have_openais_names_too(ask: Ask, name: str) -> None:
    assert ask({"model": name}, files={"audio_file": ("a.wav", silence())}).status_code == 200


def test_a_model_that_is_not_served_is_not_found(ask: Ask) -> None:
    assert "demo" in problem(ask({"model": "large-v3"}), 404, "model_not_found")["detail"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"output_format": "docx"}, "output_format"),
        ({"output": "docx"}, "output"),
        ({"task": "summarise"}, "task"),
        ({"language": "klingon"}, "language"),
        ({"task": "translate"}, "task"),  # by an English model
        ({"word_timestamps": "perhaps"}, "word_timestamps"),
        ({"diarize": "true"}, "diarize"),
        ({"enable_diarization": "true"}, "enable_diarization"),
        ({"num_speakers": "2"}, "num_speakers"),
        ({"min_speakers": "0"}, "min_speakers"),
        ({"diarize": "false", "return_speaker_embeddings": "true"}, "return_speaker_embeddings"),
    ],
)
def test_a_wrong_parameter_is_named(ask: Ask, options: dict[str, str], named: str) -> None:
    for answer in (ask(options), ask(data=options)):
        assert problem(answer, 400, "invalid_parameter")["parameter"] == named


def test_no_recording_and_no_sound(ask: Ask) -> None:
    assert problem(ask(files={"audio": ("a.wav", silence())}), 400)["parameter"] == "audio_file"
    problem(ask(files={"audio_file": ("a.wav", b"no sound at all" * 100)}), 415)
    problem(ask(files={"audio_file": ("a.wav", silence()[:44])}), 422)


def test_silence_has_nothing_to_say(ask: Ask) -> None:
    files = {"audio_file": ("a.wav", silence())}
    assert ask(files=files).json() == {"text": [], "language": "en", "segments": [], "word_segments": []}
    assert ask({"output": "vtt"}, files=files).text == "WEBVTT\n"
    assert ask(path="/detect-language", files=files).json()["language_code"] == "en"


# --- clients ----------------------------------------------------------------------------------------------------------


def test_speakr_calls_with_a_key_in_its_address(service: Service, sample: bytes, said: str) -> None:
    """Speakr knows an address and nothing else; these are the parameters that it sends."""
    for user in (f"speakr:{KEY}", KEY):
        url = service.url.replace("http://", f"http://{user}@")
        params: dict[str, Any] = {"encode": True, "task": "transcribe", "output": "json", "language": "en"}
        files = {"audio_file": ("memo.flac", sample, "audio/flac")}
        off = {"diarize": False, "enable_diarization": False}
        answer = httpx.post(f"{url}/asr", params={**params, **off}, files=files, timeout=60, trust_env=False)
        document = answer.raise_for_status().json()
        assert document["text"] == said
        assert all({"start", "end", "text"} <= set(segment) for segment in document["segments"])
        asked = httpx.post(
            f"{url}/asr", params={**params, "diarize": True, "enable_diarization": True}, files=files, trust_env=False
        )
        assert "ASR_DIARIZE=false" in problem(asked, 400)["detail"]
        names = [entry["id"] for entry in httpx.get(f"{url}/v1/models", trust_env=False).json()["data"]]
        assert "whisper-1" in names


def test_bazarr_sends_samples_without_a_head(ask: Ask, sample: bytes, said: str) -> None:
    resampler = av.AudioResampler(format="s16", layout="mono", rate=16_000)
    with av.open(io.BytesIO(sample), "r") as container:
        frames = [one for frame in container.decode(audio=0) for one in resampler.resample(frame)]
    samples = np.concatenate([frame.to_ndarray().ravel() for frame in frames]).astype("<i2").tobytes()
    files = {"audio_file": ("audio.pcm", samples)}
    assert ask({"encode": "false", "output": "txt"}, files=files).text.strip() == said
    assert ask({"encode": "false"}, path="/detect-language", files=files).json()["language_code"] == "en"
    problem(ask({"encode": "true"}, files=files), 415)
    assert ask({"encode": "false", "output": "txt"}).text.strip() == said, "a head that is there stays"


def test_curl_with_its_keys_in_netrc(service: Service, sample: bytes, tmp_path: Path) -> None:
    """The call that WhisperX services show first; the key is where curl looks for it by itself."""
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login metalscribe password {KEY}\n")
    netrc.chmod(0o600)
    (tmp_path / "your_audio.flac").write_bytes(sample)
    call = ("-X", "POST", f"{service.url}/asr", "-F", "audio_file=@your_audio.flac", "-F", "language=en")
    done = subprocess.run(
        ("curl", "-sS", "--fail", "--netrc-file", netrc, *call),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"word_segments"' in done.stdout


# --- languages --------------------------------------------------------------------------------------------------------


def test_an_english_model_knows_its_language(ask: Ask) -> None:
    document = ask(path="/detect-language").json()
    assert document == {"detected_language": "english", "language_code": "en", "confidence": 1.0}


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    try:
        model = base_model()
    except ModelNotInstalled as missing:
        pytest.skip(str(missing))
    with running(tmp_path_factory.mktemp("base") / "state", MODEL=model) as made:
        yield made


@pytest.mark.speech
@pytest.mark.parametrize("code", ["de", "es"])
def test_languages_are_detected_and_translated(multilingual: Service, data: Path, code: str) -> None:
    recording = (data / "multilingual" / "leopard" / f"test_{code}.wav").read_bytes()
    client = multilingual.client()
    name = {"de": "german", "es": "spanish"}[code]
    expected = {"de": "Leichenhalle", "es": "arenas"}[code]
    english = {"de": {"room", "space", "building", "behind", "portal"}, "es": {"sand", "sands", "medium", "little"}}[
        code
    ]

    detected = client.post("/detect-language", files={"audio_file": ("a.wav", recording)}).json()
    assert (detected["detected_language"], detected["language_code"]) == (name, code)
    assert detected["confidence"] > 0.5

    spoken = client.post(
        "/v1/audio/transcriptions", files={"file": ("a.wav", recording)}, data={"response_format": "verbose_json"}
    ).json()
    assert spoken["language"] == name
    assert expected.lower()[:5] in spoken["text"].lower()

    among = client.post(
        "/v1/audio/transcriptions",
        files={"file": ("a.wav", recording)},
        data={"response_format": "verbose_json", "languages[]": ["fr", "it"]},
    ).json()
    assert among["language"] in {"french", "italian"}  # which it is not

    translated = client.post(
        "/v1/audio/translations", files={"file": ("a.wav", recording)}, data={"response_format": "verbose_json"}
    ).json()
    assert (translated["task"], translated["language"]) == ("translate", "english")
    assert english & set(translated["text"].lower().replace(".", "").replace(",", "").split()), translated["text"]

    wrapped = client.post("/asr", params={"task": "translate"}, files={"audio_file": ("a.wav", recording)}).json()
    assert wrapped["language"] == code
    assert "".join(segment["text"] for segment in wrapped["segments"]).strip() == translated["text"]
