"""OpenAI's dialect, spoken by OpenAI's own client, which refuses every answer that has not the shape it knows."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import tokenizers
from openai.types.audio import TranscriptionTextDeltaEvent, TranscriptionTextDoneEvent

from metalscribe.api.forms import parse
from metalscribe.api.names import ModelNames
from metalscribe.api.openai import TranscriptionParameters
from metalscribe.api.uploads import Upload
from metalscribe.transcript import Task

from .harness import KEY, Caller, Service, Start, send, silence, wait_for

pytestmark = pytest.mark.model

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
NAMES = {"whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-4o-transcribe-diarize", "gpt-transcribe"}


def speaking(service: Service, key: str = KEY, **options: Any) -> openai.OpenAI:
    options = {"max_retries": 0, "_strict_response_validation": True, **options}
    return openai.OpenAI(api_key=key, base_url=f"{service.url}/v1", **options)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[openai.OpenAI]:
    with speaking(service) as made:
        yield made


@pytest.fixture(scope="module")
def said(service: Service, sample: bytes) -> str:
    """What the native dialect says of the sample."""
    text: str = send(service.client(), sample).json()["text"]
    assert "train leaves at seven" in text
    return text


@pytest.fixture(scope="module")
def transcribe(client: openai.OpenAI, sample: bytes) -> Callable[..., Any]:
    def create(**options: Any) -> Any:
        return client.audio.transcriptions.create(**{"file": ("sample.flac", sample), "model": "whisper-1", **options})

    return create


# --- formats ----------------------------------------------------------------------------------------------------------


def test_json_is_the_text_and_its_usage(transcribe: Callable[..., Any], said: str) -> None:
    answer = transcribe()
    assert answer.text == said
    assert (answer.usage.type, answer.usage.seconds) == ("duration", 15)
    assert answer.logprobs is None


def test_verbose_json_lists_segments(transcribe: Callable[..., Any], said: str) -> None:
    answer = transcribe(response_format="verbose_json")
    assert (answer.text, answer.language, answer.task) == (said, "english", "transcribe")
    assert answer.duration == pytest.approx(14.684, abs=0.01)
    assert answer.words is None
    assert [segment.id for segment in answer.segments] == list(range(len(answer.segments)))
    assert "".join(segment.text for segment in answer.segments).strip() == said
    ends = [0.0]
    for segment in answer.segments:
        assert ends[-1] <= segment.start < segment.end <= answer.duration
        ends.append(segment.end)


def test_the_tokens_of_a_segment_spell_its_text(transcribe: Callable[..., Any], demo_model: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(demo_model / "tokenizer.json"))
    for segment in transcribe(response_format="verbose_json").segments:
        assert tokenizer.decode(segment.tokens) == segment.text


@pytest.mark.parametrize(
    ("asked", "segments", "words"),
    [(["word"], False, True), (["segment"], True, False), (["word", "segment"], True, True)],
)
def test_granularities_are_those_asked_for(
    transcribe: Callable[..., Any], said: str, asked: list[str], segments: bool, words: bool
) -> None:
    answer = transcribe(response_format="verbose_json", timestamp_granularities=asked)
    assert (answer.segments is not None, answer.words is not None) == (segments, words)
    if words:
        assert [word.word for word in answer.words] == said.split()
        times = [(word.start, word.end) for word in answer.words]
        assert all(start <= end for start, end in times)
        assert times == sorted(times)


@pytest.mark.parametrize(("form", "media_type"), [("text", "text/plain"), ("srt", "text/plain"), ("vtt", "text/vtt")])
def test_texts_are_texts(
    service: Service, transcribe: Callable[..., Any], sample: bytes, said: str, form: str, media_type: str
) -> None:
    answer = transcribe(response_format=form)
    raw = service.client().post(
        "/v1/audio/transcriptions", files={"file": ("a.flac", sample)}, data={"response_format": form}
    )
    assert raw.headers["content-type"] == f"{media_type}; charset=utf-8"
    assert answer == raw.text
    assert " ".join(answer.split()).startswith({"text": said, "srt": "1 00:00:00,", "vtt": "WEBVTT 00:00:0"}[form])


def test_logprobs_are_listed_where_they_were_asked_for(transcribe: Callable[..., Any], said: str) -> None:
    answer = transcribe(include=["logprobs"])
    assert "".join(entry.token for entry in answer.logprobs).strip() == said
    assert all(entry.logprob <= 0 for entry in answer.logprobs)
    assert bytes(map(int, answer.logprobs[0].bytes)).decode() == answer.logprobs[0].token


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_a_stream_says_the_text_piece_by_piece_and_then_as_a_whole(
    transcribe: Callable[..., Any], said: str, form: str
) -> None:
    events = list(transcribe(response_format=form, stream=True))
    assert [type(event) for event in events[:-1]] == [TranscriptionTextDeltaEvent] * (len(events) - 1)
    assert isinstance(events[-1], TranscriptionTextDoneEvent)
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == said


def test_a_stream_has_logprobs_too(transcribe: Callable[..., Any]) -> None:
    *deltas, done = transcribe(stream=True, include=["logprobs"])
    tokens = [entry.token for delta in deltas for entry in delta.logprobs]
    assert tokens == [entry.token for entry in done.logprobs] != []


def test_a_long_recording_streams_before_its_end(service: Service, client: openai.OpenAI, long_wav: bytes) -> None:
    stream = client.audio.transcriptions.create(file=("long.wav", long_wav), model="whisper-1", stream=True)
    first = next(iter(stream))
    assert first.type == "transcript.text.delta"
    assert 0 < len(first.delta.split()) < 100  # of some three thousand
    assert service.queue()["requests"] == 1
    stream.close()
    wait_for(service.idle, "the work to end with it", 10)


def test_who_leaves_before_the_first_word_is_not_worked_for(service: Service) -> None:
    recording = silence(2 * 3600)
    caller = Caller(service, recording, {}, "/v1/audio/transcriptions?stream=true")
    wait_for(lambda: service.queue()["requests"], "the work to begin")
    caller.leave()
    wait_for(service.idle, "the work to end", 5)
    wait_for(service.uploads_are_gone, "the recording to be removed", 5)


def test_what_is_wrong_from_the_start_is_no_stream(transcribe: Callable[..., Any]) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        transcribe(file=("a.mp3", b"no sound at all" * 100), stream=True)
    assert caught.value.status_code == 415


# --- parameters -------------------------------------------------------------------------------------------------------


def test_parameters_that_change_nothing_here_are_taken(transcribe: Callable[..., Any], said: str) -> None:
    vad = {"type": "server_vad", "prefix_padding_ms": 300, "silence_duration_ms": 200, "threshold": 0.5}
    for strategy in ("auto", vad):
        answer = transcribe(chunking_strategy=strategy, extra_body={"something_new": "and its value"})
        assert answer.text == said


def test_keywords_languages_and_prompt_reach_the_engine(service: Service) -> None:
    """What the parameters become; that hotwords and prompts change the text is tested with the engine."""
    names = ModelNames({"demo": "demo"})
    form = {
        "languages[]": ["de", "English", "de"],
        "keywords[]": ["metalscribe", "Proxmox"],
        "hotwords": ["VFIO"],
        "prompt": ["x" * 5000 + "the end"],
        "temperature": ["0.4"],
    }
    asked = parse(TranscriptionParameters, [], form)
    services = SimpleNamespace(names=names)
    wanted = asked.to_request(Upload(Path("a"), "a"), services, SimpleNamespace(weight=2.0), Task.TRANSCRIBE)  # type: ignore[arg-type]
    assert (wanted.language, wanted.languages) == (None, ("de", "en"))
    assert wanted.hotwords == "VFIO, metalscribe, Proxmox"
    assert wanted.prompt is not None
    assert wanted.prompt.endswith("the end")
    assert len(wanted.prompt) == 4000
    assert (wanted.temperature, wanted.weight) == (0.4, 2.0)


def test_a_form_may_have_hundreds_of_keywords(transcribe: Callable[..., Any], said: str) -> None:
    assert transcribe(keywords=[f"word{number}" for number in range(300)], file=("a.wav", silence())).text == ""


def test_keywords_languages_and_prompt_are_taken(transcribe: Callable[..., Any]) -> None:
    answer = transcribe(
        languages=["de", "en"],
        keywords=["metalscribe", "Proxmox"],
        prompt="A recording by a computer.",
        language="en",
        response_format="verbose_json",
        temperature=0.2,
    )
    assert answer.language == "english"
    assert all(segment.temperature >= 0.2 for segment in answer.segments)


def test_names_of_lists_may_do_without_brackets(service: Service, sample: bytes) -> None:
    answer = service.client().post(
        "/v1/audio/transcriptions",
        files={"file": ("a.flac", sample)},
        data={"response_format": "verbose_json", "timestamp_granularities": "word", "language": ""},
    )
    assert answer.json()["words"]


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"response_format": "wav"}, "response_format"),
        ({"temperature": 1.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"language": "klingon"}, "language"),
        ({"languages": ["en", "klingon"]}, "languages"),
        ({"languages": ["de", "fr"]}, "languages"),  # which an English model does not know
        ({"language": "de"}, "language"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities"),
        ({"timestamp_granularities": ["phoneme"], "response_format": "verbose_json"}, "timestamp_granularities"),
        ({"include": ["everything"]}, "include"),
        ({"include": ["logprobs"], "response_format": "text"}, "include"),
        ({"chunking_strategy": "by hand"}, "chunking_strategy"),
        ({"chunking_strategy": {"type": "client_vad"}}, "chunking_strategy[type]"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"known_speaker_names": ["Ann"]}, "known_speaker_names"),
        ({"extra_query": {"language": "en"}, "language": "english"}, "language"),
    ],
)
def test_a_wrong_parameter_is_a_bad_request_that_names_it(
    transcribe: Callable[..., Any], options: dict[str, Any], parameter: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        transcribe(**options)
    assert caught.value.param == parameter
    assert (caught.value.code, caught.value.type) == ("invalid_parameter", "invalid_request_error")
    assert parameter.partition("[")[0] in caught.value.message


# --- errors -----------------------------------------------------------------------------------------------------------


def test_each_error_has_its_class(service: Service, transcribe: Callable[..., Any], sample: bytes) -> None:
    file = ("sample.flac", sample)

    def refused(kind: type[openai.APIStatusError], call: Callable[[], object]) -> openai.APIStatusError:
        with pytest.raises(kind) as caught:
            call()
        assert caught.value.request_id
        assert caught.value.message
        return caught.value

    with speaking(service, "msk_not_a_key") as stranger:
        error = refused(
            openai.AuthenticationError, lambda: stranger.audio.transcriptions.create(file=file, model="whisper-1")
        )
        assert error.code == "invalid_api_key"
        refused(openai.AuthenticationError, stranger.models.list)
    with speaking(service, service.new_key("observer", "--scope", "metrics")) as observer:
        error = refused(
            openai.PermissionDeniedError, lambda: observer.audio.transcriptions.create(file=file, model="whisper-1")
        )
        assert error.code == "forbidden"
        assert "transcribe" in error.message
    error = refused(openai.NotFoundError, lambda: transcribe(model="gpt-5"))
    assert (error.code, error.param) == ("model_not_found", "model")
    error = refused(openai.UnprocessableEntityError, lambda: transcribe(file=("a.wav", silence()[:44])))
    assert error.type == "invalid_request_error"
    refused(openai.BadRequestError, lambda: transcribe(file=("empty.wav", b""), language="klingon"))
    with speaking(service, service.new_key("slow", "--rate-limit", "1/minute")) as slow:
        assert slow.audio.transcriptions.create(file=("a.wav", silence()), model="whisper-1").text == ""
        error = refused(
            openai.RateLimitError,
            lambda: slow.audio.transcriptions.create(file=("a.wav", silence()), model="whisper-1"),
        )
        assert (error.code, error.type) == ("rate_limit_exceeded", "requests")
        assert 1 <= int(error.response.headers["retry-after"]) <= 60


def test_too_large_and_not_now(start: Start, sample: bytes) -> None:
    service = start(MAX_UPLOAD_MB=0.1, WHEN_UNLOADED="reject")
    with speaking(service) as client:
        with pytest.raises(openai.InternalServerError) as unavailable:
            client.audio.transcriptions.create(file=("a.wav", silence()), model="whisper-1")
        assert (unavailable.value.status_code, unavailable.value.code) == (503, "model_unavailable")
        assert unavailable.value.type == "server_error"
        wait_for(lambda: client.get("/../health", cast_to=object)["model_state"] == "ready", "the model")  # type: ignore[index]
        with pytest.raises(openai.APIStatusError) as caught:
            client.audio.transcriptions.create(file=("sample.flac", sample), model="whisper-1")
        assert (caught.value.status_code, caught.value.code) == (413, "too_large")


def test_unknown_paths_answer_in_the_dialect(service: Service) -> None:
    client = service.client()
    for answer, status in ((client.get("/v1/engines"), 404), (client.get("/v1/audio/transcriptions"), 405)):
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert client.get("/v2/engines").headers["content-type"] == "application/problem+json"


# --- models -----------------------------------------------------------------------------------------------------------


def test_models_are_listed_and_say_which_are_served(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert len(models) >= 15
    assert {"demo", "tiny", "base", "large-v3", "large-v3-turbo", *NAMES} <= set(models)
    served = {name for name, model in models.items() if model.served}  # type: ignore[attr-defined]
    assert served == {"demo", *NAMES}
    assert next(iter(models)) == "demo"
    assert all(abs(model.created - time.time()) < 86_400 for model in models.values())


@pytest.mark.parametrize("name", ["whisper-1", "demo", "whisper-demo", "openai/whisper-demo", "gpt-4o-transcribe"])
def test_a_served_model_has_many_names(transcribe: Callable[..., Any], client: openai.OpenAI, name: str) -> None:
    assert client.models.retrieve(name).serves == "demo"  # type: ignore[attr-defined]
    assert transcribe(model=name, file=("a.wav", silence())).text == ""


def test_other_models_are_known_or_not(client: openai.OpenAI) -> None:
    for name in ("large-v3", "whisper-large-v3", "openai/whisper-large-v3", "Systran/faster-whisper-large-v3"):
        assert client.models.retrieve(name).served is False  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-5")
    assert caught.value.code == "model_not_found"


# --- retries ----------------------------------------------------------------------------------------------------------


def _transcribed(service: Service) -> float:
    """Seconds of recordings that the service has transcribed to their end."""
    text = service.client().get("/metrics").text
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("metalscribe_audio_seconds_total")
    )


def test_a_retry_attaches_to_what_the_first_attempt_began(start: Start, long_wav: bytes) -> None:
    service = start()
    recording = long_wav[: 44 + 2 * 16_000 * 240]  # four minutes
    with speaking(service) as client:
        client.audio.transcriptions.create(file=("a.wav", silence()), model="whisper-1")  # the model is loaded
        before = _transcribed(service)
        impatient = client.with_options(timeout=2.0, max_retries=0)
        with pytest.raises(openai.APITimeoutError):
            impatient.audio.transcriptions.create(file=("long.wav", recording), model="whisper-1")
        text = client.audio.transcriptions.create(file=("long.wav", recording), model="whisper-1").text
    assert text.count("train leaves") >= 10
    assert _transcribed(service) - before == pytest.approx(240, abs=1)
    assert any(line.get("event") == "attached" for line in service.log())
    assert not any(line.get("event") == "cancelled" for line in service.log())


def test_two_at_once_share_their_work_unless_they_differ(start: Start, sample: bytes) -> None:
    service = start()
    other = service.new_key("other")

    def ask(key: str, language: str) -> str:
        with speaking(service, key) as client:
            file = io.BytesIO(sample)
            file.name = "sample.flac"
            return client.audio.transcriptions.create(file=file, model="whisper-1", language=language).text

    with ThreadPoolExecutor(4) as pool:  # the model is loaded first: all of them are there before it is
        same = [pool.submit(ask, KEY, "en") for _ in range(2)]
        different = [pool.submit(ask, other, "en"), pool.submit(ask, KEY, "English ")]
        assert len({one.result() for one in (*same, *different)}) == 1
    assert _transcribed(service) == pytest.approx(14.684 * 3, abs=0.1)


# --- translation ------------------------------------------------------------------------------------------------------


def test_an_english_model_does_not_translate(client: openai.OpenAI, sample: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match="English only"):
        client.audio.translations.create(file=("sample.flac", sample), model="whisper-1")


def test_keys_go_into_every_header(service: Service, sample: bytes) -> None:
    files = {"file": ("sample.flac", sample)}
    for headers, auth in (
        ({"X-API-Key": KEY}, None),
        ({}, ("anybody", KEY)),
        ({"Authorization": f"Bearer {KEY}"}, None),
    ):
        answer = httpx.post(
            f"{service.url}/v1/audio/transcriptions", files=files, headers=headers, auth=auth, timeout=60
        )
        assert answer.status_code == 200
