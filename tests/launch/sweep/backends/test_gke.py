"""JobSets: what they say, and how the real kubectl submits, finds and deletes them.

What kubectl talks to keeps objects and starts nothing. Manifests are held against the fields that
JobSet's own schema has; how a pod ends is tried with the shell that it runs.
"""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from launch.runtime import processes
from launch.runtime.processes import Hosts, JobProcess
from launch.sweep import claim_owner, ledger
from launch.sweep.backends import gke, jobset_manifest
from launch.sweep.backends.jobset_manifest import Gke
from launch.sweep.ledger import Cell, Sweep
from melllm_jax.errors import Fault, Mistake
from tests.support import jobset_fields
from tests.support.api_server import serving
from tests.support.patience import HANG

BUCKET = "gs://bucket/sweep"
IDS = ["0123456789", "12e3456789", "abcdef0123"]
OPTIONS = [
    Gke("image", "v5e:1x1"),
    Gke("image", "v5e:2x4", queue="q", service_account="s"),
    Gke("image", "v5p:2x2x2", slices=2, spot=True, select=("pool=a",)),
    Gke("image", "h100:2x8", accelerator="nvidia-h100-mega-80gb"),
    Gke("image", "cpu", volume="claim:/mnt/sweeps/"),
]


def pod(made):
    return made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def job(made):
    return made["spec"]["replicatedJobs"][0]["template"]["spec"]


def variables(made):
    return {one["name"]: one["value"] for one in pod(made)["containers"][0]["env"]}


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.topology)
def test_manifest_has_the_fields_that_the_schema_has(options):
    made = jobset_manifest.manifest("/mnt/sweeps/a" if options.volume else BUCKET, IDS[0], options)
    assert jobset_fields.faults(made) == []
    assert made["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and made["kind"] == "JobSet"
    longest = f"{made['metadata']['name']}-slice-{options.slices}-{job(made)['completions']}-abcde"
    assert len(longest) <= 63  # of a pod's name, which is a host's as well
    mounts = {one["name"] for one in pod(made)["containers"][0].get("volumeMounts", [])}
    assert mounts == {one["name"] for one in pod(made).get("volumes", [])}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda made: made["spec"].update(failurepolicy=1), "spec.failurepolicy: is no field"),
        (lambda made: pod(made).update(restartPolicy="Always"), "must be {'Never'}"),
        (lambda made: job(made).update(completions="2"), "completions='2': must be"),
        (lambda made: pod(made).pop("containers"), "template.spec: lacks containers"),
    ],
)
def test_schema_finds_what_is_wrong(change, said):
    made = jobset_manifest.manifest(BUCKET, IDS[0], OPTIONS[0])
    change(made)
    (line,) = jobset_fields.faults(made)
    assert said in line


@pytest.mark.parametrize(
    ("topology", "more", "hosts", "limits", "nodes"),
    [
        ("v5e:1x1", {}, 1, {"google.com/tpu": 1}, ("tpu-v5-lite-podslice", "1x1")),
        ("v5e:2x4", {}, 2, {"google.com/tpu": 4}, ("tpu-v5-lite-podslice", "2x4")),
        ("v6e:2x4", {"host": 8}, 1, {"google.com/tpu": 8}, ("tpu-v6e-slice", "2x4")),
        ("v5p:4x4x4", {}, 16, {"google.com/tpu": 4}, ("tpu-v5p-slice", "4x4x4")),
        ("h100:4x8", {}, 4, {"nvidia.com/gpu": 8}, ("nvidia-h100-80gb",)),
    ],
)
def test_slice_is_a_job_with_a_pod_a_host(topology, more, hosts, limits, nodes):
    made = jobset_manifest.manifest(BUCKET, IDS[0], Gke("image", topology, **more))
    assert (job(made)["parallelism"], job(made)["completions"]) == (hosts, hosts)
    assert pod(made)["containers"][0]["resources"]["limits"] == limits
    assert tuple(pod(made)["nodeSelector"].values()) == nodes
    pools = "alpha.jobset.sigs.k8s.io/exclusive-topology" in made["metadata"].get("annotations", {})
    assert pools == (hosts > 1 and "google.com/tpu" in limits)


