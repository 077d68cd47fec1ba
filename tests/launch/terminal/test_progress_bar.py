"""What is shown of progress where standard error is no terminal, and where it is one."""

import os
import pty
import re
import subprocess
import sys

import pytest

from launch.terminal import progress_bar, text_table
from launch.terminal.progress_bar import ProgressBar, byte_progress, count_progress
from tests.support.paths import ROOT

METRICS = {"loss": 1.25, "accuracy": 0.5, "audio_seconds_per_second": 120.0}
TEXT = "[red]" + 100 * "x" + ":smile:"  # rich would take parts of it for a colour and a picture
SHOW = f"""
from launch.terminal import text_table
from launch.terminal.progress_bar import ProgressBar
bar = ProgressBar(4)
bar.step(3, {METRICS})
bar.log({TEXT!r})
bar.close()
text_table.show(text_table.table(("id", "path"), [("a", "b" * 100)], elastic=(1,)))
"""


def test_bar_elsewhere_than_on_a_terminal_is_plain_lines(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    bar = ProgressBar(4)
    bar.status("compiling…")
    for step in range(1, 5):
        bar.step(step, METRICS)
    bar.log(TEXT)
    bar.close()
    shown = "  loss 1.250  accuracy 50.0%  120 s of audio a second\n"
    assert capsys.readouterr() == ("", f"compiling…\nstep 1/4{shown}step 4/4{shown}{TEXT}\n")


def test_counts_elsewhere_are_silent_or_a_line_now_and_then(capsys, monkeypatch):
    with count_progress(3, "utterances") as advance:
        advance()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress_bar, "LINE_INTERVAL", -1.0)
    with byte_progress(2_000_000_000) as moved:
        moved(1_000_000_000)
    bar = ProgressBar(None, "utterances")
    bar.count(0, 5)
    bar.count(2, 5)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["1.0 of 2.0 GB, 0 s left", "2 of 5 utterances"]


def test_table_elsewhere_keeps_every_letter(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    path = "/".join(["folder"] * 50)
    text_table.show(text_table.table(("id", "n", "path"), [("a", "7", path)], right=(1,)))
    assert capsys.readouterr().out == f"id  n  path\na   7  {path}\n"


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_terminal_gets_a_bar_in_the_colours_that_it_wants(environment):
    main, other = pty.openpty()
    known = {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "60", "LINES": "20"}
    kept = {name: x for name, x in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    child = subprocess.Popen(
        [sys.executable, "-c", SHOW], stdout=other, stderr=other, env=kept | known | environment
    )
    os.close(other)
    out = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        out += part
    os.close(main)
    assert child.wait() == 0
    text = out.decode()
    assert TEXT in text
    codes = set(re.findall(r"\x1b\[\??[\d;]*[a-zA-Z]", text))
    colours = {code for code in codes if re.fullmatch(r"\x1b\[.*(3|4)[\d;]*m", code)}
    dumb = environment == {"TERM": "dumb"}
    assert bool(colours) == (not environment)
    assert ("3/4 updates" in text) == (not dumb)
    assert "loss 1.250" in text
    assert "bbb…" in text  # fitted to the terminal
    if not dumb:
        assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
