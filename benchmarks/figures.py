"""The one form in which every benchmark prints and keeps its figures.

``python -m benchmarks.figures`` prints all that were kept, in one table.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import letta_gym
from agents.evaluation import Interval
from letta_gym.files import write_atomically

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value, the target that was set for it, and whether it holds (None: no target)."""

    value: float | str | bool
    target: str | None = None
    holds: bool | None = None


def below(value: float, target: float) -> Figure:
    """A value that must lie below ``target``."""
    return Figure(value, f"< {target:g}", value < target)


def at_least(value: float, target: float) -> Figure:
    """A value that must reach ``target``."""
    return Figure(value, f">= {target:g}", value >= target)


def equal(value: float | str | bool, target: float | str | bool) -> Figure:
    """A value that must be ``target``."""
    return Figure(value, f"{target}", value == target)


def bounds(interval: Interval, name: str) -> dict[str, Figure]:
    """Mean and 95 % interval as figures ``<name>_mean``, ``_low`` and ``_high``."""
    return {
        f"{name}_{bound}": Figure(getattr(interval, bound)) for bound in ("mean", "low", "high")
    }


def report(name: str, figures: Mapping[str, Figure], packages: tuple[str, ...] = ()) -> Path:
    """Print the figures as a table and write them to ``benchmarks/results/<name>.json``.

    Args:
        name: the benchmark, so that ``python -m benchmarks.<name>`` measures it again.
        figures: by a key that names quantity and unit.
        packages: distributions, besides NumPy, whose versions matter.
    """
    print(table(figures))
    content = {
        "command": f"python -m benchmarks.{name}",
        "machine": machine(),
        "versions": versions(packages),
        "figures": {key: asdict(figure) for key, figure in figures.items()},
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    return path


def table(figures: Mapping[str, Figure]) -> str:
    """The figures as text, one a line."""
    width = max(len(key) for key in figures)
    lines = [f"{'figure':{width}s}  {'value':>12s}  {'target':>10s}  holds"]
    for key, figure in figures.items():
        value = f"{figure.value:.4g}" if isinstance(figure.value, float) else str(figure.value)
        holds = {None: "", True: "yes", False: "NO"}[figure.holds]
        lines.append(f"{key:{width}s}  {value:>12s}  {figure.target or '':>10s}  {holds}")
    return "\n".join(lines)


def kept() -> dict[str, Figure]:
    """Every figure that was measured last, as ``benchmark/key``."""
    return {
        f"{path.stem}/{key}": figure
        for path in sorted(RESULTS.glob("*.json"))
        for key, figure in measured(path.stem).items()
    }


def measured(name: str) -> dict[str, Figure]:
    """The figures that the benchmark ``name`` kept; none where it was never run."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return {key: Figure(**figure) for key, figure in kept.items()}


def machine() -> str:
    """Processor, cores and system, as far as the platform tells."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}"


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of Python, letta-gym, NumPy and ``packages``."""
    own = {"python": platform.python_version(), "letta-gym": letta_gym.__version__}
    return own | {package: metadata.version(package) for package in ("numpy", *packages)}


if __name__ == "__main__":
    print(table(kept()))
