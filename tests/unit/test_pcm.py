from __future__ import annotations

import io
import itertools
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common import DATA, MakeWav
from metalscribe.errors import MetalscribeError, NoAudioTrack, UndecodableMedia, UnsupportedMedia
from metalscribe.media.pcm import BLOCK, SAMPLE_RATE
from metalscribe.media.recording import Recording

MEDIA_ERRORS = (UnsupportedMedia, UndecodableMedia, NoAudioTrack)


def decode(path: Path, *, track: int = 0) -> NDArray[np.float32]:
    with path.open("rb") as file:
        blocks = list(Recording(file, track=track).blocks())
    assert all(block.size == BLOCK for block in blocks[:-1])
    return np.concatenate(blocks)


def tone(seconds: float, rate: int, hertz: float = 440.0, amplitude: float = 0.5) -> NDArray[np.float64]:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def rms(samples: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def loudest_hertz(samples: NDArray[np.float32]) -> float:
    spectrum = np.abs(np.fft.rfft(samples))
    return float(spectrum.argmax() * SAMPLE_RATE / samples.size)


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_a_tone_stays_a_tone(make_wav: MakeWav, rate: int, channels: int, floats: bool) -> None:
    samples = np.repeat(tone(2.0, rate)[:, None], channels, axis=1)
    decoded = decode(make_wav(samples, rate, floats=floats))
    assert decoded.dtype == np.float32
    assert decoded.ndim == 1
    assert abs(decoded.size - 2 * SAMPLE_RATE) <= 64
    middle = decoded[SAMPLE_RATE // 2 : SAMPLE_RATE * 3 // 2]
    assert abs(loudest_hertz(middle) - 440) < 2
    assert np.abs(decoded).max() <= 1.0
    assert rms(middle) > 0.25


@pytest.mark.parametrize("channels", [2, 3, 4, 6, 8])
def test_mixing_down_does_not_overdrive(make_wav: MakeWav, channels: int) -> None:
    decoded = decode(make_wav(np.repeat(tone(1.0, 16_000)[:, None], channels, axis=1)))
    assert np.abs(decoded).max() <= 0.51


@pytest.mark.parametrize("channels", [3, 4, 5, 7, 8, 9, 12, 16, 64])
def test_any_number_of_channels_up_to_64_is_mixed_down(make_wav: MakeWav, channels: int) -> None:
    decoded = decode(make_wav(np.repeat(tone(1.0, 16_000)[:, None], channels, axis=1)))
    assert decoded.size == SAMPLE_RATE
    assert rms(decoded) > 0.1


def test_too_many_channels_are_refused(make_wav: MakeWav) -> None:
    with pytest.raises(UndecodableMedia, match="65"):
        decode(make_wav(np.zeros((1600, 65))))


def test_samples_that_need_no_change_are_not_changed(make_wav: MakeWav) -> None:
    original = np.random.default_rng(3).uniform(-1, 1, 50_000).astype(np.float32)
    np.testing.assert_array_equal(decode(make_wav(original, floats=True)), original)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_an_inverted_channel_does_not_silence_the_other(make_wav: MakeWav, rate: int) -> None:
    left = tone(2.0, rate)
    decoded = decode(make_wav(np.stack([left, -left], axis=1), rate))
    assert rms(decoded) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
    assert abs(loudest_hertz(decoded) - 440) < 2


@pytest.mark.parametrize("loud", [0, 1])
def test_one_silent_channel_leaves_the_other_audible(make_wav: MakeWav, loud: int) -> None:
    stereo = np.zeros((32_000, 2))
    stereo[:, loud] = tone(2.0, 16_000)
    assert rms(decode(make_wav(stereo))) > 0.1


def test_values_that_are_no_numbers_become_silence(make_wav: MakeWav) -> None:
    samples = tone(2.0, 16_000).astype(np.float32)
    samples[1000:2000] = np.nan
    samples[5000] = np.inf
    samples[6000] = -np.inf
    decoded = decode(make_wav(samples, floats=True))
    assert np.isfinite(decoded).all()
    assert (decoded[1000:2000] == 0).all()
    np.testing.assert_array_equal(decoded[10_000:], samples[10_000:])


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_values_beyond_one_are_clipped(make_wav: MakeWav, rate: int, channels: int) -> None:
    samples = np.repeat(np.full(rate, 3e38, np.float32)[:, None], channels, axis=1)
    decoded = decode(make_wav(samples, rate, floats=True))
    assert np.isfinite(decoded).all()
    assert np.abs(decoded).max() <= 1.0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4 * BLOCK), st.sampled_from([1, 2]))
