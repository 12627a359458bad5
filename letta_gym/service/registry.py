"""The policies that the service knows: their files, their status, and which of them chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from letta_gym.errors import PolicyFileError
from letta_gym.files import write_atomically
from letta_gym.library.embeddings import SAME_MODEL, lowest_cosine
from letta_gym.library.vectors import SuiteVectors
from letta_gym.selection import network
from letta_gym.selection.observation import schema_hash
from letta_gym.selection.policy import Policy
from letta_gym.selection.policy_file import PolicyFile
from letta_gym.service.config import BaselineConfig
from letta_gym.service.problems import ApiError
from letta_gym.store.models import PolicyRow
from letta_gym.store.policies import Policies

FALLBACK = "fallback"


class Registry:
    """Policies by digest. Its methods read files and the database: call them beside the loop.

    Args:
        policies: their status in the store.
        folder: where the files are kept.
        space: vectors that a policy must have been trained with.
        baseline: the policy that serves until one is trained.
    """

    def __init__(
        self, policies: Policies, folder: Path, space: SuiteVectors, baseline: BaselineConfig
    ) -> None:
        self._policies, self._folder, self._space = policies, folder, space
        self._baseline = baseline

    def start(self, exported: Path | None, actor: str) -> Policy:
        """The policy to begin with: the active one, else ``exported``, else the baseline.

        Raises:
            PolicyFileError: its file is damaged or does not fit.
        """
        active = self._policies.with_status("active")
        if active and not self.is_fallback(active[0]):
            return self.load(active[0].digest)
        if exported is not None and exported.is_file():
            row = self.add(_read(exported), actor=actor)
        else:
            row = self.add(self._made_baseline().to_bytes(), actor=actor)
        self._policies.switch(row.digest, "active", actor=actor, detail={"why": "start"})
        return self.load(row.digest)

    def add(self, data: bytes, *, actor: str) -> PolicyRow:
        """Keep a policy as a candidate; one that is known stays as it is.

        Raises:
            PolicyFileError: the bytes are no policy file, or not one for this service.
        """
        file = PolicyFile.from_bytes(data)
        self._check(file)
        path = self._path(file.digest)
        if not path.is_file():
            write_atomically(path, data)
        header = file.header
        return self._policies.add(
            file.digest,
            actor=actor,
            path=str(path),
            provenance=header.provenance,
            evaluation=header.evaluation,
        )

    def load(self, digest: str) -> Policy:
        """The policy of a digest.

        Raises:
            PolicyFileError: its file is missing, damaged or does not fit.
        """
        return Policy.load(self._path(digest))

    def get(self, digest: str) -> PolicyRow:
        """What is known of a policy.

        Raises:
            ApiError: 404, there is no such policy.
        """
        for row in self._policies.all():
            if row.digest == digest:
                return row
        raise ApiError(404, f"there is no policy {digest!r}; GET /policies lists them")

    def all(self) -> list[PolicyRow]:
        """Every policy, the newest first."""
        return self._policies.all()

    @staticmethod
    def is_fallback(row: PolicyRow) -> bool:
        """Whether a policy is the untrained baseline."""
        return bool(row.provenance.get(FALLBACK))

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.safetensors"

    def _check(self, file: PolicyFile) -> None:
        if file.header.schema_hash != schema_hash():
            raise PolicyFileError(
                f"the policy was trained on feature columns with the hash "
                f"{file.header.schema_hash[:12]}, this version computes {schema_hash()[:12]}; "
                "train again"
            )
        Policy.from_file(file)
        mine = self._space.probes
        same_shape = file.probes.shape == mine.shape
        if not same_shape or (cosine := lowest_cosine(file.probes, mine)) < SAME_MODEL:
            found = f"lowest cosine {cosine:.3f}" if same_shape else f"shape {file.probes.shape}"
            raise PolicyFileError(
                f"the policy was trained with {file.header.embedder.identity}, the service uses "
                f"{self._space.identity}, and their vectors of the probes disagree ({found}); "
                "train with the service's embedder"
            )

    def _made_baseline(self) -> PolicyFile:
        b, space = self._baseline, self._space
        # The hidden layer has no say while its output weights are zero, so any one will do.
        weights = network.initial(np.random.default_rng(0), 1, b.sharpness, b.threshold)
        policy = Policy(
            weights={name: w.astype(np.float32) for name, w in weights.items()},
            evidence=b.evidence,
            retrieval=b.retrieval,
            token_price=b.token_price / 1000,
            max_skills=b.max_skills,
            slots=b.candidates,
            embedder=space.identity,
            probes=space.probes,
        )
        return policy.to_file(provenance={FALLBACK: True, "steps": 0})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PolicyFileError(f"cannot read the policy {path}: {error.strerror}") from error
