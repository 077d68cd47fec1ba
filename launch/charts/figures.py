"""Draws a run as PNG files: loss and word error rate by step, and a spectrogram with its texts.

Needs matplotlib, of the extra `demo`, but no screen.
"""

from collections.abc import Mapping, Sequence
import pathlib
import textwrap

from jaxtyping import Float
import numpy as np

from melllm_jax.errors import Mistake

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise Mistake('pictures need the extra demo: pip install "melllm_jax[demo]"') from error

INK, FAINT, PAPER = "#22313f", "#b8c4ce", "#ffffff"
LOSS, WER = "#0072b2", "#d55e00"  # Okabe and Ito's blue and vermilion: apart for every eye
DOTS_PER_INCH = 160


def draw_curves(
    loss: Mapping[int, float], wer: Mapping[int, float], path: pathlib.Path, title: str = ""
) -> None:
    """Loss by step over word error rate by step (a share; drawn in percent), on one step axis.

    Either may be empty and has no panel then. The loss, where noisy, is drawn faintly under its
    running mean. Raises Mistake where both are empty.
    """
    panels = [name for name, points in (("loss", loss), ("wer", wer)) if points]
    if not panels:
        raise Mistake("loss and wer have no step: there is nothing to draw")
    figure = Figure(figsize=(7, 1.3 + 2.1 * len(panels)), layout="constrained", facecolor=PAPER)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, panels, strict=True):
        _plain(axis)
        if name == "loss":
            _draw_loss(axis, loss)
        else:
            _draw_wer(axis, wer)
    axes[-1].set_xlabel("step", color=INK)
    axes[-1].set_xlim(0, max([*loss, *wer]) * 1.02)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    if title:
        figure.suptitle(title, color=INK, fontsize=12, fontweight="bold", x=0.01, ha="left")
    figure.savefig(path, dpi=DOTS_PER_INCH)


def draw_spectrogram(
    mel: Float[np.ndarray, "frames m"],
    reference: str,
    hypothesis: str,
    path: pathlib.Path,
    seconds_a_frame: float = 0.01,
) -> None:
    """Log-mel energies over time in seconds, with what was said and what was recognised above."""
    figure = Figure(figsize=(8, 3.6), layout="constrained", facecolor=PAPER)
    axis = figure.subplots()
    _draw_mel(figure, axis, mel, seconds_a_frame)
    axis.set_xlabel("time (s)", color=INK)
    axis.set_title(
        _captions(reference, hypothesis),
        color=INK,
        fontsize=10,
        family="monospace",
        loc="left",
        parse_math=False,
    )
    figure.savefig(path, dpi=DOTS_PER_INCH)


def draw_speech(
    mel: Float[np.ndarray, "frames m"],
    stops: Float[np.ndarray, "patches"],
    text: str,
    path: pathlib.Path,
    seconds_a_frame: float = 0.01,
) -> None:
    """Log-mel energies of speech that was made, over how likely each patch was to be the last."""
    figure = Figure(figsize=(8, 4.4), layout="constrained", facecolor=PAPER)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw_mel(figure, upper, mel, seconds_a_frame)
    _plain(lower)
    ends = np.arange(1, len(stops) + 1) * len(mel) * seconds_a_frame / max(len(stops), 1)
    lower.step(ends, stops, color=WER, linewidth=2, where="pre")
    lower.set_ylim(0, 1)
    lower.set_ylabel("last patch", color=INK)
    lower.set_xlabel("time (s)", color=INK)
    upper.set_title(textwrap.fill(text, 84), color=INK, fontsize=10, loc="left", parse_math=False)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _draw_mel(
    figure: Figure, axis: Axes, mel: Float[np.ndarray, "frames m"], seconds_a_frame: float
) -> None:
    """An image of log energies by time and band, and its scale."""
    frames, m = mel.shape
    _plain(axis)
    axis.grid(visible=False)
    low, high = np.percentile(mel, (2, 99.5))  # a lone click or silence does not set the scale
    image = axis.imshow(
        mel.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=low,
        vmax=high,
        extent=(0, frames * seconds_a_frame, 0, m),
        interpolation="nearest",
    )
    axis.set_ylabel("mel band", color=INK)
    bar = figure.colorbar(image, ax=axis, pad=0.015, aspect=28)
    bar.set_label("log energy", color=INK)
    bar.ax.tick_params(colors=INK, length=0, labelsize=9)
    bar.outline.set_visible(False)


def _draw_loss(axis: Axes, loss: Mapping[int, float]) -> None:
    steps = sorted(loss)
    values = np.array([loss[step] for step in steps])
    width = max(1, len(steps) // 40)
    axis.plot(steps, values, color=LOSS, alpha=0.3 if width > 1 else 1, linewidth=1, clip_on=False)
    if width > 1:
        axis.plot(steps, running_mean(values, width), color=LOSS, linewidth=2)
    axis.set_ylabel("loss (nats a token)", color=INK)
    axis.set_ylim(0, 1.08 * np.nanmax(values, initial=1e-3))
    _mark_last(axis, steps[-1], running_mean(values, width)[-1], "{:.3g}", LOSS)


def _draw_wer(axis: Axes, wer: Mapping[int, float]) -> None:
    steps = sorted(wer)
    percent = [100 * wer[step] for step in steps]
    axis.plot(steps, percent, "o-", color=WER, linewidth=2, markersize=4, clip_on=False)
    axis.set_ylabel("word error rate (%)", color=INK)
    axis.set_ylim(0, max(1, 1.08 * max(percent)))
    _mark_last(axis, steps[-1], percent[-1], "{:.1f} %", WER)


def _mark_last(axis: Axes, step: int, value: float, form: str, colour: str) -> None:
    axis.annotate(
        form.format(value),
        (step, value),
        xytext=(0, 7),
        textcoords="offset points",
        ha="right",
        color=colour,
        fontweight="bold",
        annotation_clip=False,
    )


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of each value and up to width - 1 before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    means: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def _captions(reference: str, hypothesis: str) -> str:
    """Both texts, wrapped and aligned under one another."""
    rows: Sequence[tuple[str, str]] = (("said  ", reference), ("heard ", hypothesis or "(nothing)"))
    return "\n".join(
        textwrap.fill(text, 84, initial_indent=name, subsequent_indent=" " * len(name))
        for name, text in rows
    )


def _plain(axis: Axes) -> None:
    """Light paper, faint horizontal lines, no frame on the top and right."""
    axis.set_facecolor(PAPER)
    axis.grid(axis="y", color=FAINT, linewidth=0.6, alpha=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(FAINT)
    axis.tick_params(colors=INK, length=3, labelsize=9)