def test_every_sample_comes_out_in_blocks_of_the_agreed_size(count: int, channels: int) -> None:
    body = (np.arange(count, dtype=np.int64) % 30_000).astype("<i2")
    frames = np.repeat(body[:, None], channels, axis=1).tobytes()
    form = struct.pack("<HHIIHH", 1, channels, 16_000, 32_000 * channels, 2 * channels, 16)
    file = b"RIFF" + struct.pack("<I", 36 + len(frames)) + b"WAVEfmt \x10\0\0\0" + form
    file += b"data" + struct.pack("<I", len(frames)) + frames
    blocks = list(Recording(io.BytesIO(file)).blocks())
    assert all(block.size == BLOCK for block in blocks[:-1])
    assert 0 < blocks[-1].size <= BLOCK
    np.testing.assert_allclose(np.concatenate(blocks), body / 32768, atol=1e-6)


def adts(rate: int, seconds: int) -> bytes:
    """A tone as AAC in a stream that has its rate in every frame."""
    made = io.BytesIO()
    with av.open(made, "w", format="adts") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(seconds, rate).astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return made.getvalue()


def test_a_stream_that_changes_its_rate_midway_is_heard_to_its_end() -> None:
    recording = Recording(io.BytesIO(adts(16_000, 3) + adts(44_100, 3)))
    samples = np.concatenate(list(recording.blocks()))
    # What was decoded before the change and not mixed yet is not lost with it: half a second, but for a frame.
    assert 5.9 <= samples.size / SAMPLE_RATE <= 6.3
    assert recording.damaged == 1
    assert loudest_hertz(samples[: 2 * SAMPLE_RATE]) == pytest.approx(440, abs=2)
    assert loudest_hertz(samples[-2 * SAMPLE_RATE :]) == pytest.approx(440, abs=2)


def test_the_header_tells_the_length(make_wav: MakeWav) -> None:
    with make_wav(tone(2.5, 8000), 8000).open("rb") as file:
        opening = Recording(file).opening
    assert (opening.container, opening.codec, opening.duration, opening.tracks) == ("wav", "pcm_s16le", 2.5, 1)


# --- what is not a recording ------------------------------------------------------------------------------------------


def test_nothing_at_all() -> None:
    with pytest.raises(UndecodableMedia, match="empty"):
        Recording(io.BytesIO(b""))


def test_a_recording_without_a_sample(make_wav: MakeWav) -> None:
    with pytest.raises(UndecodableMedia):
        decode(make_wav(np.zeros((0, 1))))


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
        b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period/></MPD>',
        b"<!doctype html><title>hello</title>",
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        b"GIF89a" + bytes(200),
        b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(200),
        b"PK\x03\x04" + bytes(200),
        b"%PDF-1.7\n" + bytes(200),
        b"\x7fELF" + bytes(200),
        b"1\n00:00:01,000 --> 00:00:02,000\nhello\n",
        b"WEBVTT\n\n00:01.000 --> 00:02.000\nhello\n",
        b"x",
        bytes(5000),
    ],
    ids=[
        "hls-file",
        "hls-http",
        "concat",
        "sdp",
        "dash",
        "html",
        "png",
        "gif",
        "jpeg",
        "zip",
        "pdf",
        "elf",
        "srt",
        "vtt",
        "x",
        "0",
    ],
)
def test_playlists_pictures_and_documents_are_not_media(content: bytes) -> None:
    with pytest.raises(UnsupportedMedia, match="not audio or video"):
        Recording(io.BytesIO(content))


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=4000))
def test_random_bytes_give_samples_or_a_media_error(content: bytes) -> None:
    try:
        blocks = list(Recording(io.BytesIO(content)).blocks())
    except MEDIA_ERRORS:
        return
    assert all(np.isfinite(block).all() and np.abs(block).max() <= 1 for block in blocks)


@pytest.mark.parametrize("tag", [b"\xff\x00", b"\x00\xff", b"\x80\x80"])
def test_a_codec_tag_that_is_no_text_is_judged_like_any_other(tag: bytes) -> None:
    # 0x00ff is AAC in WAV, which exists; the others nobody knows.
    head = b"RIFF" + struct.pack("<I", 36 + 8000) + b"WAVEfmt \x10\0\0\0" + tag
    head += struct.pack("<HIIHH", 1, 16_000, 32_000, 2, 16) + b"data" + struct.pack("<I", 8000)
    with pytest.raises(UndecodableMedia, match=r"could be decoded|no decoder"):
        list(Recording(io.BytesIO(head + bytes(8000))).blocks())


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_damaged_wav_gives_samples_or_a_media_error(data: st.DataObject) -> None:
    body = (np.sin(np.arange(4000)) * 20_000).astype("<i2").tobytes()
    whole = bytearray(b"RIFF" + struct.pack("<I", 36 + len(body)) + b"WAVEfmt \x10\0\0\0")
    whole += struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16) + b"data" + struct.pack("<I", len(body)) + body
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    try:
        for block in itertools.islice(Recording(io.BytesIO(bytes(whole))).blocks(), 100):
            assert np.isfinite(block).all()
            assert np.abs(block).max() <= 1
    except MEDIA_ERRORS:
        return


