"""`melllm data speak`: makes the synthetic corpus in any size, as shards of ready mel."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Annotated

from tyro.conf import Positional, arg

from data_pipelines.synthetic import synthetic_shards
from data_pipelines.synthetic.grammar import Split
from launch.terminal.flags import parse
from launch.terminal.progress_bar import count_progress
from melllm_jax.errors import Mistake
from melllm_jax.presets import catalog


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeakArguments:
    """Speak sentences of 66 words with 273 voices: what quickstart trains on, in any size.

    Test has sentences and voices that no other split has. The same flags give the same shards.
    """

    out: Annotated[str, Positional, arg(metavar="DIR")]  # folder of the shards; must hold none yet
    train: int = 5000  # utterances, of 2.3 s each
    dev: int = 100
    test: int = 300
    noise: tuple[float, float] | None = None  # lowest and highest dB of speech over pink noise
    seed: int = 0  # of sentences, voices and noise

    def __post_init__(self) -> None:
        for name in ("train", "dev", "test"):
            if getattr(self, name) < 1:
                raise Mistake(f"{name}={getattr(self, name)}: must be positive")
        if self.seed < 0:
            raise Mistake(f"seed={self.seed}: must be 0 or more")
        if self.noise is not None and not -60 <= self.noise[0] <= self.noise[1] <= 60:
            low, high = self.noise
            raise Mistake(f"noise={low:g} {high:g}: must be LOW HIGH in dB, from -60 to 60")


def main(argv: Sequence[str]) -> int:
    """`melllm data speak DIR --train 84000 --noise -20 10`."""
    arguments = parse(SpeakArguments, argv, prog="melllm data speak")
    if (pathlib.Path(arguments.out) / "index.json").exists():
        raise Mistake(f"out={arguments.out}: holds a corpus already")
    counts: dict[Split, int] = {
        "train": arguments.train,
        "dev": arguments.dev,
        "test": arguments.test,
    }
    with count_progress(sum(counts.values()), "utterances") as advance:
        index = synthetic_shards.write_shards(
            arguments.out,
            counts,
            catalog.preset("quickstart").mel,
            seed=arguments.seed,
            snrs=arguments.noise,
            progress=advance,
        )
    hours = sum(shard.seconds for listed in index.splits.values() for shard in listed) / 3600
    print(f"{sum(counts.values()):,} utterances, {hours:.1f} h: {arguments.out}")
    return 0
