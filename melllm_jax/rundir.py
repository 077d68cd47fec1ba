"""A run's folder: `run.json` and what stands beside it, claimed by one run alone.

run.json  checkpoints/  metrics.jsonl  tensorboard/  tokenizer/  eval/  samples/
"""

from etils import epath

from melllm_jax import config
from melllm_jax.errors import Mistake


def claim(workdir: str, run: config.Run) -> None:
    """Make `workdir` this run's folder, or find that it already is.

    Raises Mistake where it belongs to a run of another identity; nothing in it is touched then.
    """
    path = epath.Path(workdir) / "run.json"
    if path.exists():
        other = config.from_json(path.read_text())
        if config.identity(other) != config.identity(run):
            here, there = dict(config.fields(run)), dict(config.fields(other))
            names = [name for name in here if here[name] != there.get(name)]
            raise Mistake(
                f"workdir={workdir}: belongs to run {config.identity(other)}, not "
                f"{config.identity(run)}; they differ in {', '.join(names[:6])}"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name("run.json.tmp")
    scratch.write_text(config.to_json(run))
    scratch.replace(path)


def read(workdir: str) -> config.Run:
    """The run whose folder this is. Raises Mistake where it is none."""
    path = epath.Path(workdir) / "run.json"
    if not path.exists():
        raise Mistake(f"run={workdir}: holds no run.json")
    return config.from_json(path.read_text())
