"""The final evaluation of a cell: held-out loss, word error rate, and what the training took."""

from collections.abc import Iterator
import json
from typing import Any

from etils import epath
import jax

from data_pipelines.corpora.corpus import Corpus, indices_longest_first, open_corpus
from data_pipelines.loader.eval_batches import EvalBatches
from launch.runs.fit import FitResult
from launch.runs.transcriber import Transcriber, read_trials, round_up_rows
from launch.sweep.ledger import Eval
from melllm_jax import flops, vocoder_flops
from melllm_jax.batch import Batch
from melllm_jax.config.run import BaseRun, Run
from melllm_jax.config.vocoder_run import VocoderRun
from melllm_jax.errors import Fault
from melllm_jax.evaluation.held_out_loss import measure_loss
from melllm_jax.inference.sampling import DecodingOptions


def evaluate(fitted: FitResult, folder: epath.Path, how: Eval) -> dict[str, Any]:
    """What final.json holds, of a run whose last update is made.

    WER is None where several processes train together, which decoding is not made for, where the
    model reads text alone or is a vocoder, and where the split has tasks of other metrics alone.
    What a target is scored by beside its loss has the name that the objective gives it: accuracy,
    or `mel` of a vocoder.
    """
    run = fitted.run
    corpus = open_corpus(how.data or run.data.sources[0].path, how.split)
    batches = EvalBatches(corpus, run, fitted.tokenizer, how.most)
    found = measure_loss(fitted.update, fitted.state, _rows(batches, fitted), fitted.mesh)
    if not found.targets:
        raise Fault(
            f"eval.data={corpus.path}: no utterance of {how.split} gives an example: "
            f"{batches.rejected}"
        )
    wer = _wer(run, fitted, corpus, how.wer) if how.wer and isinstance(run, Run) else None
    hours = [source.hours for source in run.data.sources]
    return {
        "loss": found.loss,
        **found.metrics,
        "targets": found.targets,
        "wer": wer,
        "utterances": batches.utterances,
        "rejected": batches.rejected,
        **_weights(run),
        **_training_totals(fitted, folder),
        "seed": run.seed,
        "r": run.mel.r,
        **({"d": run.model.d, "l": run.model.l} if isinstance(run, Run) else {}),
        "hours": sum(hours) if all(hours) else None,
        "chip": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }


def _weights(run: BaseRun) -> dict[str, int]:
    """Numbers of weights: those that multiply, all, and those of embedding and head."""
    if isinstance(run, VocoderRun):
        own = vocoder_flops.generator_parameters(run)
        total = own + vocoder_flops.discriminator_parameters(run)
        return {"params": own, "params_total": total, "embed": 0, "head": 0}
    assert isinstance(run, Run)
    p = flops.count_parameters(run)
    params = flops.matmul_parameters(run)
    return {"params": params, "params_total": p.total, "embed": p.embed, "head": p.head}


def _training_flops(run: BaseRun, updates: int, speech: float, text: float) -> float:
    """FLOPs of so many updates, of so many positions in all."""
    if isinstance(run, VocoderRun):
        return updates * vocoder_flops.vocoder_update_flops(run)
    assert isinstance(run, Run)
    return flops.training_flops(run, speech, text)


def _training_totals(fitted: FitResult, folder: epath.Path) -> dict[str, Any]:
    """Totals of the training, from its metrics: logged updates stand for those between them."""
    run, text = fitted.run, (folder / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    step = int(fitted.state.step)
    each = step / len(lines)
    tokens = each * sum(line["tokens"] for line in lines)
    speech = each * sum(line["tokens"] * line["speech_share"] for line in lines)
    audio = each * sum(line["audio_seconds_per_second"] * line["seconds"] for line in lines)
    last = lines[-max(len(lines) // 50, 1) :]
    return {
        "step": step,
        "tokens": round(tokens),
        "speech_positions": round(speech),
        "text_positions": round(tokens - speech),
        "audio_hours": audio / 3600,
        "flops": _training_flops(run, step, speech, tokens - speech),
        "train_loss": sum(line["loss"] for line in last) / len(last),
        "train_seconds": each * sum(line["seconds"] for line in lines),
    }


def _rows(batches: EvalBatches, fitted: FitResult) -> Iterator[Batch]:
    """This process's rows of each batch."""
    run = fitted.run
    size = run.data.b // run.data.lane_count  # rows of a lane
    held = [row for lane in fitted.lanes for row in range(lane * size, (lane + 1) * size)]
    for batch in batches:
        yield Batch(*(x[held] for x in batch))


def _wer(run: Run, fitted: FitResult, corpus: Corpus, most: int) -> float | None:
    """Word error rate of what is transcribed; None where there is nothing of the kind."""
    if run.model.front == "none" or jax.process_count() > 1:
        return None
    order = [int(index) for index in indices_longest_first(corpus) if index < most]
    found, _ = read_trials(corpus, run, fitted.tokenizer, order)
    trials = [trial for trial in found if trial.metric == "wer"]
    if found and not trials:  # tasks alone
        return None
    with jax.set_mesh(fitted.mesh):
        weights = fitted.state.trained | fitted.state.frozen
        model = fitted.update.skeleton.model(weights, fitted.update.dtype)
        transcribe = Transcriber(model, fitted.tokenizer, run, DecodingOptions())
        return transcribe.score(trials, round_up_rows(50))[1].wer
