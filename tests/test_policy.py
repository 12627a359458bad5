"""Policies: what is saved is what is served, and what does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.config import read
from letta_gym.errors import EmbeddingError, PolicyFileError
from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.library.embeddings import PROBES
from letta_gym.library.suite import bundled_suite
from letta_gym.library.vectors import EmbedderIdentity, Float, snap
from letta_gym.selection import network
from letta_gym.selection.candidates import RetrievalConfig
from letta_gym.selection.observation import CONTEXT, FEATURES, schema_hash
from letta_gym.selection.policy import Policy
from letta_gym.selection.policy_file import DEFAULT_FILE, PolicyFile

ROOT = Path(__file__).parent.parent
IDENTITY = EmbedderIdentity("model", "ab" * 32, 16)


class Embedder:
    """Another build of the model, ``distance`` away from it."""

    def __init__(self, identity: EmbedderIdentity, distance: float) -> None:
        self.identity, self.distance = identity, distance

    def encode(self, texts: Any) -> Float:
        """The probes' vectors, moved."""
        rng = np.random.default_rng(3)
        vectors = probes()
        return snap(vectors + self.distance * rng.standard_normal(vectors.shape))


def probes() -> Float:
    return snap(np.random.default_rng(2).standard_normal((len(PROBES), IDENTITY.dimension)))


def policy() -> Policy:
    weights = network.initial(np.random.default_rng(0), 6, sharpness=20.0, threshold=0.02)
    return Policy(
        weights={name: w.astype(np.float32) for name, w in weights.items()},
        evidence=EvidenceConfig(bandwidth=0.11, novelty=0.07),
        retrieval=RetrievalConfig(lexical_weight=0.3),
        token_price=0.04 / 1000,
        max_skills=2,
        slots=9,
        embedder=IDENTITY,
        probes=probes(),
    )


def test_a_policy_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    made = policy()
    file = made.to_file({"seed": 7}, {"return": {"mean": 0.5}})
    file.save(tmp_path / "policy.safetensors")
    loaded = Policy.load(tmp_path / "policy.safetensors")
    for field in ("evidence", "retrieval", "token_price", "max_skills", "slots", "embedder"):
        assert getattr(loaded, field) == getattr(made, field)
    assert loaded.dimension == 16
    assert set(loaded.weights) == set(made.weights)
    for name, tensor in made.weights.items():
        np.testing.assert_array_equal(loaded.weights[name], tensor, strict=True)
    np.testing.assert_array_equal(loaded.probes, made.probes)
    assert loaded.digest == file.digest
    assert loaded.to_file({"seed": 7}, {"return": {"mean": 0.5}}).digest == file.digest


def test_the_file_says_what_it_is() -> None:
    header = policy().to_file({"seed": 7}, {"return": 0.5}).header
    assert header.schema_hash == schema_hash()
    assert header.columns == [column.name for column in FEATURES + CONTEXT]
    assert header.dimensions == {"hidden": 6, "bilinear": 0, "max_skills": 2, "slots": 9}
    assert header.provenance == {"seed": 7}
    assert header.evaluation == {"return": 0.5}


def test_the_policy_of_the_package_fits_this_version_and_says_where_it_comes_from() -> None:
    file, loaded = PolicyFile.load("default"), Policy.load("default")
    vectors = bundled_suite().vectors
    assert vectors is not None
    assert loaded.embedder.weights_sha256 == vectors.identity.weights_sha256
    np.testing.assert_array_equal(loaded.probes, vectors.probes)
    assert loaded.digest == file.digest
    assert DEFAULT_FILE.stat().st_size < 64_000
    config = read(ROOT / "configs" / "mock.yaml", [])
    assert file.header.provenance["config"] == config.model_dump(mode="json")


def test_a_policy_of_other_columns_is_refused(tmp_path: Path) -> None:
    file = policy().to_file()
    header = file.header.model_copy(update={"schema_hash": "0" * 64})
    PolicyFile(header, file.tensors, file.probes).save(tmp_path / "old.safetensors")
    with pytest.raises(PolicyFileError, match="trained on feature columns with the hash 0000"):
        Policy.load(tmp_path / "old.safetensors")


def changed(
    dimensions: Mapping[str, Any] | None = None,
    without: str | None = None,
    **constants: Any,
) -> PolicyFile:
    file = policy().to_file()
    given = {**file.header.hyper_parameters, **constants}
    sizes = {**file.header.dimensions, **(dimensions or {})}
    for values in (given, sizes):
        values.pop(without or "", None)
    header = file.header.model_copy(update={"hyper_parameters": given, "dimensions": sizes})
    return PolicyFile(header, file.tensors, file.probes)


@pytest.mark.parametrize(
    "file",
    [
        lambda: changed(without="evidence"),
        lambda: changed(without="retrieval"),
        lambda: changed(without="token_price"),
        lambda: changed(without="max_skills"),
        lambda: changed(without="slots"),
        lambda: changed(without="hidden"),
        lambda: changed(evidence={"bandwidth": -1}),
        lambda: changed(evidence={"bandwith": 0.1}),
        lambda: changed(evidence=None),
        lambda: changed(retrieval=[1]),
        lambda: changed(token_price="cheap"),
        lambda: changed(token_price=None),
        lambda: changed(token_price=-0.1),
        lambda: changed(token_price="nan"),
        lambda: changed({"max_skills": 0}),
        lambda: changed({"slots": -3}),
        lambda: changed({"hidden": -1}),
        lambda: changed({"hidden": 7}),
    ],
)
def test_constants_that_are_missing_or_wrong_are_policy_file_errors(
    file: Callable[[], PolicyFile],
) -> None:
    with pytest.raises(PolicyFileError, match=r"header|shapes"):
        Policy.from_file(file())


@pytest.mark.parametrize("name", sorted(network.shapes(6)))
def test_a_tensor_of_a_wrong_shape_or_none_at_all_is_a_policy_file_error(name: str) -> None:
    file = policy().to_file()
    longer = np.zeros((len(file.tensors[name]) + 1, *file.tensors[name].shape[1:]), np.float32)
    missing = {key: tensor for key, tensor in file.tensors.items() if key != name}
    for tensors in ({**file.tensors, name: longer}, missing):
        with pytest.raises(PolicyFileError, match=f"must have the shapes .*{name}"):
            Policy.from_file(PolicyFile(file.header, tensors, file.probes))


def test_a_tensor_too_many_is_a_policy_file_error() -> None:
    file = policy().to_file()
    tensors = {**file.tensors, "more": np.zeros(1, np.float32)}
    with pytest.raises(PolicyFileError, match="must have the shapes"):
        Policy.from_file(PolicyFile(file.header, tensors, file.probes))


def test_another_build_of_the_model_passes_and_another_model_does_not() -> None:
    made = policy()
    build = replace(IDENTITY, weights_sha256="cd" * 32)
    made.check(Embedder(IDENTITY, distance=9.0))  # equal weights are enough
    made.check(Embedder(build, distance=0.01))
    with pytest.raises(EmbeddingError, match=r"model \(weights ab.*model \(weights cd.*disagree"):
        made.check(Embedder(build, distance=1.0))
    with pytest.raises(EmbeddingError, match="probes of shape"):
        made.check(Embedder(replace(build, dimension=8), distance=0.0))
