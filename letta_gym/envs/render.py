"""A session as text that a person can follow."""

from __future__ import annotations

import textwrap

from letta_gym.envs.glue import PlayDriver, Step


class Transcript:
    """Collects the steps of the first session of a driver."""

    def __init__(self, driver: PlayDriver) -> None:
        self._driver = driver
        self._lines: list[str] = []
        self._total = 0.0

    def clear(self) -> None:
        """Begin a new session."""
        s, c = self._driver.sessions, self._driver.config
        self._total = 0.0
        left = f"session: {c.horizon} tasks, {float(s.tokens_left[0]):,.0f} tokens, "
        known, *more = s.introduction()
        wrapped = [textwrap.fill(line, 100, subsequent_indent="  ") for line in more]
        self._lines = [left + known, *wrapped]

    def add(self, step: Step) -> None:
        """Note one step; call it after the step, before the next observation."""
        s, pool = self._driver.sessions, self._driver.pool
        at = int(s.step_index[0]) - 1
        text = " ".join(pool.suite.tasks[int(s.done[0])].text.split())
        chosen = [
            (slot, on)
            for slot, on in zip(step.picks[0], step.outcomes.loaded[0], strict=True)
            if slot >= 0
        ]
        skills = s.slot_skills()[0]
        shown = [pool.ids[skills[slot]] + ("" if on else " (not loaded)") for slot, on in chosen]
        success, reward = float(step.outcomes.success[0]), float(step.reward[0])
        self._total += reward
        self._lines += [
            f"{at + 1:3d}  {textwrap.shorten(text, 94, placeholder=' ...')}",
            f"     {', '.join(shown) or 'no skill'}: success {success:.2f}, "
            f"reward {reward:+.3f}, tokens left {float(s.tokens_left[0]):,.0f}",
        ]
        if step.terminated[0] or step.truncated[0]:
            why = "budget spent" if step.terminated[0] else "all tasks done"
            self._lines.append(f"end: {why}, return {self._total:.3f}")

    def text(self) -> str:
        """The session so far."""
        return "\n".join(self._lines) + "\n"
