"""A learner to hand to :class:`letta_gym.letta.executor.TaskExecutor`: PPO on what it carried out.

learner = PolicyLearner(selector.policy)
executor = TaskExecutor(selector, backend, learner=learner)
executor.execute("Merge these PDF files", explore=True)
executor.train()
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from agents.log_config import SetLearningConfig
from agents.ppo import Metrics
from agents.set_learning import Sample, batches_of, learn, model_of, with_weights
from letta_gym.feedback.learner import Experience
from letta_gym.selection.policy import Policy


class PolicyLearner:
    """Improves a policy by gradients; a :class:`letta_gym.feedback.learner.Learner`.

    It learns from sets that were sampled (``explore=True``), for only they have a propensity; other
    decisions it passes over. The reward is that of the outcome, or its success where that was not
    priced. A decision waits until ``config.min_decisions`` of them are there, is learned from, and
    is forgotten; with later feedback it comes once more.

    Args:
        policy: where to start.
        config: how to learn; see :mod:`agents.set_learning`.
        rng: of the minibatches; from seed 0 by default.

    Attributes:
        policy: the latest.
        metrics: of each round of the latest learning; empty before it.

    Raises:
        ConfigError: the policy has a bilinear term.
    """

    def __init__(
        self,
        policy: Policy,
        config: SetLearningConfig | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.policy, self.config = policy, config or SetLearningConfig()
        self.metrics: list[Metrics] = []
        self._model = model_of(policy)
        self._rng = np.random.default_rng(0) if rng is None else rng
        self._waiting: dict[str, Sample] = {}

    @property
    def waiting(self) -> int:
        """Decisions that were not learned from yet."""
        return len(self._waiting)

    def learn(self, experiences: Sequence[Experience]) -> Policy | None:
        """Take ``experiences``; the new policy, or None while too few decisions wait."""
        for one in experiences:
            sample = sample_of(one)
            if sample is not None:
                self._waiting[one.decision.id] = sample
        if len(self._waiting) < self.config.min_decisions:
            return None
        batches = batches_of(self._waiting.values())
        with threadpool_limits(1):
            self.metrics = list(learn(self._model, batches, self.config, self._rng))
        self._waiting.clear()
        self.policy = Policy.from_file(with_weights(self.policy, self._model).to_file())
        return self.policy


def sample_of(experience: Experience) -> Sample | None:
    """What can be learned from a decision; None where it was not sampled, or nobody judged it."""
    decision, outcome = experience.decision, experience.outcome
    reward = outcome.success if outcome.reward is None else outcome.reward
    if not decision.explored or reward is None:
        return None
    return Sample(
        features=decision.features,
        context=decision.context,
        scores=decision.scores,
        slots=[pick.slot for pick in decision.picks],
        k=decision.k,
        log_propensity=decision.log_propensity,
        reward=reward,
    )
