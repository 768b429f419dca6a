"""A media file's bytes to 16 kHz mono samples, through FFmpeg's libraries (PyAV). Runs inside the sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import av
import av.audio.stream
import av.error
import numpy as np
from numpy.typing import NDArray

from metalscribe.errors import NoAudioTrack, UndecodableMedia, UnsupportedMedia
from metalscribe.media.pcm import BLOCK, SAMPLE_RATE

MAX_CHANNELS: Final = 64

_MIXED_TOGETHER: Final = 8192
"""Samples whose channels are weighed against each other, half a second."""

_CARRIES_SOMETHING: Final = 1e-3  # of the loudest channel's energy: 30 dB below it

_Samples = NDArray[np.float32]

# FFmpeg demuxers that read one file and nothing else. Left out on purpose: playlists and manifests that name other files
# or addresses (hls, dash, concat, sdp, rtsp, imf, …), still images, subtitles, devices, and raw formats without a header,
# which would match anything.
CONTAINERS: Final = (
    "3g2,3gp,aa,aac,aax,ac3,ac4,act,adts,adx,aiff,amr,amrnb,amrwb,ape,aptx,asf,asf_o,ast,au,avi,avr,bonk,caf,daud,dsf,"
    "dss,dts,dtshd,dv,ea,eac3,f4v,flac,flv,g722,gsm,gxf,hca,iff,ilbc,ircam,iv8,kux,latm,lc3,loas,m4a,m4v,matroska,"
    "matroska,webm,mj2,mlp,mmf,mov,mov,mp4,m4a,3gp,3g2,mj2,mp2,mp3,mp4,mpc,mpc8,mpeg,mpegts,mpegvideo,mtv,mxf,nistsphere,"
    "nsv,nut,oga,ogg,ogv,oma,opus,osq,paf,pva,qcp,qoa,rka,rm,rso,sbc,shn,smjpeg,sox,spdif,swf,tak,truehd,tta,voc,vivo,"
    "vqf,w64,wav,webm,wsd,wtv,wv,wve,xa,xwma"
)

_OPTIONS: Final = {
    "format_whitelist": CONTAINERS,
    # The file comes through Python's read(); FFmpeg itself may open nothing: no file, no address, whatever the file says.
    "protocol_whitelist": "none",
    "enable_drefs": "0",
    "use_absolute_path": "0",
}

_HEAD: Final = 64

# (offset, signature) of what a file may be damaged *as*; only chooses the words of an error.
_SIGNATURES: Final = (
    (0, b"RIFF"),
    (0, b"RF64"),
    (0, b"OggS"),
    (0, b"fLaC"),
    (0, b"ID3"),
    (0, b"FORM"),
    (0, b"caff"),
    (0, b"#!AMR"),
    (0, b".snd"),
    (0, b"\x0b\x77"),  # AC-3
    (0, b"\x1a\x45\xdf\xa3"),  # Matroska, WebM
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # ASF, WMA
    (0, b"FLV\x01"),
    (4, b"ftyp"),
    (4, b"moov"),
    (4, b"mdat"),
    (4, b"styp"),
)


@dataclass(frozen=True, slots=True)
class Opening:
    """What the container's header says: FFmpeg's names, seconds (None where unknown) and the number of audio streams."""

    container: str
    codec: str
    duration: float | None
    tracks: int


class Recording:
    """An opened media file: iterate :meth:`blocks` once.

    Raises (on construction):
        UnsupportedMedia: no permitted demuxer knows the bytes.
        UndecodableMedia: recognised, but empty, damaged, encrypted or without a decoder.
        NoAudioTrack: no audio stream, or fewer than ``track`` + 1.
    """

    def __init__(self, file: BinaryIO, *, track: int = 0) -> None:
        head = file.read(_HEAD)
        if not head:
            raise UndecodableMedia("the file is empty")
        file.seek(0)
        try:
            self._container = av.open(file, mode="r", options=dict(_OPTIONS), metadata_errors="ignore")
        except (av.error.FFmpegError, ValueError, EOFError) as error:
            # Invalid data: no demuxer knows the bytes. Invalid argument: one does, but it is not among CONTAINERS.
            if _claims_to_be_media(head):
                raise UndecodableMedia(f"the container is damaged or cut short: {_reason(error)}") from None
            raise UnsupportedMedia(
                "the content is not audio or video (judged by its bytes, not by its name); send a media file, not a playlist, "
                "picture, document or archive"
            ) from None
        streams = self._container.streams.audio
        if not streams:
            raise NoAudioTrack("the file has no audio track, only video or data")
        if track >= len(streams):
            raise NoAudioTrack(f"audio_track={track} does not exist; the file has {len(streams)}, counted from 0")
        self._stream = streams[track]
        self.damaged = 0
        self._check(self._stream)

    def _check(self, stream: av.audio.stream.AudioStream) -> None:
        context = stream.codec_context
        if context is None:
            raise UndecodableMedia("no decoder for this audio track (perhaps it is encrypted)")
        if context.codec.name == "none" or _tag(context) in {"enca", "drms"}:
            raise UndecodableMedia("the audio track is encrypted (DRM); post it unprotected")
        if not 0 < context.sample_rate <= 1_536_000 and context.codec.name.startswith("pcm"):
            raise UndecodableMedia(f"a sample rate of {context.sample_rate} Hz makes no sense")
        if context.channels > MAX_CHANNELS:
            raise UndecodableMedia(f"{context.channels} audio channels; at most {MAX_CHANNELS} can be mixed down")
        # The service decodes many files side by side; threads inside one decoder would only multiply its memory.
        context.thread_type = "NONE"
        context.thread_count = 1

    @property
    def opening(self) -> Opening:
        """The header's facts."""
        duration = None
        if self._stream.duration and self._stream.time_base:
            duration = float(self._stream.duration * self._stream.time_base)
        elif self._container.duration:
            duration = self._container.duration / av.time_base
        return Opening(
            container=self._container.format.name,
            codec=self._stream.codec_context.codec.name,
            duration=duration if duration and duration > 0 else None,
            tracks=len(self._container.streams.audio),
        )

    def blocks(self) -> Iterator[_Samples]:
        """The samples in order, float32[BLOCK] in −1 … 1 (the last block shorter), 16 kHz mono.

        Damaged packets are skipped and counted in :attr:`damaged`, as players do.

        Raises:
            UndecodableMedia: not one sample came out.
        """
        pending: list[_Samples] = []
        held = 0
        total = 0
        for samples in self._samples():
            total += samples.size
            pending.append(samples)
            held += samples.size
            if held >= BLOCK:
                joined = np.concatenate(pending)
                whole = held - held % BLOCK
                for start in range(0, whole, BLOCK):
                    yield joined[start : start + BLOCK]
                pending, held = [joined[whole:]], held - whole
        if held:
            yield np.concatenate(pending)
        if not total:
            raise UndecodableMedia(
                f"the audio track is damaged or encrypted: {self.damaged} packets, none could be decoded"
                if self.damaged
                else "the audio track is empty"
            )

    def _samples(self) -> Iterator[_Samples]:
        downmix = _Downmix()
        for frame in self._frames():
            try:
                yield from downmix.feed(frame)
            except (av.error.FFmpegError, ValueError):
                # A stream may change its rate or layout midway; start afresh from here rather than give up.
                self.damaged += 1
                yield from self._rest(downmix)
                downmix = _Downmix()
        yield from self._rest(downmix)

    def _rest(self, downmix: _Downmix) -> Iterator[_Samples]:
        """What was decoded and waits for its half second to be full."""
        try:
            yield from downmix.finish()
        except (av.error.FFmpegError, ValueError):
            self.damaged += 1

    def _frames(self) -> Iterator[av.AudioFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, EOFError):
                return
            except av.error.FFmpegError:
                self.damaged += 1  # the container ends in mid-air: keep what came before
                return
            try:
                frames = packet.decode()
            except EOFError:
                return
            except (av.error.FFmpegError, ValueError):
                self.damaged += 1
                continue
            for frame in frames:
                if isinstance(frame, av.AudioFrame):
                    yield frame


