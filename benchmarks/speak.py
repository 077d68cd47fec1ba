"""Writing mel after a text against transformers' SpeechT5, taken in turns; no vocoder in either.

python benchmarks/speak.py --batch 1 --out benchmarks/results/speak.json

Both have random weights, 6 layers of width 768 that write two frames of 80 bands a step, and a text
of 96 ids. SpeechT5 has an encoder of 6 layers besides, which reads the text once; a decoder alone
reads it with the layers that write. 200 steps: 4 s of sound at ours of 10 ms a frame. Beside the
figures stands what the machine allows: the bytes of the layers' weights, which each step reads,
over the rate at which two threads read memory.
"""

import argparse
import os

from decode_pretrained import reading_rate
from support.phi_small import paired, report, serve

LAYERS, WIDTH, HEADS, INNER = 6, 768, 12, 3072
TEXT, STEPS, R, BANDS = 96, 200, 2, 80
ROWS = int(os.environ.get("ROWS", "1"))


def work_ours() -> None:
    import jax
    import numpy as np

    from launch.runs.model_loader import single_device_mesh
    from melllm_jax.config.features import Mel
    from melllm_jax.config.model import Lora, Model
    from melllm_jax.config.speech_output import MelHead
    from melllm_jax.inference.generate import prompt_batch
    from melllm_jax.inference.synthesize import Speaker, SpeakingOptions
    from melllm_jax.models.parameters import init_model
    from melllm_jax.models.speaking_lm import SpeakingLM

    cfg = Model(
        d=WIDTH,
        n=HEADS,
        k=HEADS,
        h=WIDTH // HEADS,
        f=INNER * 2 // 3,  # as many weights in three matrices as SpeechT5 has in two
        l=LAYERS,
        v=128,
        front="none",
        writes="speech",
        mel_head=MelHead(prenet=256, hidden=256, channels=256),
        remat="none",
    )
    mel = Mel(kind="phi4", r=R, normalize="none")
    with jax.set_mesh(single_device_mesh()):
        skeleton, weights = init_model(lambda r: SpeakingLM(cfg, mel, Lora(), rngs=r), seed=0)
        speaker = Speaker(skeleton.model(weights), SpeakingOptions(stop=1 - 1e-9))
        none = np.zeros(TEXT, np.int32)
        text = np.random.default_rng(0).integers(1, 127, (ROWS, TEXT)).astype(np.int32)
        others = {"patches": np.zeros((TEXT, mel.p), np.float32), "frames": none, "clips": none}
        prompt = prompt_batch([{"tokens": row} | others for row in text], ROWS)
        limits, seeds = np.full(ROWS, STEPS), np.arange(ROWS)

        def action() -> None:
            rows = speaker(prompt, limits, seeds)
            assert np.isfinite(speaker.refine(rows)).all()
            assert (jax.device_get(rows.lengths) == STEPS).all()

        serve(action)


def work_torch() -> None:
    import torch
    import transformers

    torch.set_num_threads(2)
    cfg = transformers.SpeechT5Config(
        vocab_size=128,
        hidden_size=WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=INNER,
        decoder_layers=LAYERS,
        decoder_attention_heads=HEADS,
        decoder_ffn_dim=INNER,
        num_mel_bins=BANDS,
        reduction_factor=R,
    )
    torch.manual_seed(0)
    model = transformers.SpeechT5ForTextToSpeech(cfg).eval()
    text = torch.randint(4, 127, (ROWS, TEXT))
    speaker = torch.zeros(ROWS, cfg.speaker_embedding_dim)
    steps = STEPS * R / TEXT
    mask = torch.ones_like(text)

    def action() -> None:
        with torch.no_grad():
            out = model.generate_speech(
                text,
                speaker,
                attention_mask=mask,
                threshold=2.0,  # none ends early
                minlenratio=0.0,
                maxlenratio=steps,
            )
        assert out.shape[-2] == STEPS * R, out.shape

    serve(action)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", choices=("ours", "torch"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    if arguments.worker:
        {"ours": work_ours, "torch": work_torch}[arguments.worker]()
        return
    os.environ |= {"ROWS": str(arguments.batch), "JAX_PLATFORMS": "cpu"}  # for the workers
    taken = paired(__file__, ("ours", "torch"), arguments.rounds)
    what = f"{LAYERS} layers of {WIDTH}: {STEPS} steps of {R} frames after {TEXT} ids"
    command = f"python benchmarks/speak.py --batch {arguments.batch} --rounds {arguments.rounds}"
    load = [round(x, 1) for x in os.getloadavg()]
    rate = reading_rate()
    weights = LAYERS * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)
    allowed = {
        "bytes_read_per_second": rate,
        "limit_milliseconds": 1e3 * 4 * weights * STEPS / rate,
    }
    report(what, command, taken, arguments.out, batch=arguments.batch, load=load, **allowed)


if __name__ == "__main__":
    main()