def test_slices_are_jobs_of_one_jobset():
    made = jobset_manifest.manifest(BUCKET, IDS[0], Gke("image", "v5e:4x4", slices=3, spot=True))
    assert made["spec"]["replicatedJobs"][0]["replicas"] == 3
    assert (
        pod(made)["hostNetwork"] and pod(made)["tolerations"][0]["key"] in pod(made)["nodeSelector"]
    )


def test_hosts_of_gpus_find_each_other_and_the_ledger_its_jobset(monkeypatch):
    made = jobset_manifest.manifest(BUCKET, IDS[0], Gke("image", "h100:2x8", namespace="team"))
    name = made["metadata"]["name"]
    for key, value in (variables(made) | {"JOB_COMPLETION_INDEX": "1"}).items():
        monkeypatch.setenv(key, value)
    assert processes._job_process(Hosts()) == JobProcess(f"{name}-slice-0-0.{name}:8476", 2, 1)
    assert claim_owner.current_job() == f"gke:team/{name}"
    alone = jobset_manifest.manifest(BUCKET, IDS[0], Gke("image", "h100:1x8"))
    assert variables(alone).keys() == {"MELLLM_JOBSET"}


def test_text_keeps_ids_strings_to_every_reader_of_yaml():
    told = gke.text(BUCKET, IDS, OPTIONS[0])
    made = [jobset_manifest.manifest(BUCKET, id, OPTIONS[0]) for id in IDS]
    assert list(yaml.safe_load_all(told)) == made
    assert json.dumps(made).count(f'"{IDS[1]}"') == told.count(f'"{IDS[1]}"') == 3
    assert re.search(r"(?m): [\d.]+e\d+$", told) is None


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"image": ""}, "gke.image='': must be a container"),
        ({"topology": ""}, "gke.topology='' of 1 slices: must be v4, v5e"),
        ({"topology": "v5p:2x2"}, "gke.topology='v5p:2x2'"),
        ({"topology": "v5e:2x0"}, "gke.topology='v5e:2x0'"),
        ({"topology": "h100:2x8", "slices": 2}, "gke.topology='h100:2x8' of 2 slices"),
        ({"host": 3}, "gke.host=3: must divide the 8 chips"),
        ({"slices": 0}, "gke.slices=0: must be 1 or more"),
        ({"namespace": ""}, "gke.namespace='': must be lower-case"),
        ({"queue": "A b"}, "gke.queue='A b': must be lower-case"),
        ({"select": ("a",)}, "gke.select='a': must be LABEL=VALUE"),
        ({"volume": "a"}, "gke.volume='a': must be CLAIM:PATH"),
    ],
)
def test_options_that_name_no_machines_are_refused(fields, rule):
    with pytest.raises(Mistake, match=f"^{re.escape(rule)}"):
        jobset_manifest.shape(Gke(**{"image": "image", "topology": "v5e:2x4"} | fields))


@pytest.mark.parametrize("volume", ["", "claim:/mnt/other"])
def test_folder_that_pods_do_not_reach_is_refused(volume):
    with pytest.raises(Mistake, match="^workdir=/mnt/sweeps/a: pods reach only a bucket"):
        jobset_manifest.manifest("/mnt/sweeps/a", IDS[0], Gke("image", "cpu", volume=volume))


def test_missing_kubectl_is_a_mistake_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Mistake, match="^backend=gke: kubectl cannot be found"):
        gke.check(OPTIONS[0], BUCKET)


def test_bucket_that_is_not_mounted_is_refused_before_anything_starts(monkeypatch, tmp_path):
    (tmp_path / "kubectl").symlink_to(shutil.which("true"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Mistake, match=r"^workdir=gs://bucket/sweep: runs write to a disk"):
        gke.check(OPTIONS[0], BUCKET)


TOLD = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit({})); print(1, flush=True)"


