"""`melllm`: finds the command, runs it, and turns how it ends into an exit status.

What must hold: `melllm --help` starts no command, so it imports neither JAX nor NumPy.
"""

from collections.abc import Sequence
import os
import sys
import traceback

from launch.runtime import libtpu_env
from launch.runtime.xla_flags import check_xla_flags
from launch.terminal.subcommands import COMMANDS, main_help, run_command
from melllm_jax import __version__, files
from melllm_jax.errors import Fault, Mistake


def main(argv: Sequence[str] | None = None) -> int:
    """Run `melllm` with `argv` (the process's own arguments if None): its exit status.

    0 success; 1 a fault from outside; 2 a user's mistake; 130 interrupted; 141 a closed pipe. The
    first two kinds of trouble end in one line on standard error, and so do an error of the system
    about a file, a fault, and devices that are not here or too small, a mistake. Any other
    exception is a bug and passes through, so that Python prints its traceback and exits with 1.
    """
    libtpu_env.set_environment()
    args = list(sys.argv[1:] if argv is None else argv)
    prog = f"melllm {args[0]}" if args and args[0] in COMMANDS else "melllm"
    try:
        status = _run(args)
        sys.stdout.flush()  # a closed pipe must show here, not while Python shuts down
        return status
    except Mistake as mistake:
        return _complain(prog, mistake, 2)
    except Fault as fault:
        return _complain(prog, fault, 1)
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT
    except BrokenPipeError:
        # Python flushes standard output once more as it exits: give that flush somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE
    except OSError as error:
        if error.filename is None:
            raise
        return _complain(prog, Fault(f"{error.filename}: {error.strerror or error}"), 1)
    except (RuntimeError, AssertionError) as error:
        trouble = _platform_trouble(error) or _memory_trouble(error)
        if trouble is None:
            raise
        return _complain(prog, trouble, 2)


def _run(args: list[str]) -> int:
    if not args:
        raise Mistake("no command given: `melllm --help` lists them")
    if args[0] in ("-h", "--help"):
        print(main_help())
        return 0
    if args[0] == "--version":
        print(f"melllm {__version__}")
        return 0
    return run_command([files.resolve_word(word) for word in args], check_xla_flags)


def _platform_trouble(error: Exception) -> Mistake | None:
    """What JAX says of the devices that the environment asks for, where `error` says so."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if not wanted or not frames[-1].f_code.co_filename.endswith("jax/_src/xla_bridge.py"):
        return None
    said = str(error).partition(" (set JAX_PLATFORMS")[0]
    why = f" ({said})" if said else ""
    return Mistake(
        f"JAX_PLATFORMS={wanted}: must name platforms that JAX finds here, or be unset, which "
        f"takes the best there is{why}"
    )


def _memory_trouble(error: Exception) -> Mistake | None:
    """What a device says that has not the memory for what it is to compute."""
    text = str(error)
    if not text.startswith("RESOURCE_EXHAUSTED"):
        return None
    said = text.partition(": ")[2].splitlines()[0].rstrip(".")
    rule = "give fewer rows (data.b), shorter ones (data.t), more devices or a smaller model"
    return Mistake(f"the devices' memory does not hold this ({said}): {rule}")


def _complain(prog: str, trouble: Exception, status: int) -> int:
    line = f"{prog}: error: {' '.join(str(trouble).split())}"
    # A value of a file may hold half a surrogate pair, which not every stream takes.
    print(line.encode(errors="backslashreplace").decode(), file=sys.stderr)
    return status
