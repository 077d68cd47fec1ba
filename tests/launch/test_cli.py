import os
import subprocess
import sys
import types

import pytest

from launch import cli
from launch.terminal import subcommands
from melllm_jax import __version__
from melllm_jax.errors import Fault, Mistake
from tests.support.paths import ROOT


@pytest.fixture
def command(monkeypatch):
    """A command `probe` that runs the given function; returns what `melllm probe ARGS` returns."""

    def run(body, *args):
        module = types.ModuleType("probe_command")
        module.main = body
        monkeypatch.setitem(sys.modules, "probe_command", module)
        monkeypatch.setitem(
            subcommands.COMMANDS, "probe", subcommands.Command("a probe", "probe_command")
        )
        return cli.main(["probe", *args])

    return run


def raising(error):
    def body(argv):
        raise error

    return body


def test_command_gets_its_own_arguments_and_its_status_is_melllms(command):
    seen = []
    assert command(lambda argv: seen.append(argv) or 7, "a", "--b") == 7
    assert seen == [["a", "--b"]]


def test_uri_of_an_argument_becomes_a_path_or_is_refused(command, capsys):
    seen = []
    assert command(lambda argv: seen.append(argv) or 0, "file:///a", "--b=file:///c") == 0
    assert seen == [["/a", "--b=/c"]]
    assert command(lambda argv: seen.append(argv) or 0, "--b", "https://a/b") == 2
    assert capsys.readouterr().err.startswith("melllm probe: error: https://a/b: nothing reads")
    assert len(seen) == 1


def test_mistake_ends_in_one_line_and_status_2(command, capsys):
    assert command(raising(Mistake("model.d=0:\n  must be positive"))) == 2
    assert capsys.readouterr() == ("", "melllm probe: error: model.d=0: must be positive\n")


def test_fault_ends_in_one_line_and_status_1(command, capsys):
    assert command(raising(Fault("no space on the disk"))) == 1
    assert capsys.readouterr() == ("", "melllm probe: error: no space on the disk\n")


@pytest.mark.parametrize(
    "error", ["RuntimeError('no tpu (set JAX_PLATFORMS=x)')", "AssertionError()"]
)
def test_platform_that_is_not_here_is_a_mistake_in_the_environment(
    command, capsys, monkeypatch, error
):
    body = compile(f"raise {error}", "/lib/jax/_src/xla_bridge.py", "exec")
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    assert command(lambda argv: exec(body)) == 2
    why = " (no tpu)" if "no tpu" in error else ""
    assert capsys.readouterr().err == (
        "melllm probe: error: JAX_PLATFORMS=tpu: must name platforms that JAX finds here, or be "
        f"unset, which takes the best there is{why}\n"
    )
    monkeypatch.setenv("JAX_PLATFORMS", "")
    with pytest.raises((RuntimeError, AssertionError)):
        command(lambda argv: exec(body))


def test_flags_that_xla_does_not_know_are_a_mistake_where_jax_is_loaded(
    command, capsys, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", "--xla_nothing")
    monkeypatch.setitem(sys.modules, "jax", types.ModuleType("jax"))
    assert command(lambda argv: 0) == 2
    said = capsys.readouterr().err
    assert said.startswith("melllm probe: error: XLA_FLAGS=--xla_nothing: ") and said[-1] == "\n"
    assert said.count("\n") == 1
    assert command(lambda argv: 0, "--help") == 0
    monkeypatch.delitem(sys.modules, "jax")
    assert command(lambda argv: 0) == 0


def test_memory_of_a_device_that_does_not_suffice_is_a_mistake(command, capsys):
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 26 bytes.\nmore")
    assert command(raising(error)) == 2
    line = capsys.readouterr().err
    assert "(Out of memory allocating 26 bytes): give fewer rows (data.b)" in line
    assert line.count("\n") == 1


def test_error_of_the_system_about_a_file_is_a_fault_that_names_it(command, capsys):
    assert command(lambda argv: os.listdir("x" * 300)) == 1
    assert capsys.readouterr().err == f"melllm probe: error: {'x' * 300}: File name too long\n"
    with pytest.raises(OSError, match="of no file"):
        command(raising(OSError(5, "of no file")))


def test_interrupt_ends_quietly_with_status_130(command, capsys):
    assert command(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "")


def test_any_other_exception_passes_through(command):
    with pytest.raises(ZeroDivisionError):
        command(lambda argv: 1 // 0)


def test_unknown_command_names_the_nearest(capsys):
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err == (
        "melllm: error: unknown command 'trian': did you mean train?\n"
    )


def test_no_command_says_where_they_are_listed(capsys):
    assert cli.main([]) == 2
    assert "melllm --help" in capsys.readouterr().err


def test_version_is_the_packages(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"melllm {__version__}\n"


def test_help_lists_every_command_with_its_line(capsys):
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    for name, entry in subcommands.COMMANDS.items():
        assert any(row.split() == [name, *entry.summary.split()] for row in told.splitlines())


def test_help_imports_neither_jax_nor_numpy():
    code = (
        "import sys; from launch.cli import main; main(['--help']);"
        "sys.exit(bool({'jax', 'numpy', 'tyro'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert done.returncode == 0


def test_closed_pipe_ends_quietly_with_status_141():
    code = "import sys; from launch.cli import main; sys.exit(main(['--help']))"
    process = subprocess.Popen(
        [sys.executable, "-c", f"input(); {code}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # written only by the flush at the end
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()  # before the command writes, which waits for the line below
    process.stdin.write(b"\n")
    process.stdin.close()
    with process.stderr as complaint:
        assert complaint.read() == b""
    assert process.wait() == 141
