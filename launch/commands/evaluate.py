"""`melllm evaluate`: scores of a run on a split, of generated speech, and perplexity on text."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import sys
from typing import Annotated, Any, Literal

from tyro.conf import arg

from data_pipelines.corpora.utterance import ASR
from launch.evaluation.score_split import score_split
from launch.evaluation.score_text import score_text
from launch.evaluation.speech.failures import FailureRules
from launch.evaluation.speech.measured_scores import Hearing
from launch.evaluation.speech.score_table import errors, score_table, trouble
from launch.evaluation.speech.speech_quality import (
    SCORES,
    SpeechScoring,
    default_folder,
    score_speech,
)
from launch.evaluation.speech.spoken_set import read_spoken
from launch.runs.option_scorer import ChoiceRule
from launch.runs.recognizer import DtypeChoice
from launch.runtime import compile_cache
from launch.speech.corpus_requests import corpus_requests
from launch.speech.run_speaker import SpeakerChoice, open_speaker
from launch.speech.spoken_files import MANIFEST, speak_folder
from launch.terminal import text_table
from launch.terminal.flags import parse
from launch.terminal.progress_bar import count_progress
from melllm_jax import files
from melllm_jax.errors import Fault, Mistake
from melllm_jax.evaluation.wer import Normalizer
from melllm_jax.inference.sampling import DecodingOptions
from melllm_jax.inference.synthesize import SpeakingOptions

OF_TTS = {"vocoder": "", "most": 0, "seed": 0, "speaking": SpeakingOptions()}  # at their defaults


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Score a run on a split: WER, the scores of tasks, and RTFx; hypotheses kept in RUN/eval.

    With --speech MANIFEST it scores sound that was generated, or recorded: a line for each file is
    {"id", "text", "audio_filepath"}, and may have "reference", the recording of the same sentence,
    "voice", a sound of the voice that was to speak, and "flags", as {"stopped": false}. The Whisper
    of --judge hears it. What was measured before, of sound that has not changed, stays.

    With --text FILE a run or an import is scored on text instead: perplexity, and bits a byte. Each
    token is told from those before it in a window; windows begin every --stride tokens.
    """

    # Of a run, or of an import: with --data a Whisper, or a model with a front end.
    run: Annotated[str, arg(aliases=("--checkpoint",), metavar="DIR")] = ""
    data: str = ""  # folder of prepared shards or of SPLIT.jsonl manifests
    split: str = "test"  # which of its splits
    llm: str = ""  # folder of a language model that answers what --run, a Whisper, hears
    batch: int = 32  # utterances decoded at once
    dtype: DtypeChoice = "own"  # of products; own: a run's optim.compute, an import's float32
    normalizer: Normalizer = "whisper"  # of both texts before they are compared: see melllm wer
    text: str = ""  # a text, or .jsonl with a text a line: its perplexity; - is standard input
    window: int = 0  # of text: tokens; 0: 2,048, or all positions of a model with fewer
    stride: int = 0  # of text: tokens from one window to the next; 0: half a window
    against: str = ""  # of text: folder of another run or import: KL(that ‖ run), a token
    # tts: a run speaks the texts of --split of --data, and what it says is scored as --speech
    task: Literal["asr", "tts"] = "asr"
    vocoder: str = ""  # of tts: folder of a vocoder; without one, Griffin-Lim
    most: int = 0  # of tts: texts at most; 0 is all
    seed: int = 0  # of tts: of what is drawn
    speaking: SpeakingOptions = dataclasses.field(default_factory=SpeakingOptions)  # of tts
    speech: str = ""  # a manifest of spoken files, or a folder of a corpus, of which --split
    judge: str = ""  # of speech: folder of an imported Whisper, which hears it
    # of speech: the Python that has torch and the extra judge, if it is not this one
    judge_python: str = ""
    failures: FailureRules = dataclasses.field(default_factory=FailureRules)  # of speech
    choice: ChoiceRule = "sum"  # an option's log-probability, or its mean by token or byte
    # folder of the hypotheses and their summary, by default RUN/eval; of speech of scores.json, by
    # default beside the manifest
    out: str = ""
    name: str = ""  # of the files there; by default the folder's, the split's and the LLM's
    json: bool = False  # print one JSON object on standard output and nothing else
    decoding: DecodingOptions = dataclasses.field(default_factory=DecodingOptions)


