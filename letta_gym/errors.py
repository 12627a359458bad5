"""One family of errors: whatever letta-gym raises on purpose is a :class:`LettaGymError`.

Every message says what came, what was expected, and what to do about it.
"""

from __future__ import annotations


class LettaGymError(Exception):
    """Base of every error that letta-gym raises on purpose."""


class ConfigError(LettaGymError, ValueError):
    """A configuration file, an override or a keyword argument does not fit its schema."""


class SkillError(LettaGymError, ValueError):
    """A skill, or a tree of them, is malformed."""


class SuiteError(LettaGymError, ValueError):
    """A task suite (tasks with their library) is malformed or incomplete."""


class EmbeddingError(LettaGymError, ValueError):
    """Vectors are missing, have the wrong shape, or come from another embedder."""


class MissingExtraError(LettaGymError, ImportError):
    """An optional dependency is needed; the message names the extra that brings it."""

    def __init__(self, extra: str, what: str) -> None:
        super().__init__(f"{what} needs the extra '{extra}': pip install 'letta-gym[{extra}]'")
        self.extra = extra


class PolicyFileError(LettaGymError, ValueError):
    """A policy file is damaged, of another version, or does not fit what it is used with."""


class MemoryFileError(LettaGymError, ValueError):
    """A file of outcomes is damaged, of another version, or does not fit what it is used with."""


class CheckpointError(LettaGymError, ValueError):
    """A training checkpoint is damaged or belongs to another configuration."""


class DecisionError(LettaGymError, LookupError):
    """An outcome was recorded for a decision that is unknown, expired or already settled."""


class StoreError(LettaGymError, RuntimeError):
    """The store cannot be reached, is of a later version, or does not hold what is asked for."""


class PromotionError(StoreError):
    """A policy cannot be moved as was asked: its status, or what the log says, is against it."""


class BundleError(LettaGymError, ValueError):
    """A bundle of skills and evidence is damaged, or cannot be taken in as it is."""


class LearnerError(LettaGymError, RuntimeError):
    """Training was asked of something that has no learner."""


class BackendError(LettaGymError, RuntimeError):
    """A backend could not carry a task out; this is never evidence about a skill."""