# --- the corpus -------------------------------------------------------------------------------------------------------


def corpus() -> list[Path]:
    return sorted(path for path in (DATA / "hostile").rglob("*") if path.is_file() and path.suffix != ".sh")


@pytest.mark.speech
@pytest.mark.parametrize("path", corpus(), ids=lambda path: path.name)
def test_every_hostile_file_gives_samples_or_a_media_error(data: Path, path: Path) -> None:
    with path.open("rb") as file:
        try:
            # Ten minutes at most: the silent hours are the sandbox's to bound.
            blocks = list(itertools.islice(Recording(file).blocks(), 600))
        except MEDIA_ERRORS as error:
            told = str(error)
        else:
            told = ""
            assert blocks
            assert all(block.dtype == np.float32 for block in blocks)
            assert all(np.isfinite(block).all() and np.abs(block).max() <= 1.0 for block in blocks)
    assert str(path.parent) not in told


SPEECH = [
    "jfk_ok.m4a",
    "jfk_ok.mp3",
    "jfk_video.mp4",
    "jfk_video.webm",
    "jfk_192k.flac",
    "jfk_7.1_left_only.flac",
    "jfk_8k.gsm",
    "jfk_8k_mulaw.au",
    "jfk_stereo_phase_inverted.wav",
    "id3_xss_title.mp3",
    "mp3_zip_polyglot.mp3",
]


@pytest.mark.speech
@pytest.mark.parametrize("name", SPEECH)
def test_speech_survives_its_container(data: Path, name: str) -> None:
    original = decode(data / "english/jfk/jfk.flac")
    decoded = decode(data / "hostile/generated" / name)
    assert decoded.size == pytest.approx(original.size, rel=0.02)
    # Loud and quiet in the same places, whatever the codec did to the waveform.
    frames = min(original.size, decoded.size) // 1600
    loudness = [np.sqrt(np.square(s[: frames * 1600]).reshape(frames, 1600).mean(axis=1)) for s in (original, decoded)]
    assert np.corrcoef(loudness[0], loudness[1])[0, 1] > 0.9


@pytest.mark.speech
@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("jfk_truncated_no_moov.m4a", UndecodableMedia, "damaged"),
        ("jfk_cenc_encrypted.mp4", UndecodableMedia, "encrypted"),
        ("video_no_audio.mp4", NoAudioTrack, "no audio track"),
        ("wav_65535_channels.wav", UndecodableMedia, "damaged"),
        ("wav_zero_rate.wav", UndecodableMedia, "damaged"),
        ("hls_file_read.mp4", UnsupportedMedia, "not audio"),
        ("hls_ssrf.m3u8", UnsupportedMedia, "not audio"),
        ("concat.ffconcat", UnsupportedMedia, "not audio"),
        ("sdp_named.wav", UnsupportedMedia, "not audio"),
        ("html_named.wav", UnsupportedMedia, "not audio"),
        ("png_named.mp3", UnsupportedMedia, "not audio"),
        ("random_bytes.mp3", UnsupportedMedia, "not audio"),
        ("zip_bomb_512MB.zip", UnsupportedMedia, "not audio"),
    ],
)
def test_what_is_wrong_is_named(data: Path, name: str, error: type[MetalscribeError], words: str) -> None:
    with pytest.raises(error, match=words):
        decode(data / "hostile/generated" / name)


@pytest.mark.speech
def test_the_audio_track_can_be_chosen(data: Path) -> None:
    path = data / "hostile/generated/two_audio_tracks_speech_is_second.mkv"
    assert abs(loudest_hertz(decode(path)) - 300) < 2
    second = decode(path, track=1)
    original = decode(data / "english/jfk/jfk.flac")
    assert second.size == pytest.approx(original.size, rel=0.02)
    assert abs(loudest_hertz(second) - 300) > 2
    with pytest.raises(NoAudioTrack, match="has 2"):
        decode(path, track=2)


@pytest.mark.speech
def test_a_recording_that_ends_early_keeps_what_came_before(data: Path) -> None:
    whole = decode(data / "hostile/generated/jfk_ok.mp3")
    part = decode(data / "hostile/generated/jfk_truncated.mp3")
    assert 0.3 * whole.size < part.size < 0.6 * whole.size


@pytest.mark.speech
def test_a_wav_that_claims_more_than_it_has(data: Path) -> None:
    assert decode(data / "hostile/generated/wav_claims_4GB.wav").size == SAMPLE_RATE
