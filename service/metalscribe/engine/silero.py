"""Silero VAD v6 (MIT): how likely every 32 ms of a recording are to be speech. Runs inside the decoders' sandbox.

The network is the ONNX file that faster-whisper ships. Four fifths of its time went into convolutions that ONNX Runtime works
out for each window by itself, as products of tiny matrices; here all windows of a block share large ones. What follows, the
LSTM, stays ONNX Runtime's: the file without the convolutions' nodes. Together they take a third of the time
(docs/performance.md), and give what the whole file gives (tests/unit/test_silero.py).
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

WINDOW: Final = 512
"""Samples of a decision at 16 kHz, 32 ms."""

CONTEXT: Final = 64
"""Samples before a window that are shown with it."""

UNITS: Final = 128
"""Of the LSTM."""

_FRAME: Final = 256
_HOP: Final = 128
_FRAMES: Final = WINDOW // _HOP
_BINS: Final = _FRAME // 2 + 1
_FLOAT32: Final = 1  # TensorProto.DataType

_Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Layer:
    """A convolution over frames, then max(0, x).

    Attributes:
        weights: float32[taps * inputs, outputs].
        bias: float32[outputs].
    """

    weights: _Array
    bias: _Array

    def __call__(self, rows: _Array) -> _Array:
        """float32[n, taps * inputs] to float32[n, outputs]."""
        product: _Array = rows @ self.weights
        np.add(product, self.bias, out=product)
        return np.maximum(product, 0, out=product)


@dataclass(frozen=True, slots=True)
class Silero:
    """The network. It remembers nothing itself, so that all recordings of a process share it.

    Attributes:
        basis: float32[256, 258], the windowed Fourier transform: 129 cosines, 129 sines.
        layers: the four convolutions. The last two see a single frame at the edge of their input: they lack the weights for
            what would be padding.
        memory: ONNX Runtime's session of the rest.
        embedding: the name of its first input; the others are h and c.
    """

    basis: _Array
    layers: tuple[_Layer, _Layer, _Layer, _Layer]
    memory: onnxruntime.InferenceSession
    embedding: str

    def __call__(self, windows: _Array, hidden: _Array, cell: _Array) -> tuple[_Array, _Array, _Array]:
        """How likely consecutive windows are speech.

        Args:
            windows: float32[n, 576], each behind its context.
            hidden: float32[1, 1, 128], as returned for what came before; zeros at the start.
            cell: likewise.

        Returns:
            float32[n] probabilities, and the state behind them.
        """
        feeds = {self.embedding: self._embed(windows)[:, np.newaxis], "h": hidden, "c": cell}
        speech, hidden, cell = self.memory.run(None, feeds)
        return np.asarray(speech, np.float32).reshape(-1), hidden, cell

    def _embed(self, windows: _Array) -> _Array:
        """float32[n, 576] to float32[n, 128]: the part without memory."""
        # The last frame reaches 64 samples beyond its window, and sees the last ones mirrored there.
        mirrored = np.concatenate([windows, windows[:, -2 : -CONTEXT - 2 : -1]], axis=1)
        spectrum = _patches(mirrored, _FRAMES, _HOP, _FRAME) @ self.basis
        np.square(spectrum, out=spectrum)
        hidden = np.sqrt(spectrum[:, :_BINS] + spectrum[:, _BINS:])

        first, second, third, fourth = self.layers
        hidden = first(_patches(_edged(hidden), _FRAMES, _BINS, 3 * _BINS))
        width = hidden.shape[1]
        hidden = second(_patches(_edged(hidden), _FRAMES // 2, 2 * width, 3 * width))
        return fourth(third(hidden.reshape(len(windows), -1)))


@functools.cache
def load() -> Silero:
    """The network, read once a process; it has no threads and no memory of its own, so that forked processes can use it too.

    Raises:
        FileNotFoundError: faster-whisper, or the detector in it, is not installed.
        ValueError: its detector is another network than what is computed here.
    """
    file = _file()
    try:
        model = _onnx().FromString(file.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{file} is damaged ({error}); install faster-whisper again") from error
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def weights(name: str, *shape: int) -> _Array:
        tensor = tensors.get(name)
        if tensor is None or tuple(tensor.dims) != shape or tensor.data_type != _FLOAT32:
            raise ValueError(f"{file} is not Silero VAD v6: {name} is missing, or not float32{list(shape)}")
        return np.frombuffer(tensor.raw_data, "<f4").reshape(shape)

    def layer(number: int, inputs: int, outputs: int, *taps: int) -> _Layer:
        kernel = weights(f"encoder.conv_layers.{number}.weight", outputs, inputs, 3)[:, :, taps]
        bias = weights(f"encoder.conv_layers.{number}.bias", outputs)
        return _Layer(np.ascontiguousarray(kernel.transpose(2, 1, 0).reshape(-1, outputs)), bias)

    basis = weights("encoder.feature_extractor.forward_basis_buffer", 2 * _BINS, 1, _FRAME)
    layers = (layer(0, _BINS, 128, 0, 1, 2), layer(1, 128, 64, 0, 1, 2), layer(2, 64, 64, 1, 2), layer(3, 64, UNITS, 1))
    embedding = _without_convolutions(model, file)
    return Silero(np.ascontiguousarray(basis[:, 0].T), layers, _session(model.SerializeToString()), embedding)


def _without_convolutions(model: Any, file: Path) -> str:
    """Leave only the LSTM and what follows in a model; returns the name of what it now takes in place of the samples."""
    nodes = list(model.graph.node)
    kinds = [node.op_type for node in nodes]
    if kinds.count("LSTM") != 1 or model.graph.input[0].name != "input":
        raise ValueError(f"{file} is not Silero VAD v6: it has the nodes {', '.join(kinds)}")
    rest = nodes[kinds.index("LSTM") :]
    needed = {name for node in rest for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    embedding = str(rest[0].input[0])
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(rest)
    model.graph.initializer.extend(kept)
    model.graph.input[0].name = embedding
    model.graph.input[0].type.Clear()
    model.graph.input[0].type.tensor_type.elem_type = _FLOAT32
    return embedding


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _onnx() -> Any:
    """The message class of ONNX files, with the fields that matter here; the others are kept as they are.

    Fields are declared by their numbers in onnx.proto: the onnx package would be thirty megabytes for these lines.
    """
    kind = descriptor_pb2.FieldDescriptorProto
    one, many = kind.LABEL_OPTIONAL, kind.LABEL_REPEATED
    declared = descriptor_pb2.FileDescriptorProto(name="onnx.proto", package="onnx", syntax="proto2")
    for message, fields in {
        "Model": (("graph", 7, one, "Graph"),),
        "Graph": (("node", 1, many, "Node"), ("initializer", 5, many, "Tensor"), ("input", 11, many, "ValueInfo")),
        "Node": (("input", 1, many, kind.TYPE_STRING), ("op_type", 4, one, kind.TYPE_STRING)),
        "Tensor": (
            ("dims", 1, many, kind.TYPE_INT64),
            ("data_type", 2, one, kind.TYPE_INT32),
            ("name", 8, one, kind.TYPE_STRING),
            ("raw_data", 9, one, kind.TYPE_BYTES),
        ),
        "ValueInfo": (("name", 1, one, kind.TYPE_STRING), ("type", 2, one, "Type")),
        "Type": (("tensor_type", 1, one, "TensorType"),),
        "TensorType": (("elem_type", 1, one, kind.TYPE_INT32),),
    }.items():
        described = declared.message_type.add(name=message)
        for name, number, label, type_ in fields:
            field = described.field.add(name=name, number=number, label=label)
            if isinstance(type_, str):
                field.type, field.type_name = kind.TYPE_MESSAGE, f".onnx.{type_}"
            else:
                field.type = type_
    pool = descriptor_pool.DescriptorPool()
    pool.Add(declared)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("onnx.Model"))


def _file() -> Path:
    """The detector's file inside faster-whisper, found without importing that package (and with it the model runtime)."""
    spec = importlib.util.find_spec("faster_whisper")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("faster-whisper is not installed")
    return Path(spec.submodule_search_locations[0]) / "assets" / "silero_vad_v6.onnx"


def _patches(rows: _Array, count: int, step: int, length: int) -> _Array:
    """``count`` stretches of each row, ``step`` apart, as float32[rows * count, length]."""
    size = rows.itemsize
    view = as_strided(rows, (len(rows), count, length), (rows.strides[0], step * size, size), writeable=False)
    return view.reshape(-1, length)


def _edged(frames: _Array) -> _Array:
    """float32[n * 4, bins], four frames a window, as float32[n, 6 * bins], with an empty frame on either side."""
    bins = frames.shape[1]
    edged = np.zeros((len(frames) // _FRAMES, (_FRAMES + 2) * bins), np.float32)
    edged[:, bins:-bins] = frames.reshape(-1, _FRAMES * bins)
    return edged