class _Downmix:
    """Frames of any rate and layout to 16 kHz mono.

    FFmpeg resamples each channel; the mix is made here: FFmpeg's own overdrives loud surround sound, knows no mix for
    unusual numbers of channels, and lets inverted ones cancel out.
    """

    def __init__(self) -> None:
        self._resampler: av.AudioResampler | None = None

    def feed(self, frame: av.AudioFrame) -> Iterator[_Samples]:
        if self._resampler is None:
            # Packed, not planar: PyAV reads beyond the frame's eight plane pointers when there are more channels.
            # And in frames of half a second, so that numpy's calls do not matter: a codec's own have a few milliseconds.
            self._resampler = av.AudioResampler(
                format="flt", layout=frame.layout, rate=SAMPLE_RATE, frame_size=_MIXED_TOGETHER
            )
        for resampled in self._resampler.resample(frame):
            yield _mixed(resampled)

    def finish(self) -> Iterator[_Samples]:
        if self._resampler is not None:
            for resampled in self._resampler.resample(None):
                yield _mixed(resampled)


def _tag(context: av.CodecContext) -> str:
    """The four letters by which the container names the codec, in lower case; empty where they are none (AAC in WAV)."""
    try:
        return context.codec_tag.lower()
    except UnicodeDecodeError:
        return ""


def _mixed(frame: av.AudioFrame) -> _Samples:
    return _mono(frame.to_ndarray().reshape(-1, frame.layout.nb_channels).T)


def _mono(planes: NDArray[Any]) -> _Samples:
    """float32[channels, n] to float32[n], finite and within -1 … 1: the mean of the channels that carry something."""
    if not np.isfinite(planes).all():
        planes = np.nan_to_num(planes, nan=0.0, posinf=0.0, neginf=0.0)
    finite = np.clip(planes, -1.0, 1.0).astype(np.float32, copy=False)
    if finite.shape[0] == 1:
        only: _Samples = finite[0]
        return only
    energy = np.square(finite).sum(axis=1)
    loudest = int(energy.argmax())
    mixed: _Samples = finite[energy >= _CARRIES_SOMETHING * energy[loudest]].mean(axis=0)
    # Phase-inverted channels cancel out: take one of them instead.
    if float(np.square(mixed).sum()) < _CARRIES_SOMETHING * float(energy[loudest]):
        mixed = finite[loudest]
    return mixed


def _claims_to_be_media(head: bytes) -> bool:
    return any(head.startswith(signature, offset) for offset, signature in _SIGNATURES)


def _reason(error: Exception) -> str:
    """FFmpeg's words without PyAV's decoration, which repeats the file's name."""
    return str(getattr(error, "strerror", None) or type(error).__name__).lower()
