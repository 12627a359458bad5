"""The configuration of the service: ``configs/serve.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from letta_gym.config import Section
from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.feedback.promotion import GateConfig
from letta_gym.selection.candidates import RetrievalConfig
from letta_gym.selection.exploration import ExplorationConfig
from letta_gym.service.carrier import LettaConfig
from letta_gym.store.log import LogConfig

LOOPBACK = frozenset(["127.0.0.1", "::1", "localhost"])


def _origin(text: str) -> str:
    if text == "*" or "://" not in text:
        raise ValueError("an origin is written out: https://app.example.org; '*' is not one")
    return text.rstrip("/")


class AccessConfig(Section):
    """Who may call.

    ``keys``: whether every route but health needs an API key; off only on loopback.
    ``origins``: web pages of which browsers may call the API; none by default.
    ``refresh``: seconds after which a key that another process made or revoked is noticed.
    """

    keys: bool = True
    origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = ()
    refresh: float = Field(default=5.0, gt=0)


class LimitsConfig(Section):
    """What is let in; more is answered with 413, 422, 429 or 503, never kept waiting for ever.

    ``body``, ``upload``: bytes of a request, and of one that brings an archive or a policy.
    ``task``: characters of a task.
    ``rate``, ``burst``: requests per second of one key, in the long run and at once.
    ``waiting``: requests that may be under way at once; health is not counted.
    """

    body: int = Field(default=1 << 20, ge=1024)
    upload: int = Field(default=16 << 20, ge=1024)
    task: int = Field(default=20_000, ge=1)
    rate: float = Field(default=1_000.0, gt=0)
    burst: int = Field(default=2_000, ge=1)
    waiting: int = Field(default=512, ge=1)


class BaselineConfig(Section):
    """The policy that serves until one is trained: retrieval, then evidence as outcomes come in.

    It is the untrained network of the training configuration (``policy.sharpness`` and
    ``policy.threshold`` there), so the score of a skill is its expected gain.
    """

    sharpness: float = Field(default=30.0, gt=0)
    threshold: float = 0.03
    max_skills: int = Field(default=3, ge=1)
    candidates: int = Field(default=12, ge=1)
    token_price: float = Field(default=0.04, ge=0)
    evidence: EvidenceConfig = EvidenceConfig()
    retrieval: RetrievalConfig = RetrievalConfig()


class ServiceConfig(Section):
    """Everything that ``serve.py`` needs.

    ``data``: folder of the uploaded policies and of the cached vectors.
    ``store``: the database; a path, or postgresql://...; the environment variable
    LETTA_GYM_STORE takes its place, so that a password stays out of files.
    ``policy``: file that serves when the store names no active policy; missing is no error.
    ``agent``: on whose behalf a caller without an agent of its own acts.
    ``ui``: whether the dashboard is served at /ui, where the extra ``ui`` is installed.
    ``follow``: seconds after which a skill, a policy or an agent that another process changed in
    the same database is noticed.
    ``log_level``: of the log on standard error.
    ``train_command``: the words that start a training run, which take the options of ``train.py``;
    by default this Python with the ``train.py`` of the checkout that the package lies in.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    data: Path = Path("runs/service")
    store: str = "runs/service/store.sqlite"
    policy: Path | None = Path("runs/mock/policy.safetensors")
    agent: str = Field(default="default", min_length=1, max_length=100)
    ui: bool = True
    follow: float = Field(default=0.5, gt=0)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    train_command: tuple[str, ...] | None = Field(default=None, min_length=1)


class TrainingConfig(Section):
    """Training runs that the API starts; one at a time, each a process of its own.

    ``folder``: where each run has its folder.
    ``configs``: folder of the configurations, and ``allowed``: those of them that may be started.
    ``heartbeat``, ``lease``: seconds between two signs of life of a run's supervisor, and without
    one until the run counts as lost.
    ``patience``: seconds that a cancelled run has to finish its update; then it is ended, and
    continues from its last checkpoint.
    ``nice``: by how much the trainer steps back before other processes.
    """

    folder: Path = Path("runs/service/training")
    configs: Path = Path("configs")
    allowed: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], ...] = (
        "mock",
        "from-log",
    )
    heartbeat: float = Field(default=2.0, gt=0)
    lease: float = Field(default=10.0, gt=0)
    patience: float = Field(default=60.0, ge=0)
    nice: int = Field(default=10, ge=0, le=19)

    @model_validator(mode="after")
    def _a_beat_may_be_late(self) -> Self:
        if self.lease < 2 * self.heartbeat:
            raise ValueError(
                f"training.lease ({self.lease:g} s) must be at least twice training.heartbeat "
                f"({self.heartbeat:g} s), or a run counts as lost for one late sign of life"
            )
        return self


class ServeConfig(Section):
    """The whole file."""

    seed: int = Field(default=1, ge=0)
    service: ServiceConfig = ServiceConfig()
    access: AccessConfig = AccessConfig()
    limits: LimitsConfig = LimitsConfig()
    baseline: BaselineConfig = BaselineConfig()
    exploration: ExplorationConfig = ExplorationConfig()
    gate: GateConfig = GateConfig()
    letta: LettaConfig = LettaConfig()
    log: LogConfig = LogConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _open_only_to_this_machine(self) -> Self:
        if not self.access.keys and self.service.host not in LOOPBACK:
            raise ValueError(
                f"access.keys may be off only on loopback; service.host is {self.service.host!r}. "
                "Make a key with: letta-gym keys create"
            )
        return self
