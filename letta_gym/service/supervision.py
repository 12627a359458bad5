"""What a supervisor of a training run is told, and what it finds in the folder of the run."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

CONFIG, LOG, LOCK, POLICY = "config.yaml", "train.log", "lock", "policy.safetensors"
CHECKPOINT = Path("checkpoint", "latest.safetensors")


class Order(BaseModel):
    """What to supervise.

    ``command`` starts the trainer in ``cwd``; ``folder`` is that of the run, ``policies`` that of
    the policies that the service knows. The others are those of
    :class:`~letta_gym.service.config.TrainingConfig`.
    """

    run: int
    holder: str
    actor: str
    command: tuple[str, ...]
    cwd: str
    folder: Path
    policies: Path
    heartbeat: float
    lease: float
    patience: float
    nice: int
