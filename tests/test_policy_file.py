"""Policy files: what is saved is what is loaded, and nothing else loads."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from letta_gym.errors import PolicyFileError
from letta_gym.library.vectors import EmbedderIdentity, snap
from letta_gym.sealed import seal, unseal
from letta_gym.selection.policy_file import EmbedderRecord, PolicyFile, PolicyHeader

HEADER = PolicyHeader(
    schema_hash="cd" * 32,
    columns=["cosine", "unknown"],
    embedder=EmbedderRecord(id="model", weights_sha256="ab" * 32, dimension=4),
    dimensions={"features": 2, "hidden": 3},
    hyper_parameters={"learning_rate": 3e-4, "max_skills": 3},
    provenance={"seed": 7, "steps": 1000},
    evaluation={"return": {"mean": 0.5, "low": 0.4, "high": 0.6}},
)


def policy(header: PolicyHeader = HEADER) -> PolicyFile:
    rng = np.random.default_rng(0)
    tensors = {
        "score.weight": rng.standard_normal((2, 3)).astype(np.float32),
        "score.bias": np.zeros(3, np.float32),
    }
    return PolicyFile(header, tensors, snap(rng.standard_normal((5, 4))))


def test_a_policy_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = policy()
    saved.save(tmp_path / "policy.safetensors")
    loaded = PolicyFile.load(tmp_path / "policy.safetensors", expected_schema="cd" * 32)
    assert loaded.header == HEADER
    assert loaded.digest == saved.digest
    assert np.array_equal(loaded.probes, saved.probes)
    assert set(loaded.tensors) == set(saved.tensors)
    for name, tensor in saved.tensors.items():
        assert np.array_equal(loaded.tensors[name], tensor)
        assert loaded.tensors[name].dtype == np.float32
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.to_bytes()


def test_every_single_flipped_bit_is_a_policy_file_error() -> None:
    data = policy().to_bytes()
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(PolicyFileError):
                PolicyFile.from_bytes(bytes(damaged))


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 500, -1])
def test_a_truncated_file_is_a_policy_file_error(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "policy.safetensors"
    path.write_bytes(policy().to_bytes()[:cut])
    with pytest.raises(PolicyFileError, match=r"policy\.safetensors: damaged"):
        PolicyFile.load(path)


def test_bytes_after_the_end_are_a_policy_file_error() -> None:
    with pytest.raises(PolicyFileError, match="damaged"):
        PolicyFile.from_bytes(policy().to_bytes() + b"\0")


def test_a_missing_file_and_a_folder_are_policy_file_errors(tmp_path: Path) -> None:
    for path in [tmp_path / "none", tmp_path]:
        with pytest.raises(PolicyFileError, match="cannot read"):
            PolicyFile.load(path)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "exploded",)

    path = tmp_path / "policy.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(PolicyFileError):
        PolicyFile.load(path)
    assert not (tmp_path / "exploded").exists()


def test_the_digest_changes_with_any_part() -> None:
    first = policy()
    other_seed = policy(HEADER.model_copy(update={"provenance": {"seed": 8}}))
    bias = {**first.tensors, "score.bias": np.full(3, 1e-30, np.float32)}
    renamed = {"score.other": first.tensors["score.bias"], **first.tensors}
    digests = {
        first.digest,
        other_seed.digest,
        replace(first, tensors=bias).digest,
        replace(first, tensors=renamed).digest,
        replace(first, probes=first.probes[::-1].copy()).digest,
    }
    assert len(digests) == 5
    assert policy().digest == first.digest


def test_another_schema_is_refused_and_both_hashes_are_named(tmp_path: Path) -> None:
    policy().save(tmp_path / "p")
    with pytest.raises(PolicyFileError, match=r"cdcdcdcdcdcd.*efefefefefef"):
        PolicyFile.load(tmp_path / "p", expected_schema="ef" * 32)


def resealed(**changes: object) -> bytes:
    tensors, header = unseal(policy().to_bytes())
    return seal(tensors, {**header, **changes})


def test_a_well_sealed_file_of_another_version_is_refused() -> None:
    with pytest.raises(PolicyFileError, match="format version 2"):
        PolicyFile.from_bytes(resealed(format_version=2))


def test_a_well_sealed_file_with_another_header_is_refused() -> None:
    with pytest.raises(PolicyFileError, match="surprise"):
        PolicyFile.from_bytes(resealed(surprise=1))
    with pytest.raises(PolicyFileError, match="columns"):
        PolicyFile.from_bytes(resealed(columns="cosine"))


def test_a_well_sealed_file_without_probes_is_refused() -> None:
    tensors, header = unseal(policy().to_bytes())
    del tensors["probes"]
    with pytest.raises(PolicyFileError, match="probes"):
        PolicyFile.from_bytes(seal(tensors, header))


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (np.array([np.nan], np.float32), "not finite"),
        (np.array([np.inf], np.float32), "not finite"),
        (np.zeros(2), "float64"),
        ([1.0], "list"),
    ],
)
def test_tensors_that_are_not_finite_float32_are_refused(tensor: object, words: str) -> None:
    tensors = {"w": tensor}
    with pytest.raises(PolicyFileError, match=words):
        PolicyFile(HEADER, tensors, policy().probes)  # type: ignore[arg-type]


def test_a_sealed_nan_does_not_load() -> None:
    tensors, header = unseal(policy().to_bytes())
    tensors["score.bias"] = np.full(3, np.nan, np.float32)
    with pytest.raises(PolicyFileError, match="not finite"):
        PolicyFile.from_bytes(seal(tensors, header))


def test_probes_must_have_the_embedders_dimension() -> None:
    with pytest.raises(PolicyFileError, match=r"\(P, 4\)"):
        replace(policy(), probes=np.zeros((5, 3), np.float32))


def test_the_name_of_the_probes_is_taken() -> None:
    with pytest.raises(PolicyFileError, match="taken"):
        replace(policy(), tensors={"probes": np.zeros(3, np.float32)})


def test_a_header_that_is_not_json_cannot_be_saved(tmp_path: Path) -> None:
    header = HEADER.model_copy(update={"evaluation": {"return": float("nan")}})
    with pytest.raises(PolicyFileError, match="cannot be written"):
        policy(header).save(tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_tensors_are_read_only_copies() -> None:
    weight = np.ones(2, np.float32)
    kept = PolicyFile(HEADER, {"w": weight}, policy().probes)
    weight[:] = 5
    assert kept.tensors["w"].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="read-only"):
        kept.tensors["w"][0] = 2


def test_the_header_is_closed_and_gives_the_embedders_identity() -> None:
    assert HEADER.embedder.identity == EmbedderIdentity("model", "ab" * 32, 4)
    with pytest.raises(ValidationError):
        PolicyHeader.model_validate({**HEADER.model_dump(), "extra": 1})
