"""Whisper's encoder and its cached greedy decoding against transformers', taken in turns.

python benchmarks/whisper.py MODEL_DIR --out benchmarks/results/whisper.json
python benchmarks/whisper.py MODEL_DIR --data CORPUS --out FILE

MODEL_DIR is a Whisper in Hugging Face's layout. The encoder hears 8 windows of 30 s; decoding says
64 tokens, ends suppressed, of what the encoder has said of one window and of eight. With CORPUS the
first 8 files of its test.jsonl are transcribed too, one at a time, and both texts are compared.
Beside the figures stands what the machine allows: of the encoder its multiplications over the rate
of a large matrix product, of decoding the bytes that each token reads over the rate at which
threads read memory.
"""

import argparse
import json
import os
import pathlib
import tempfile
from typing import Any

from decode_pretrained import reading_rate
from support.phi_small import paired, report, serve

TOKENS, SECONDS, FILES = 64, 30, 8
THREADS = int(os.environ.get("THREADS", "2"))
WHAT, ROWS = os.environ.get("WHAT", ""), int(os.environ.get("ROWS", "1"))
THEIRS, OURS, DATA = (os.environ.get(name, "") for name in ("THEIRS", "OURS", "DATA"))


def windows(m: int):
    """Windows of noise [ROWS 3000 m], on the scale of log-mel, the same for both."""
    import numpy as np

    return np.random.default_rng(0).normal(0, 0.5, (ROWS, 3000, m)).astype(np.float32)


def corpus_rows() -> list[dict[str, Any]]:
    lines = pathlib.Path(DATA, "test.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:FILES]]


def corpus_files() -> list[str]:
    return [str(pathlib.Path(DATA, row["audio_filepath"])) for row in corpus_rows()]


def work_ours() -> None:
    import dataclasses

    import jax
    import numpy as np

    from launch import api
    from melllm_jax.inference.sampling import GREEDY_UNGUARDED
    from melllm_jax.inference.whisper_generate import WhisperGenerator
    from melllm_jax.models.parameters import abstract_model
    from melllm_jax.models.whisper import WhisperModel

    loaded = api.load(OURS, devices=jax.devices()[:1])
    assert isinstance(loaded, api.LoadedWhisper)
    if WHAT == "transcribe":
        files = corpus_files()
        keep = pathlib.Path(OURS, "texts.json").write_text
        serve(lambda: keep(json.dumps(loaded.transcribe(files))))
        return
    spec, mels = loaded.spec, windows(loaded.spec.mel.m)
    never = (*spec.rules.suppressed, *spec.rules.ends)
    rules = dataclasses.replace(spec.rules, suppressed=never)
    with jax.set_mesh(loaded.mesh):
        build = lambda rngs: WhisperModel(rngs, dataclasses.replace(spec, rules=rules))
        model = abstract_model(build)[0].model(loaded.params)
        generator = WhisperGenerator(model, GREEDY_UNGUARDED)
        states = generator.encode(mels)
        if WHAT == "encoder":
            serve(lambda: jax.block_until_ready(generator.encode(mels)))
            return
        limits = np.full(ROWS, TOKENS, np.int32)

        def action() -> None:
            out = jax.device_get(generator.decode(states, limits))
            assert (out.lengths == TOKENS).all()

        serve(action)


def work_torch() -> None:
    import torch
    import transformers
    from transformers.modeling_outputs import BaseModelOutput

    from data_pipelines.audio.file_io import decode_sound

    torch.set_num_threads(THREADS)
    load: Any = transformers.WhisperForConditionalGeneration.from_pretrained
    model = load(THEIRS, dtype=torch.float32).eval()
    if WHAT == "transcribe":
        extractor = transformers.WhisperFeatureExtractor.from_pretrained(THEIRS)
        tokenizer = transformers.AutoTokenizer.from_pretrained(THEIRS)

        def texts() -> list[str]:
            found = []
            for file in corpus_files():
                wave = decode_sound(file).at(16_000).wave
                features = extractor(wave, sampling_rate=16_000, return_tensors="pt")
                with torch.no_grad():
                    ids = model.generate(features.input_features)
                found += tokenizer.batch_decode(ids, skip_special_tokens=True)
            return [text.strip() for text in found]

        keep = pathlib.Path(OURS, "their_texts.json").write_text
        serve(lambda: keep(json.dumps(texts())))
        return
    mels = torch.tensor(windows(model.config.num_mel_bins)).transpose(1, 2).contiguous()
    with torch.no_grad():
        states = model.model.encoder(mels)
    lengths = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}

    def action() -> None:
        with torch.no_grad():
            if WHAT == "encoder":
                model.model.encoder(mels)
                return
            given = BaseModelOutput(last_hidden_state=states.last_hidden_state)
            out = model.generate(encoder_outputs=given, do_sample=False, **lengths)
            assert out.shape[1] in (TOKENS, TOKENS + 2)

    serve(action)


