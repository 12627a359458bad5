"""A policy: the network's weights with the constants that they were trained with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue, ValidationError

from letta_gym.errors import PolicyFileError
from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.library.embeddings import Embedder, check_same_model
from letta_gym.library.vectors import EmbedderIdentity
from letta_gym.selection import bilinear, network
from letta_gym.selection.candidates import RetrievalConfig
from letta_gym.selection.observation import CONTEXT, FEATURES, schema_hash
from letta_gym.selection.opening import Opening
from letta_gym.selection.policy_file import EmbedderRecord, PolicyFile, PolicyHeader

Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class Policy:
    """What the runtime needs of a policy file.

    Attributes:
        weights: named float32 arrays of :mod:`letta_gym.selection.network`.
        evidence, retrieval: constants of the features.
        token_price: reward that a token costs.
        max_skills: k, most skills of one choice.
        slots: M, candidates of one choice.
        embedder: the embedder whose vectors the policy knows.
        probes: its vectors of the probe texts, shape (P, D).
        opening: what decides on STOP before there are outcomes; None for the network alone.
        digest: SHA-256 of the file; of the same content as a file before it is saved.
    """

    weights: Mapping[str, Float]
    evidence: EvidenceConfig
    retrieval: RetrievalConfig
    token_price: float
    max_skills: int
    slots: int
    embedder: EmbedderIdentity
    probes: Float
    opening: Opening | None = None
    digest: str = ""

    @property
    def dimension(self) -> int:
        """D, length of a vector."""
        return self.embedder.dimension

    @property
    def usual_skills(self) -> int:
        """Most skills of a choice where nobody says: 3, or as many as the policy can."""
        return min(3, self.max_skills)

    def check(self, embedder: Embedder) -> None:
        """Raise :class:`EmbeddingError` unless ``embedder`` gives the vectors the policy knows."""
        check_same_model(self.embedder, self.probes, embedder)

    @classmethod
    def load(cls, path: Path | str) -> Policy:
        """Read a policy file.

        Raises:
            PolicyFileError: it is missing, damaged, or not made for these features.
        """
        return cls.from_file(PolicyFile.load(path, expected_schema=schema_hash()))

    @classmethod
    def from_file(cls, file: PolicyFile) -> Policy:
        """The policy of a file that was read.

        Raises:
            PolicyFileError: a tensor or a constant does not fit the network.
        """
        header = file.header
        hidden = max(header.dimensions.get("hidden", 0), 0)
        rank = max(header.dimensions.get("bilinear", 0), 0)
        expected = network.shapes(hidden) | bilinear.shapes(rank, header.embedder.dimension)
        found = {name: tensor.shape for name, tensor in file.tensors.items()}
        if found != expected:
            raise PolicyFileError(f"the tensors must have the shapes {expected}; got {found}")
        constants = header.hyper_parameters
        try:
            return cls(
                weights=file.tensors,
                evidence=EvidenceConfig.model_validate(constants["evidence"]),
                retrieval=RetrievalConfig.model_validate(constants["retrieval"]),
                token_price=_price(constants["token_price"]),
                max_skills=_size(header, "max_skills"),
                slots=_size(header, "slots"),
                embedder=header.embedder.identity,
                probes=file.probes,
                opening=_opening(constants),
                digest=file.digest,
            )
        except (KeyError, ValueError, ValidationError) as error:
            raise PolicyFileError(f"the header lacks or misstates a constant: {error}") from error

    def to_file(
        self,
        provenance: Mapping[str, JsonValue] | None = None,
        evaluation: Mapping[str, JsonValue] | None = None,
    ) -> PolicyFile:
        """The policy as a file, with how it was made and how well it did."""
        hidden = len(self.weights["score_bias"])
        header = PolicyHeader(
            schema_hash=schema_hash(),
            columns=[column.name for column in FEATURES + CONTEXT],
            embedder=EmbedderRecord(
                id=self.embedder.id,
                weights_sha256=self.embedder.weights_sha256,
                dimension=self.embedder.dimension,
            ),
            dimensions={
                "hidden": hidden,
                "bilinear": bilinear.rank(self.weights),
                "max_skills": self.max_skills,
                "slots": self.slots,
            },
            hyper_parameters={
                "evidence": self.evidence.model_dump(mode="json"),
                "retrieval": self.retrieval.model_dump(mode="json"),
                "token_price": self.token_price,
                **_said(self.opening),
            },
            provenance=dict(provenance or {}),
            evaluation=dict(evaluation or {}),
        )
        tensors = {name: np.asarray(w, np.float32) for name, w in self.weights.items()}
        return PolicyFile(header, tensors, self.probes)


def _price(value: JsonValue) -> float:
    if not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"token_price must be a number of at least 0; got {value!r}")
    return float(value)


def _opening(constants: Mapping[str, JsonValue]) -> Opening | None:
    given = constants.get("opening")
    return None if given is None else Opening.model_validate(given)


def _said(opening: Opening | None) -> dict[str, JsonValue]:
    return {} if opening is None else {"opening": opening.model_dump(mode="json")}


def _size(header: PolicyHeader, name: str) -> int:
    size = header.dimensions[name]
    if size < 1:
        raise ValueError(f"{name} must be at least 1; got {size}")
    return size
