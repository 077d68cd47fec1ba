"""Prefill and cached greedy decoding of SmolLM2-135M against transformers, taken in turns.

python benchmarks/decode_pretrained.py MODEL_DIR --what decode --batch 8 --out FILE

MODEL_DIR is a checkpoint in Hugging Face's layout that `melllm convert import` takes. Beside the
figures stands what the machine allows: of decoding, the bytes of all weights over the rate at which
two threads read memory; of prefill, its multiplications over the rate of a large matrix product.
"""

import argparse
from concurrent import futures
import json
import os
import pathlib
import tempfile
import time

from support.phi_small import paired, report, serve

PREFILL, PROMPT, NEW = 512, 32, 64  # tokens
ROWS = int(os.environ.get("ROWS", "1"))
LENGTH, COUNT = (int(os.environ.get(name, "1")) for name in ("LENGTH", "COUNT"))
THEIRS, OURS = (os.environ.get(name, "") for name in ("THEIRS", "OURS"))


def tokens():
    """Random ids [rows length], the same for both."""
    import numpy as np

    v = json.loads(pathlib.Path(THEIRS, "config.json").read_text())["vocab_size"]
    return np.random.default_rng(0).integers(v // 10, v, (ROWS, LENGTH), dtype=np.int32)


def work_ours() -> None:
    import jax
    import numpy as np

    from launch.runs.model_loader import load_model, single_device_mesh
    from melllm_jax.inference.generate import Decoder, prompt_batch
    from melllm_jax.inference.sampling import GREEDY_UNGUARDED

    with jax.set_mesh(single_device_mesh()):
        model = load_model(pathlib.Path(OURS), "float32")
        decoder = Decoder(model.model, model.spec.model.v, GREEDY_UNGUARDED)  # no row ends early
        none, patches = np.zeros(LENGTH, np.int32), np.zeros((LENGTH, 0), np.float32)
        others = {"patches": patches, "frames": none, "clips": none}
        prompt = prompt_batch([{"tokens": row} | others for row in tokens()], ROWS)
        limits = np.full(ROWS, COUNT)

        def action() -> None:
            out = jax.device_get(decoder(prompt, limits))
            assert (out.lengths == COUNT).all()

        serve(action)


def work_torch() -> None:
    import torch
    import transformers

    torch.set_num_threads(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(THEIRS, dtype=torch.float32).eval()
    given = torch.tensor(tokens().tolist())
    mask = torch.ones_like(given)
    lengths = {"max_new_tokens": COUNT, "min_new_tokens": COUNT}

    def action() -> None:
        with torch.no_grad():
            if COUNT == 1:  # without what generate does around it
                model(given, use_cache=True, logits_to_keep=1).logits.argmax(-1)
            else:
                out = model.generate(
                    given, attention_mask=mask, do_sample=False, pad_token_id=0, **lengths
                )
                assert out.shape == (ROWS, LENGTH + COUNT)

    serve(action)


def reading_rate(size: int = 1 << 28, threads: int = 2) -> float:
    """Bytes that threads read from memory in a second: the best of five sums of float32."""
    import numpy as np

    parts = np.array_split(np.ones(size // 4, np.float32), threads)
    best = float("inf")
    with futures.ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            began = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = min(best, time.perf_counter() - began)
    return size / best


def limit(what: str, rows: int) -> dict[str, float]:
    """What the machine allows: milliseconds of the action, and the rate that says so."""
    from launch.bench.matmul_rate import measure_matmul_rate
    from melllm_jax.checkpoints import run_folder
    from melllm_jax.config.model import ModelSpec

    spec: ModelSpec = run_folder.read_spec(OURS)
    m = spec.model
    layer = m.d * (m.n + 2 * m.k) * m.h + m.n * m.h * m.d + 3 * m.d * m.f
    if what == "prefill":
        rate = measure_matmul_rate("float32")
        seconds = 2 * rows * (PREFILL * m.l * layer + m.v * m.d) / rate
        return {"matmul_flops_per_second": rate, "limit_milliseconds": 1e3 * seconds}
    rate = reading_rate()
    seconds = 4 * (m.l * layer + m.v * m.d) * NEW / rate
    return {"bytes_read_per_second": rate, "limit_milliseconds": 1e3 * seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--worker", choices=("ours", "torch"))
    parser.add_argument("--what", choices=("prefill", "decode"), default="decode")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    if arguments.worker:
        {"ours": work_ours, "torch": work_torch}[arguments.worker]()
        return
    with tempfile.TemporaryDirectory() as folder:
        global OURS
        OURS = f"{folder}/imported"
        from launch import cli

        if cli.main(["convert", "import", arguments.model, OURS, "--json"]):
            raise SystemExit("the import failed")
        prefill = arguments.what == "prefill"
        length, count = (PREFILL, 1) if prefill else (PROMPT, NEW)
        shape = {"ROWS": arguments.batch, "LENGTH": length, "COUNT": count}
        os.environ |= {name: str(value) for name, value in shape.items()}  # for the workers
        os.environ |= {"THEIRS": arguments.model, "OURS": OURS, "JAX_PLATFORMS": "cpu"}
        taken = paired(__file__, ("ours", "torch"), arguments.rounds)
        allowed = limit(arguments.what, arguments.batch)
    name = pathlib.Path(arguments.model).name
    words = f"--what {arguments.what} --batch {arguments.batch} --rounds {arguments.rounds}"
    command = f"python benchmarks/decode_pretrained.py {name} {words}"
    decoding = f"cached greedy decoding, prompt {PROMPT}, {NEW} new tokens"
    what = f"{name}: {f'prefill of {PREFILL} tokens' if prefill else decoding}"
    load = [round(x, 1) for x in os.getloadavg()]
    report(what, command, taken, arguments.out, batch=arguments.batch, load=load, **allowed)


if __name__ == "__main__":
    main()
