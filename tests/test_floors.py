"""Imports point down and third parties stay behind their fences."""

import ast
from collections.abc import Iterator
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("melllm_jax", "data_pipelines", "launch")

# From the ground up: a module imports modules of strictly lower floors only. Those of a floor are
# neighbours, and a neighbour counts as up. The rooms stand on one another here for counting; what
# one room may not see of another is said by FENCES.
FLOORS = (
    # melllm_jax: the library
    {"melllm_jax.errors", "melllm_jax.interrupt"},
    {
        "melllm_jax.config",
        "melllm_jax.batch",
        "melllm_jax.score",
        "melllm_jax.hlo",
        "melllm_jax.counted",
    },
    {
        "melllm_jax.flops",
        "melllm_jax.layout",
        "melllm_jax.mel_tables",
        "melllm_jax.goodput",
        "melllm_jax.profile",
        "melllm_jax.loops",
        "melllm_jax.wire",
    },
    {
        "melllm_jax.ladder",
        "melllm_jax.pods",
        "melllm_jax.traffic",
        "melllm_jax.meter",
        "melllm_jax.compiler",
        "melllm_jax.rundir",
        "melllm_jax.layers",
        "melllm_jax.attention",
        "melllm_jax.remat",
        "melllm_jax.convert.rules",
        "melllm_jax.convert.blocks",
        "melllm_jax.convert.folder",
        "melllm_jax.convert.dialects",
        "melllm_jax.device_mel",
    },
    {
        "melllm_jax.presets",
        "melllm_jax.frontend",
        "melllm_jax.kernels",
        "melllm_jax.links",
        "melllm_jax.ends",
        "melllm_jax.program",
        "melllm_jax.convert.phi",
        "melllm_jax.convert.tensors",
    },
    {"melllm_jax.model", "melllm_jax.estimate"},
    {"melllm_jax.weights"},
    {
        "melllm_jax.objective",
        "melllm_jax.decode",
        "melllm_jax.optim",
        "melllm_jax.checkpoint",
        "melllm_jax.record",
    },
    {"melllm_jax.update", "melllm_jax.store"},
    {"melllm_jax.convert.described", "melllm_jax.memory", "melllm_jax.held_out"},
    {"melllm_jax.convert.importer"},
    {"melllm_jax.convert.exporter"},
    {"melllm_jax.train", "melllm_jax.start", "melllm_jax.plan"},
    # data_pipelines: files to Batch
    {
        "data_pipelines.mel",
        "data_pipelines.text",
        "data_pipelines.audio",
        "data_pipelines.grammar",
        "data_pipelines.utterance",
        "data_pipelines.phases",
        "data_pipelines.loudness",
        "data_pipelines.silence",
    },
    {
        "data_pipelines.synth",
        "data_pipelines.prompt",
        "data_pipelines.vocabulary",
        "data_pipelines.shards",
        "data_pipelines.augment",
        "data_pipelines.manifest",
    },
    {"data_pipelines.reader", "data_pipelines.parquet_rows", "data_pipelines.tfds_rows"},
    {"data_pipelines.containers"},
    {"data_pipelines.importers.rows"},
    {
        "data_pipelines.importers.librispeech",
        "data_pipelines.importers.kaldi",
        "data_pipelines.importers.nemo",
        "data_pipelines.importers.commonvoice",
        "data_pipelines.importers.parquet",
        "data_pipelines.importers.webdataset",
        "data_pipelines.importers.lhotse",
        "data_pipelines.importers.tfds",
    },
    {"data_pipelines.sources", "data_pipelines.interleave", "data_pipelines.imported"},
    {"data_pipelines.waves", "data_pipelines.subset"},
    {
        "data_pipelines.examples",
        "data_pipelines.placed",
        "data_pipelines.tfds_corpus",
        "data_pipelines.checked",
    },
    {"data_pipelines.tally", "data_pipelines.task"},
    {"data_pipelines.duplicates"},
    {"data_pipelines.staged", "data_pipelines.planned"},
    {"data_pipelines.sandbox", "data_pipelines.published"},
    {"data_pipelines.steps"},
    {"data_pipelines.judged"},
    {"data_pipelines.mixture"},
    {"data_pipelines.screen", "data_pipelines.ahead", "data_pipelines.sheet"},
    {"data_pipelines.packed"},
    {"data_pipelines.side"},
    {"data_pipelines.workers"},
    {"data_pipelines.lanes"},
    {"data_pipelines.pipeline", "data_pipelines.prepare"},
    {
        "data_pipelines.corpus",
        "data_pipelines.stages",
        "data_pipelines.worker",
        "data_pipelines.held_out",
    },
    # launch: the commands
    {
        "launch.arguments",
        "launch.choice",
        "launch.platforms",
        "launch.heap",
        "launch.compiled",
        "launch.watch",
        "launch.pictures",
        "launch.progress",
        "launch.noise",
        "launch.gemm",
        "launch.stopwatch",
        "launch.feeding",
        "launch.drawn",
        "launch.alphabet",
        "launch.spread",
        "launch.whole",
        "launch.owners",
        "launch.backends.shell",
        "launch.law",
        "launch.quantity",
        "launch.png",
        "launch.spec",
        "launch.inspect_rejects",
        "launch.inspect_html",
    },
    {
        "launch.measured",
        "launch.ledger",
        "launch.backends.jobset",
        "launch.charts",
        "launch.budgets",
        "launch.axes",
        "launch.inspect_reading",
        "launch.isoflop",
        "launch.damped",
    },
    {
        "launch.sweeps.front_end",
        "launch.sweeps.init",
        "launch.sweeps.layer_ablation",
        "launch.sweeps.scaling",
        "launch.sweeps.synthetic",
        "launch.sweeps.synthetic_rate",
        "launch.sweeps.token_rate",
    },
    {"launch.costed"},
    {"launch.status", "launch.backends.local", "launch.backends.slurm", "launch.backends.gke"},
    {"launch.inspect_facts", "launch.inspect_heard", "launch.envelope", "launch.parametric"},
    {"launch.inspect_split"},
    {"launch.inspect_page", "launch.points", "launch.predicted", "launch.refit"},
    {
        "launch.data_import",
        "launch.data_tfds",
        "launch.data_speak",
        "launch.transcriber",
        "launch.fitted",
        "launch.report_facts",
        "launch.report_curves",
        "launch.svg",
        "launch.opened",
        "launch.reference",
        "launch.hosts",
    },
    {
        "launch.check",
        "launch.bench_train",
        "launch.law_charts",
        "launch.report_charts",
        "launch.law_file",
    },
    {
        "launch.prepare",
        "launch.train",
        "launch.evaluate",
        "launch.transcribe",
        "launch.wer",
        "launch.inspect",
        "launch.data_tokenizer",
        "launch.convert",
        "launch.logits",
        "launch.plan",
        "launch.scaling",
        "launch.report_law",
        "launch.report_cells",
        "launch.report_sections",
        "launch.bench_checkpoint",
        "launch.bench_decode",
    },
    {"launch.quickstart", "launch.bench_data", "launch.report", "launch.final"},
    {"launch.bench", "launch.data", "launch.submitted", "launch.sweep_report", "launch.cell"},
    {"launch.sweep_run", "launch.sweep_resume", "launch.sweep_status", "launch.sweep_cancel"},
    {"launch.sweep"},
    {"launch.cli"},
    {"launch.__main__"},
)
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}

