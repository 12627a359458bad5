"""PPO in torch as CleanRL writes it, on the batched environment: one small network for every slot.

Tasks hardly touch each other, so the discount is 0. Needs torch, which the extra ``dev`` brings.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from torch import nn

from examples.returns import ID, SETTING, Act, compare, make


def encode(obs: Any) -> Any:
    """For each slot its features, the context, and last its mask: (..., M, F + C + 1)."""
    x, context, mask = (torch.as_tensor(obs[n]) for n in ("features", "context", "action_mask"))
    return torch.cat([x, context[..., None, :].expand(*x.shape[:-1], -1), mask[..., None]], -1)


def learn(steps: int, seed: int = 0, num_steps: int = 32) -> Act:
    """Train for ``steps`` tasks, and act greedily; every slot is loaded or not on its own."""
    torch.manual_seed(seed)
    envs = gymnasium.make_vec(ID, num_envs=16, **SETTING)
    obs = encode(envs.reset(seed=seed)[0])
    net = nn.Sequential(nn.Linear(obs.shape[-1], 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, eps=1e-5)

    def agent(obs: Any) -> tuple[Any, Any]:
        logits, values = net(obs).unbind(-1)
        logits = logits.masked_fill(obs[..., -1] == 0, -20)
        return torch.distributions.Bernoulli(logits=logits), values.mean(-1)

    for _ in range(steps // (16 * num_steps)):
        rows: list[tuple[Any, ...]] = []
        for _ in range(num_steps):
            policy, value = agent(obs)
            action = policy.sample()
            shown, reward, *_ = envs.step(action.numpy().astype("int8"))
            rows.append((obs, action, policy.log_prob(action).sum(-1), torch.as_tensor(reward)))
            obs = encode(shown)
        seen, acted, before, earned = (torch.cat(p).detach() for p in zip(*rows, strict=True))
        for batch in torch.cat([torch.randperm(len(earned)).view(4, -1) for _ in range(8)]):
            policy, value = agent(seen[batch])
            ratio = (policy.log_prob(acted[batch]).sum(-1) - before[batch]).exp()
            gain = (earned[batch] - value).detach()  # the advantage, without discount
            gain = (gain - gain.mean()) / gain.std()
            pg_loss = -torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
            v_loss = (value - earned[batch]).square().mean()
            optimizer.zero_grad()
            (pg_loss + v_loss - 0.01 * policy.entropy().sum(-1).mean()).backward()
            optimizer.step()
    return lambda observation, env: agent(encode(observation))[0].probs.gt(0.5).numpy().astype("i1")


if __name__ == "__main__":
    compare(make(), learn(40_960))
