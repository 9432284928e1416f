"""Training jobs that share process groups: launched in batches by name, with access to their records."""

import json
from pathlib import Path

import yaml
from support.processes import run_ranks

ZERO_RUNS = Path(__file__).resolve().parent / "zero_runs.py"


class Runs:
    """The folders of jobs by name.

    Args:
        folder: parent folder of all jobs.
        config: config shared by all jobs.
        worker: script that runs a list of jobs as every rank.
    """

    def __init__(self, folder: Path, config: dict, worker: Path = ZERO_RUNS) -> None:
        self.folder, self.worker = folder, worker
        self.config, self._bare = folder / "config.yaml", folder / "without-objective.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self._bare.write_text(yaml.safe_dump({key: value for key, value in config.items() if key != "objective"}))

    def job(self, name: str, *overrides: str, copy_from: str | None = None, **rest: object) -> dict:
        """Return a training job; an override ``objective={...}`` replaces the config's entire objective."""
        whole = any(override.startswith("objective={") for override in overrides)
        return {
            "dir": str(self.folder / name),
            "config": str(self._bare if whole else self.config),
            "overrides": [override for override in overrides if override],
            "copy_from": str(self.folder / copy_from) if copy_from else None,
            **rest,
        }

    def launch(self, world_size: int, jobs: list[dict], *options: str, timeout: float = 900) -> None:
        path = self.folder / f"jobs-{world_size}-{Path(jobs[0]['dir']).name}.json"
        path.write_text(json.dumps(jobs))
        run_ranks(self.worker, world_size, str(path), *options, timeout=timeout)

    def records(self, name: str, key: str) -> list[float]:
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        return [record[key] for record in map(json.loads, lines) if key in record]

    def losses(self, name: str) -> list[float]:
        return self.records(name, "loss")

    def samples(self, name: str, step: int) -> list[int]:
        """Return the sample numbers of a step on all ranks."""
        paths = sorted((self.folder / name).glob("samples-*.jsonl"))
        lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        return sorted(number for line in lines if line["step"] == step for number in line["samples"])

    def error(self, name: str) -> str:
        return (self.folder / name / "error.txt").read_text()
