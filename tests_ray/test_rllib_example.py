"""The example for RLlib learns; run by ``make test-ray``, in the environment that has Ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from examples import rllib_ppo
from examples.returns import random_action, returns

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def cluster() -> Iterator[None]:
    """Ray on this machine, without a dashboard."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_rllib_beats_random_actions_by_its_margin(cluster: None) -> None:
    act, env = rllib_ppo.learn(1024, seed=3), rllib_ppo.make()

    lead = (returns(env, act) - returns(env, random_action)).mean()

    assert lead > 2