def limit(rows: int) -> dict[str, float]:
    """What the machine allows, by WHAT: milliseconds, and the rate that says so."""
    from launch.bench.matmul_rate import measure_matmul_rate
    from melllm_jax.checkpoints import run_folder

    spec = run_folder.read_whisper(OURS)
    assert spec is not None
    e, d = spec.encoder, spec.decoder
    t, width = e.positions, e.d
    if os.environ["WHAT"] == "encoder":
        layer = 4 * width * width + 2 * width * e.f + 2 * t * width
        products = t * e.l * layer + 2 * t * 3 * spec.mel.m * width + t * 3 * width * width
        rate = measure_matmul_rate("float32")
        return {
            "matmul_flops_per_second": rate,
            "limit_milliseconds": 2e3 * rows * products / rate,
        }
    layer = 6 * width * width + 2 * width * d.f + 2 * rows * t * width
    rate = reading_rate(threads=THREADS)
    seconds = 4 * (d.l * layer + d.v * width) * TOKENS / rate
    return {"bytes_read_per_second": rate, "limit_milliseconds": 1e3 * seconds}


def measured(what: str, rows: int, rounds: int, command: str) -> dict[str, Any]:
    """Both in turns: what `report` says, and RTFx of both."""
    os.environ |= {"WHAT": what, "ROWS": str(rows)}
    taken = paired(__file__, ("ours", "torch"), rounds)
    if what == "transcribe":
        seconds = sum(row["duration"] for row in corpus_rows())
        ours, theirs = (
            json.loads(pathlib.Path(OURS, name).read_text())
            for name in ("texts.json", "their_texts.json")
        )
        same = sum(map(str.__eq__, ours, theirs))
        allowed = {"same_texts": same, "texts": len(theirs)}
    else:
        seconds, allowed = SECONDS * rows, limit(rows)
    found = report(what, command, taken, "", threads=THREADS, batch=rows, **allowed)
    rtfx = {name: 1e3 * seconds / ms for name, ms in found["milliseconds"].items()}
    machine = found["machine"].replace("2 threads", f"{THREADS} threads")
    return found | {
        "machine": machine,
        "rtfx": rtfx,
        "load": [round(x, 1) for x in os.getloadavg()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--worker", choices=("ours", "torch"))
    parser.add_argument("--data", default="")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--what", nargs="*", default=["encoder", "decode"])
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    if arguments.worker:
        {"ours": work_ours, "torch": work_torch}[arguments.worker]()
        return
    with tempfile.TemporaryDirectory() as folder:
        global OURS, DATA, THREADS
        OURS, DATA, THREADS = f"{folder}/imported", arguments.data, arguments.threads
        from launch import cli

        if cli.main(["convert", "import", arguments.model, OURS, "--json"]):
            raise SystemExit("the import failed")
        os.environ |= {"THEIRS": arguments.model, "OURS": OURS, "DATA": DATA}
        os.environ |= {"JAX_PLATFORMS": "cpu", "THREADS": str(THREADS)}
        name = pathlib.Path(arguments.model).name
        words = f"--rounds {arguments.rounds} --threads {THREADS}"
        command = f"python benchmarks/whisper.py {name} {words}" + " --data CORPUS" * bool(DATA)
        plan = {"encoder": [8], "decode": [1, 8], "transcribe": [1]}
        what = [*arguments.what, *["transcribe"] * bool(DATA)]
        found = {
            f"{each}, batch {rows}": measured(each, rows, arguments.rounds, command)
            for each in what
            for rows in plan[each]
        }
    if arguments.out:
        pathlib.Path(arguments.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
