"""How a process finds its job, and how the processes of a job end: together, each with a line."""

import signal
import warnings

import jax
import pytest

from launch.runtime import compile_cache, processes
from launch.runtime.processes import Hosts, JobProcess, join_job
from melllm_jax.errors import Fault, Mistake
from tests.support.jobs import DEVICE, ended, flags, job, until
from tests.support.runs import arguments, corpus, done, lines, losses, steps_on_disk

VARIABLES = [name for names in processes.VARIABLES.values() for name in names]
SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No launcher started the tests."""
    for name in (*VARIABLES, *SLURM):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "environment", "rule"),
    [
        ({"count": 2}, {}, "hosts.count=2: hosts.coordinator and hosts.number must be given"),
        ({"coordinator": "a:1", "count": 2}, {}, "hosts.number must be given as well"),
        ({"coordinator": "a:1", "count": 2, "number": 2}, {}, "must be below hosts.count=2"),
        ({"coordinator": "a", "count": 2, "number": 0}, {}, "=a: must be ADDRESS:PORT"),
        ({"coordinator": "a:b", "count": 2, "number": 0}, {}, "=a:b: must be ADDRESS:PORT"),
        ({}, {"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES and JAX_PROCESS_ID must be"),
        (
            {},
            {
                "JAX_COORDINATOR_ADDRESS": "a:1",
                "JAX_NUM_PROCESSES": "two",
                "JOB_COMPLETION_INDEX": "0",
            },
            "JAX_NUM_PROCESSES=two: must be a number",
        ),
    ],
)
def test_join_of_what_does_not_fit_together_is_refused(monkeypatch, given, environment, rule):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Mistake, match=rule), join_job(Hosts(**given), "melllm train"):
        pass


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"JOB_COMPLETION_INDEX": "3"}, None),  # any indexed job: nothing says they belong together
        (
            {
                "JAX_COORDINATOR_ADDRESS": "pod-0.svc:1234",
                "JAX_NUM_PROCESSES": "4",
                "JOB_COMPLETION_INDEX": "3",
            },
            JobProcess("pod-0.svc:1234", 4, 3),
        ),
        (SLURM, JobProcess("node07:61444", 2, 1, [0])),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "head:9"}, JobProcess("head:9", 2, 1, [0])),
    ],
)
def test_place_in_a_job_is_what_the_environment_says(monkeypatch, environment, place):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes._job_process(Hosts()) == place


@pytest.mark.parametrize(
    "error", [TypeError, IndexError, RuntimeError, type("OwnError", (Exception,), {})]
)
def test_launcher_that_tells_nothing_has_started_one_process_alone(monkeypatch, capsys, error):
    def ask(*_):
        raise error("Service token\nfile does not exist.")

    params = "auto_detect_unset_distributed_params"
    monkeypatch.setattr(processes.clusters.ClusterEnv, params, ask)
    with join_job(Hosts(), "melllm train"):
        assert not jax.distributed.is_initialized()
    said = capsys.readouterr().err
    why = f"{error.__name__}: Service token file does not exist."
    assert said.startswith(f"melllm train: the launcher does not say who takes part ({why}): ")
    assert said.count("\n") == 1
    given = JobProcess("pod-0.svc:1234", 4, 3)
    assert processes._job_process(Hosts("pod-0.svc:1234", 4, 3)) == given
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "pod-0.svc:1234")
    with pytest.raises(Mistake, match="JAX_NUM_PROCESSES and JAX_PROCESS_ID must be given"):
        processes._job_process(Hosts())
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    assert processes._job_process(Hosts()) == given


def test_join_of_a_process_alone_starts_nothing_and_says_nothing(monkeypatch, capfd):
    for name, value in (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}).items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with join_job(Hosts(), "melllm train"):
            assert not jax.distributed.is_initialized()
    assert capfd.readouterr().err == ""


def test_join_of_a_coordinator_that_is_never_reached_is_a_fault_that_says_how_long_it_waited():
    asked = Hosts("127.0.0.1:1", 2, 1, wait=1)
    with pytest.raises(Fault, match="127.0.0.1:1: not reached within 1 s"), join_job(asked, ""):
        pass


def setting():
    return jax.config.values["jax_compilation_cache_dir"]


@pytest.fixture
def unset():
    before = setting()
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_is_kept_in_the_folder_and_only_within(unset, tmp_path):
    with compile_cache.use_folder(str(tmp_path / "a/b")):
        assert setting() == str(tmp_path / "a/b")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.jit(lambda x: x * 3 + 41)(1.0)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    assert setting() is None
    assert list((tmp_path / "a/b").iterdir())


def test_compiled_is_not_kept_where_nothing_can_be_written_or_is_wanted(unset, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (str(tmp_path / "file/b"), ""):
        with compile_cache.use_folder(folder):
            assert setting() is None


def test_compiled_goes_where_jax_is_told_first(unset, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    with compile_cache.use_folder(str(tmp_path / "other")):
        assert setting() == str(tmp_path)
    assert not (tmp_path / "other").exists()


# Real processes from here on: each start takes seconds.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("data"), 30)


def last(text):
    return text.rstrip("\n").rpartition("\n")[2]


@pytest.mark.slow
def test_signal_to_one_process_stops_both_after_the_same_update(data, tmp_path):
    words = arguments(data, tmp_path, steps=4000, every=1000)
    with job(words) as both:
        until(both, tmp_path, 6)
        both[1].terminate()
        statuses, said = ended(both)
    assert statuses == [0, 0], said
    (saved,) = steps_on_disk(tmp_path)
    assert saved == max(losses(tmp_path)) < 4000
    assert said[0].endswith(f"stopped by a signal after update {saved}: saved\n")
    assert [row["step"] for row in lines(tmp_path)] == list(range(1, saved + 1))
    assert "step" not in said[1] and "compiling" not in said[1]  # process 0 alone tells


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_process_killed_ends_the_other_with_its_name(data, tmp_path, victim):
    words = arguments(data, tmp_path, steps=100_000, every=5)
    with job(words) as both:
        until(both, tmp_path, 12)
        both[victim].kill()
        statuses, said = ended(both)
    other = 1 - victim
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[other] == 1, said[other]
    line = last(said[other])
    assert line.startswith(f"melllm train: error: process {other} on ")
    assert f"process {victim}" in line.removeprefix(f"melllm train: error: process {other}")
    assert steps_on_disk(tmp_path)[0] >= 5
    assert "Traceback" not in said[other]


@pytest.mark.slow
def test_mistake_of_one_process_ends_both_in_a_line(data, tmp_path):
    words = arguments(data, tmp_path / "run")
    with job(words, each={1: ["--data", str(tmp_path / "gone")]}) as both:
        statuses, said = ended(both)
    assert statuses == [2, 2], said
    assert last(said[1]).endswith(f"data={tmp_path / 'gone'}: is no folder")
    assert f"process 1 on {processes.socket.gethostname()} ended: data=" in last(said[0])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_of_two_runs_or_two_folders_are_refused(data, tmp_path):
    words = arguments(data, tmp_path / "run")
    with job(words, each={1: ["--seed", "5"]}) as both:
        statuses, said = ended(both)
    assert statuses == [2, 2], said
    assert "they differ in seed=5 (it has 0)" in last(said[1])
    with job(words, each={1: ["--workdir", str(tmp_path / "other")]}) as both:
        statuses, said = ended(both)
    assert statuses == [2, 2], said
    assert "not what process 0 writes to: all hosts must share it" in last(said[1])


@pytest.mark.slow
def test_scoring_in_several_processes_is_refused_at_the_start(data, tmp_path):
    with job(arguments(data, tmp_path / "run", "--scoring.every", 2)) as both:
        statuses, said = ended(both)
    assert statuses == [2, 2], said
    assert "scoring.every=2: decoding runs in one process, not in 2" in last(said[0])


@pytest.mark.slow
def test_processes_that_do_not_all_come_end_in_a_line(data, tmp_path):
    for mine in flags(2):
        words = arguments(data, tmp_path / "run", *mine, "--hosts.wait", 2)
        status, out, err = done(words, **DEVICE)
        assert (status, out) == (1, ""), err
        assert err.count("\n") == 1
        assert "within 2 s" in err