# What only the named modules may import; a name covers everything below it.
FENCES = {
    "orbax": {"melllm_jax.checkpoint"},
    "tensorstore": {"melllm_jax.store"},
    "huggingface_hub": {"launch.convert"},
    "jax.experimental.pallas": {"melllm_jax.kernels"},
    "grain": {
        "data_pipelines.pipeline",
        "data_pipelines.screen",
        "data_pipelines.lanes",
        "data_pipelines.side",
        "data_pipelines.workers",
        "data_pipelines.mixture",
        "data_pipelines.packed",
        "data_pipelines.ahead",
        "data_pipelines.stages",
    },
    "array_record": {"data_pipelines.shards", "data_pipelines.reader"},
    "soundfile": {"data_pipelines.audio"},
    "soxr": {"data_pipelines.audio"},
    "pyarrow": {"data_pipelines.parquet_rows"},
    "tensorflow_datasets": {"data_pipelines.tfds_rows"},
    "apache_beam": {"data_pipelines.prepare"},
    "dask": {"data_pipelines.prepare"},
    "torch": {"launch.reference"},
    "transformers": {"launch.reference"},
    "safetensors": {"launch.reference"},
    "fsspec": {"launch.whole"},
    "yaml": {"launch.backends.gke"},
    # Nothing else loads modules behind this file's back.
    "importlib.import_module": {"launch.cli", "launch.sweep", "launch.data"},
}
# Rooms: what no module of a package may import, and what none of the modules it imports may.
WALLS = {
    "melllm_jax": ("data_pipelines", "launch"),
    "data_pipelines": ("jax", "jaxlib", "flax", "optax", "orbax", "launch"),
    "launch": (),
}


def dotted(path: pathlib.Path) -> str:
    """`melllm_jax.config` for melllm_jax/config.py, `melllm_jax` for melllm_jax/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {dotted(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
MODULES = sorted(module for module, path in PATHS.items() if path.name != "__init__.py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every dotted name an import statement or import_module call may load."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and node.attr == "import_module":
            yield "importlib.import_module"


IMPORTS = {module: set(imports(ast.parse(path.read_text()))) for module, path in PATHS.items()}


def within(name: str, fenced: str) -> bool:
    return name == fenced or name.startswith(f"{fenced}.")


def reached(module: str) -> set[str]:
    """All that importing `module` imports by statements of this repository."""
    names, waiting = set(), [module]
    while waiting:
        for name in IMPORTS.get(waiting.pop(), ()):
            if name not in names:
                names.add(name)
                waiting.append(name)
    return names


def test_packages_are_found_and_read():
    assert {"melllm_jax.config", "launch.cli", "data_pipelines.text"} <= set(MODULES)
    assert "melllm_jax.errors" in IMPORTS["melllm_jax.config"]
    assert "importlib.import_module" in IMPORTS["launch.cli"]


def test_module_stands_on_one_floor_only():
    assert sum(map(len, FLOORS)) == len(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_lower_floors(module):
    assert module in FLOOR, f"give {module} a floor"
    assert {name for name in IMPORTS[module] if FLOOR.get(name, -1) >= FLOOR[module]} == set()


@pytest.mark.parametrize("module", PATHS)
def test_module_imports_absolutely(module):
    assert {name for name in IMPORTS[module] if name.startswith(".")} == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_package_init_imports_nothing(package):
    inits = [module for module in PATHS if module not in MODULES and within(module, package)]
    assert {module: IMPORTS[module] for module in inits} == {module: set() for module in inits}


@pytest.mark.parametrize("fenced", FENCES)
def test_third_party_is_imported_only_behind_its_fence(fenced):
    importers = {m for m, names in IMPORTS.items() if any(within(n, fenced) for n in names)}
    assert importers - FENCES[fenced] == set()


@pytest.mark.parametrize("module", PATHS)
def test_room_sees_no_other_through_its_wall(module):
    walled = WALLS[module.split(".")[0]]
    assert {n for n in reached(module) if any(within(n, wall) for wall in walled)} == set()
