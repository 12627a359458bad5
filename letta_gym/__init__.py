"""Learn which skills a Letta agent should load for a task, from what happened.

The way of the data, one room a stage; arrows between rooms run downwards only:

===================  ==============================================================================
``library``          what can be chosen, and for what: skills, tasks, suites, embeddings
``feedback``         what outcomes teach: evidence, memory, quality, off-policy evaluation
``selection``        the choice itself: candidates, observation, network, policy_file, runtime
``letta``            who carries the task out: the backend protocol, mock, labels, real agents
``envs``             Gymnasium glue over the rooms above: single, vector, checks
``store``            what outlives the process: models, migrations, the decision log, export
``service``          the API over HTTP: app, routes, desks, the journal, access
===================  ==============================================================================

Importing this package registers ``letta_gym/MockSkillSelection-v0``,
``letta_gym/ReplaySkillSelection-v0``, ``letta_gym/RehearsalSkillSelection-v0`` and
``letta_gym/SkillSelection-v0``.
"""

from __future__ import annotations

import gymnasium

from letta_gym.errors import LettaGymError

__version__ = "0.1.0"
__all__ = ["LettaGymError", "__version__"]

gymnasium.register(
    id="letta_gym/MockSkillSelection-v0",
    entry_point="letta_gym.envs.single:SkillSelectionEnv",
    vector_entry_point="letta_gym.envs.vector:SkillSelectionVectorEnv",
)

gymnasium.register(
    id="letta_gym/ReplaySkillSelection-v0",
    entry_point="letta_gym.envs.replay:ReplayEnv",
    vector_entry_point="letta_gym.envs.replay:ReplayVectorEnv",
)

gymnasium.register(
    id="letta_gym/RehearsalSkillSelection-v0",
    entry_point="letta_gym.envs.rehearsal:RehearsalEnv",
    vector_entry_point="letta_gym.envs.rehearsal:RehearsalVectorEnv",
)

gymnasium.register(
    id="letta_gym/SkillSelection-v0",
    entry_point="letta_gym.envs.live:LiveEnv",
    vector_entry_point="letta_gym.envs.live:LiveVectorEnv",
)