def main(argv: Sequence[str]) -> int:
    """`melllm evaluate --run DIR --data DIR --split NAME`, or `--speech MANIFEST --judge DIR`."""
    arguments = parse(EvaluateArguments, argv, prog="melllm evaluate")
    if arguments.task == "tts":
        return _print_speech_score(_speak_split(arguments))
    for field, plain in OF_TTS.items():
        if getattr(arguments, field) != plain:
            raise Mistake(f"{field}={getattr(arguments, field)}: goes with --task tts")
    if arguments.speech:
        return _print_speech_score(arguments)
    for field in ("judge", "judge_python"):
        if getattr(arguments, field):
            raise Mistake(f"{field}={getattr(arguments, field)}: goes with --speech")
    if not arguments.run:
        raise Mistake("missing --run DIR")
    if bool(arguments.data) == bool(arguments.text):
        raise Mistake("evaluate: give --data DIR, to transcribe, or --text FILE")
    if arguments.against and not arguments.text:
        raise Mistake(f"against={arguments.against}: compares on a text: give --text FILE")
    for field in ("llm", "out"):
        if arguments.text and getattr(arguments, field):
            rule = "goes with --data, not with --text"
            raise Mistake(f"{field}={getattr(arguments, field)}: {rule}")
    if arguments.text:
        return _print_text_score(arguments)
    scored = score_split(
        arguments.run,
        arguments.data,
        arguments.split,
        llm=arguments.llm,
        batch=arguments.batch,
        normalizer=arguments.normalizer,
        out=arguments.out,
        name=arguments.name,
        decoding=arguments.decoding,
        choice=arguments.choice,
        dtype=arguments.dtype,
    )
    summary = scored.summary
    if arguments.json:
        print(json.dumps(summary))
        return 0
    print(f"hypotheses: {scored.hypotheses}", file=sys.stderr)
    where = (
        f"{summary['data']} ({summary['split']}), RTFx {summary['rtfx']:.0f} on {summary['chip']}"
    )
    if "wer" in summary:
        print(f"WER {summary['wer']:.2%} on {summary['utterances']} utterances of {where}")
    for task, metrics in summary.get("tasks", {}).items():
        for metric, figures in metrics.items():
            if (task, metric) != (ASR, "wer"):
                said = _figure_text(metric, figures)
                print(f"{task}: {said} on {figures['utterances']} utterances of {where}")
    return 0


def _print_text_score(arguments: EvaluateArguments) -> int:
    found: dict[str, Any] = score_text(
        arguments.run,
        arguments.text,
        window=arguments.window,
        stride=arguments.stride,
        against=arguments.against,
    )
    if arguments.json:
        print(json.dumps(found))
        return 0
    print(
        f"perplexity {found['perplexity']:.4f}: {found['nats_per_token']:.5f} nats a token, "
        f"{found['bits_per_byte']:.4f} bits a byte, of {found['tokens']} tokens in "
        f"{found['texts']} texts ({found['text']}); windows of {found['window']} tokens every "
        f"{found['stride']}"
    )
    if arguments.against:
        drift = found["against"]
        print(
            f"KL(base ‖ run) {drift['kl']:.6g} nats a token: perplexity {drift['perplexity']:.4f}, "
            f"{drift['base_perplexity']:.4f} of the base ({drift['checkpoint']})"
        )
    return 0


def _speak_split(arguments: EvaluateArguments) -> EvaluateArguments:
    """The arguments that score what a run said, once it has said it.

    That is kept in RUN/eval/tts-SPLIT-STEP, and not said again.
    """
    if not (arguments.run and arguments.data and arguments.judge):
        raise Mistake("task=tts: needs --run DIR, --data DIR and --judge WHISPER")
    if arguments.speech:
        raise Mistake(f"speech={arguments.speech}: does not go with --task tts")
    requests = corpus_requests(arguments.data, arguments.split, arguments.most)
    choice = SpeakerChoice(
        run=arguments.run,
        vocoder=arguments.vocoder,
        options=arguments.speaking,
        seed=arguments.seed,
        batch=arguments.batch,
    )
    with (
        compile_cache.use_folder(compile_cache.FOLDER),
        open_speaker(choice) as speaker,
        count_progress(len(requests), "texts") as advance,
    ):
        step = speaker.settings["checkpoint"]
        out = arguments.out or f"{arguments.run}/eval/tts-{arguments.split}-{step}"
        folder = files.local_path("out", out)
        speak_folder(requests, folder, speaker.settings, speaker, advance)
    spoken = str(folder / MANIFEST)
    return dataclasses.replace(arguments, run="", data="", speech=spoken, out=out)


def _print_speech_score(arguments: EvaluateArguments) -> int:
    for field in ("run", "data", "text", "llm", "against", "name", "window", "stride"):
        if getattr(arguments, field):
            raise Mistake(f"{field}={getattr(arguments, field)}: does not go with --speech")
    if not arguments.judge:
        raise Mistake("judge: --speech needs the folder of the Whisper that hears it")
    spoken = read_spoken(arguments.speech, arguments.split)
    hearing = Hearing(arguments.judge, arguments.batch, arguments.dtype, arguments.decoding)
    rules, python = arguments.failures, arguments.judge_python
    how = SpeechScoring(hearing, arguments.normalizer, rules, python)
    out = files.local_path("out", arguments.out or default_folder(arguments.speech))
    with compile_cache.use_folder(compile_cache.FOLDER):
        found = score_speech(spoken, how, out, lambda x: print(x, file=sys.stderr, flush=True))
    if arguments.json:
        print(json.dumps(found))
    else:
        table = score_table(found)
        text_table.show(text_table.table(table.heads, table.rows, right=(1, 2, 3)))
        for error in errors(found):
            print(error)
    print(f"scores: {out / SCORES}", file=sys.stderr)
    if dead := trouble(found):
        raise Fault("; ".join(dead))
    return 0


def _figure_text(metric: str, figures: Mapping[str, Any]) -> str:
    if metric == "mae":
        mean = "no number" if figures["mae"] is None else f"{figures['mae']:.2f}"
        return f"mean absolute error {mean} ({figures['unparsed']} without a number)"
    if metric == "choice":
        rule, chance = figures["rule"], figures["chance"]
        return f"right option {figures['accuracy']:.2%} (by {rule}, chance {chance:.2%})"
    return f"{'WER' if metric == 'wer' else metric} {figures[metric]:.2%}"