@pytest.mark.parametrize(
    ("code", "told", "status"),
    [
        ("pass", False, 0),
        ("raise SystemExit(2)", False, 2),
        ("import os; os.kill(os.getpid(), 9)", False, 137),
        (TOLD.format(0) + "; time.sleep(60)", True, 143),  # saved: to be started again
        (TOLD.format(1) + "; time.sleep(60)", True, 1),
        ("import time; print(1, flush=True); time.sleep(60)", True, 143),
    ],
)
def test_pod_ends_as_its_cell_but_where_it_was_told_to_stop(code, told, status):
    cell = pod(jobset_manifest.manifest(BUCKET, IDS[0], Gke("image", "cpu")))["containers"][0]
    assert cell["args"] == ["melllm", "sweep", "cell", BUCKET, IDS[0]]
    shell = [word.replace("sleep 1", "sleep 0.1") for word in cell["command"]]
    assert shell != cell["command"]
    words = [*shell, sys.executable, "-S", "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        if told:
            process.stdout.readline()
            process.terminate()
        assert process.wait(timeout=HANG) == status


@pytest.fixture
def server(monkeypatch, tmp_path):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is missing")
    with serving() as found:
        configuration = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "a", "cluster": {"server": f"http://127.0.0.1:{found.server_address[1]}"}}
            ],
            "contexts": [{"name": "a", "context": {"cluster": "a"}}],
            "current-context": "a",
        }
        (tmp_path / "config").write_text(json.dumps(configuration))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        monkeypatch.setenv("HOME", str(tmp_path))  # where kubectl keeps what it discovered
        yield found


@pytest.fixture
def folder(tmp_path):
    """A sweep on a volume that pods see under the same path."""
    sweep = Sweep("s", "d", tuple(IDS), {}, "gke", {"namespace": "team"}, {})
    ledger.create(str(tmp_path / "sweep"), sweep, [cell(id) for id in IDS])
    return str(tmp_path / "sweep")


def cell(id):
    return Cell(id, 0, {}, 1, {}, 0.0)


def options(folder):
    return Gke("image", "cpu", volume=f"claim:{folder.removesuffix('/sweep')}", namespace="team")


def test_cells_are_submitted_found_and_deleted(server, folder):
    gke.start(folder, IDS[:2], options(folder))
    names = [jobset_manifest.jobset_name(folder, id) for id in IDS]
    assert server.jobsets.keys() == {("team", name) for name in names[:2]}
    kept = server.jobsets["team", names[1]]
    kept["metadata"]["annotations"].clear()  # kubectl's own
    wanted = jobset_manifest.manifest(folder, IDS[1], options(folder))
    assert kept["spec"] == wanted["spec"]
    assert kept["metadata"]["labels"] == wanted["metadata"]["labels"]

    gke.start(folder, IDS, options(folder))  # what is there already is left alone
    assert len(server.jobsets) == 3 and server.deleted == []
    server.jobsets["team", names[0]]["status"] = {"terminalState": "Failed"}

    gke.start(folder, IDS, options(folder))  # what failed is submitted anew
    assert server.deleted == [names[0]]
    assert "status" not in server.jobsets["team", names[0]] and len(server.jobsets) == 3

    gke.cancel(folder, [cell(IDS[0]), cell(IDS[2])])
    assert server.jobsets.keys() == {("team", names[1])}


def test_words_of_kubectl_are_told_in_one_line(server, folder):
    server.shutdown()
    server.server_close()
    with pytest.raises(
        Fault, match=r"^kubectl get: The connection to the server .* was refused.*$"
    ):
        gke.start(folder, IDS, options(folder))


def test_options_read_from_a_ledger_are_the_same():
    made = OPTIONS[2]
    assert Gke(**json.loads(json.dumps(dataclasses.asdict(made)))) == made
