"""The policy file: a trained policy with all that is needed to trust and to use it.

It is a sealed safetensors file (see :mod:`letta_gym.sealed`): float32 tensors, and a JSON header.
Any damage, down to one flipped bit, is a :class:`~letta_gym.errors.PolicyFileError`, and nothing is
ever unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from letta_gym.errors import PolicyFileError
from letta_gym.files import write_atomically
from letta_gym.library.vectors import EmbedderIdentity, Float
from letta_gym.sealed import SealError, digest_of, seal, unseal

FORMAT_VERSION: Final = 1
DEFAULT: Final = "default"
"""Stands for the policy that comes with the package."""
DEFAULT_FILE = Path(__file__).with_name("default.safetensors")

_PROBES = "probes"


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EmbedderRecord(_Closed):
    """Which embedder the policy was trained with; ``dimension`` is D."""

    id: str
    weights_sha256: str
    dimension: int = Field(ge=1)

    @property
    def identity(self) -> EmbedderIdentity:
        """The same as an :class:`EmbedderIdentity`, for ``check_same_model``."""
        return EmbedderIdentity(self.id, self.weights_sha256, self.dimension)


class PolicyHeader(_Closed):
    """Header of a policy file; closed to unknown keys.

    ``schema_hash`` and ``columns`` fix the features the policy reads; ``dimensions`` are the sizes
    of its network; ``provenance`` says how it was made (configuration, seed, steps, version), and
    ``evaluation`` how well it did.
    """

    format_version: Literal[1] = FORMAT_VERSION
    schema_hash: str
    columns: list[str]
    embedder: EmbedderRecord
    dimensions: dict[str, int]
    hyper_parameters: dict[str, JsonValue] = {}
    provenance: dict[str, JsonValue] = {}
    evaluation: dict[str, JsonValue] = {}


@dataclass(frozen=True, eq=False)
class PolicyFile:
    """A policy in memory, as it stands in its file.

    ``tensors`` maps names to float32 arrays of any shape; ``probes`` are the embedder's vectors of
    :data:`~letta_gym.library.embeddings.PROBES`, float32, shape (P, D). All are
    copied and read-only.

    Raises:
        PolicyFileError: a tensor is not float32 or not finite, a name is empty or taken, or the
            probes do not have the embedder's dimension.
    """

    header: PolicyHeader
    tensors: Mapping[str, Float]
    probes: Float

    def __post_init__(self) -> None:
        if _PROBES in self.tensors:
            raise PolicyFileError(f"the tensor name {_PROBES!r} is taken; use the field 'probes'")
        tensors = {name: _checked(name, tensor) for name, tensor in self.tensors.items()}
        object.__setattr__(self, "tensors", MappingProxyType(tensors))
        object.__setattr__(self, "probes", _checked(_PROBES, self.probes))
        if self.probes.ndim != 2 or self.probes.shape[1] != self.header.embedder.dimension:
            raise PolicyFileError(
                f"probes must have shape (P, {self.header.embedder.dimension}), as the embedder "
                f"says; got {self.probes.shape}"
            )

    @property
    def digest(self) -> str:
        """SHA-256 over tensors and header, in hexadecimal: the same content has the same digest."""
        return digest_of(self._sealed)

    def to_bytes(self) -> bytes:
        """The content of the file."""
        return self._sealed

    def save(self, path: Path | str) -> None:
        """Write the file atomically: a reader finds the old file or the new one, never a part."""
        write_atomically(path, self._sealed)

    @classmethod
    def load(cls, path: Path | str, *, expected_schema: str | None = None) -> PolicyFile:
        """Read a policy file.

        Args:
            path: the file; "default" is the one that comes with the package.
            expected_schema: hash of the feature columns that the caller computes.

        Raises:
            PolicyFileError: the file is missing, damaged, of another format version, or made for
                other feature columns.
        """
        try:
            data = (DEFAULT_FILE if path == DEFAULT else Path(path)).read_bytes()
        except OSError as error:
            raise PolicyFileError(f"cannot read the policy {path}: {error.strerror}") from error
        try:
            policy = cls.from_bytes(data)
        except PolicyFileError as error:
            raise PolicyFileError(f"{path}: {error}") from error
        if expected_schema is not None and policy.header.schema_hash != expected_schema:
            raise PolicyFileError(
                f"{path} was trained on feature columns with the hash "
                f"{policy.header.schema_hash[:12]}, this version computes {expected_schema[:12]}; "
                "train again, or use the version of letta-gym that made it"
            )
        return policy

    @classmethod
    def from_bytes(cls, data: bytes) -> PolicyFile:
        """Read the content of a policy file; raises :class:`PolicyFileError` as :meth:`load`."""
        try:
            tensors, fields = unseal(data)
        except SealError as error:
            raise PolicyFileError(
                f"damaged, or no policy file: {error}; restore it from where it was made"
            ) from error
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise PolicyFileError(
                f"format version {version!r}; this version of letta-gym reads {FORMAT_VERSION}"
            )
        try:
            probes = tensors.pop(_PROBES)
            policy = cls(PolicyHeader.model_validate(fields), tensors, probes)
        except ValidationError as error:
            raise PolicyFileError(f"the header does not fit: {error}") from error
        except KeyError as error:
            raise PolicyFileError(f"the tensor {error} is missing") from error
        if policy.to_bytes() != data:
            raise PolicyFileError("the bytes are not laid out as this format version lays them out")
        return policy

    @cached_property
    def _sealed(self) -> bytes:
        tensors: dict[str, NDArray[Any]] = {**self.tensors, _PROBES: self.probes}
        try:
            return seal(tensors, self.header.model_dump(mode="json"))
        except SealError as error:
            raise PolicyFileError(f"the policy cannot be written: {error}") from error


def _checked(name: str, tensor: Float) -> Float:
    if not name or not isinstance(tensor, np.ndarray) or tensor.dtype != np.float32:
        kind = getattr(tensor, "dtype", type(tensor).__name__)
        raise PolicyFileError(f"tensor {name!r} must be a float32 array with a name; got {kind}")
    if not np.isfinite(tensor).all():
        raise PolicyFileError(f"tensor {name!r} has values that are not finite; training diverged")
    copy = tensor.copy()
    copy.setflags(write=False)
    return copy
