"""Folders import lower folders only, no modules import in a circle, third parties stay fenced."""

import ast
import builtins
import collections
from collections.abc import Iterator
import graphlib

import pytest

from tests.support.paths import ROOT

PACKAGES = ("melllm_jax", "data_pipelines", "launch")

# From the ground up. A folder imports folders of strictly lower floors, and its own modules in one
# order; neighbours on a floor do not see one another. A loose module is a floor's unit by itself.
# The packages stand on one another here for counting: what one may not see is said by WALLS.
FLOORS = (
    {"melllm_jax.errors", "melllm_jax.interrupts", "melllm_jax.batch", "melllm_jax.xla_options"},
    {"melllm_jax.json_text"},
    {"melllm_jax.config", "melllm_jax.files"},
    {
        *("melllm_jax.features", "melllm_jax.sharding"),
        *("melllm_jax.flops", "melllm_jax.vocoder_flops", "melllm_jax.chips"),
    },
    {"melllm_jax.presets", "melllm_jax.nn", "melllm_jax.telemetry", "melllm_jax.checkpoints"},
    {"melllm_jax.encoders"},
    {"melllm_jax.codec"},
    {"melllm_jax.models"},
    {"melllm_jax.vocoders"},
    {"melllm_jax.objectives", "melllm_jax.inference", "melllm_jax.convert"},
    {"melllm_jax.training"},
    {"melllm_jax.evaluation", "melllm_jax.planning"},
    {"data_pipelines.reject"},
    {"data_pipelines.audio", "data_pipelines.text"},
    {"data_pipelines.corpora"},
    {"data_pipelines.importers", "data_pipelines.examples"},
    {"data_pipelines.prepare", "data_pipelines.loader"},
    {"data_pipelines.synthetic"},
    {"launch.terminal", "launch.runtime"},
    {"launch.charts"},
    {"launch.corpus_report", "launch.runs"},
    {"launch.evaluation", "launch.bench"},
    {"launch.sweep", "launch.api", "launch.evaluation.speech"},
    {"launch.sweep.backends", "launch.sweep.specs", "launch.scaling", "launch.speech"},
    {"launch.sweep_report"},
    {"launch.commands"},
    {"launch.cli"},
    {"launch.__main__"},
)
FLOOR = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}

# What only the named modules may import; a name covers everything below it.
FENCES = {
    "orbax": {"melllm_jax.checkpoints.checkpointer"},
    "tensorstore": {"melllm_jax.checkpoints.weight_store"},
    "huggingface_hub": {"launch.commands.convert"},
    "jax.experimental.pallas": {"melllm_jax.nn.attention_kernels"},
    "grain": {"data_pipelines.loader"},
    "array_record": {
        "data_pipelines.corpora.shard_writer",
        "data_pipelines.corpora.shard_reader",
    },
    "soundfile": {"data_pipelines.audio.file_io"},
    "soxr": {"data_pipelines.audio.sound"},
    "pyarrow": {"data_pipelines.corpora.parquet_audio"},
    "hibari": {"data_pipelines.synthetic.natural_voice"},
    "tensorflow_datasets": {"data_pipelines.corpora.tfds_audio"},
    "apache_beam": {"data_pipelines.prepare.beam_pipeline"},
    "dask": {"data_pipelines.prepare.beam_pipeline"},
    "torch": {"launch.evaluation.transformers_reference", "launch.evaluation.speech.torch_judges"},
    "distillmos": {"launch.evaluation.speech.torch_judges"},
    "resemblyzer": {"launch.evaluation.speech.torch_judges"},
    "transformers": {"launch.evaluation.transformers_reference"},
    "safetensors": {"launch.evaluation.transformers_reference"},
    "fsspec": {"melllm_jax.files"},
    "yaml": {"launch.sweep.backends.gke", "melllm_jax.convert.hf_config.vocoder_config"},
    "jinja2": {"launch.charts.html", "data_pipelines.text.chat_template"},
    # Nothing else loads modules behind this file's back.
    "importlib.import_module": {"launch.terminal.subcommands"},
}
# What no module of a package may import, and what none of the modules it imports may.
WALLS = {
    "melllm_jax": ("data_pipelines", "launch"),
    "data_pipelines": ("jax", "jaxlib", "flax", "optax", "orbax", "launch"),
    "launch": (),
}


def dotted(path) -> str:
    """`melllm_jax.flops` for melllm_jax/flops.py, `melllm_jax` for melllm_jax/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {dotted(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
MODULES = {module for module, path in PATHS.items() if path.name != "__init__.py"}
INITS = PATHS.keys() - MODULES


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


def within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def unit(module: str) -> str:
    """The innermost folder with a floor that `module` lies in, or the loose module itself."""
    return max((u for u in FLOOR if within(module, u)), key=len, default=module)


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
    assert {"melllm_jax.config.run", "launch.cli", "data_pipelines.text.tokenizer"} <= MODULES
    assert "melllm_jax.errors" in IMPORTS["melllm_jax.config.validation"]
    assert "importlib.import_module" in IMPORTS["launch.terminal.subcommands"]


def test_every_module_lies_on_one_floor():
    assert sum(map(len, FLOORS)) == len(FLOOR)
    assert {module for module in MODULES if unit(module) not in FLOOR} == set()
    assert {folder for folder in FLOOR if folder not in PATHS} == set()


@pytest.mark.parametrize("folder", sorted(FLOOR))
def test_folder_imports_only_lower_folders(folder):
    upward = {
        (module, name)
        for module in MODULES
        if unit(module) == folder
        for name in IMPORTS[module] & MODULES
        if unit(name) != folder and FLOOR[unit(name)] >= FLOOR[folder]
    }
    assert upward == set()


def test_no_modules_import_in_a_circle():
    order = graphlib.TopologicalSorter({m: IMPORTS[m] & MODULES for m in MODULES})
    assert len(list(order.static_order())) == len(MODULES)


def test_folders_are_small_enough_to_look_through():
    sizes = {folder: sum(m.rpartition(".")[0] == folder for m in MODULES) for folder in INITS}
    most = {"launch.commands": 16}  # a file for each command, which their names tell apart
    assert {x: size for x, size in sizes.items() if size > most.get(x, 13)} == {}


def test_no_class_name_is_defined_twice():
    counts = collections.Counter(
        node.name
        for path in PATHS.values()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name for name, count in counts.items() if count > 1} == set()


@pytest.mark.parametrize("folder", (*PACKAGES, "benchmarks", "examples", "tests"))
def test_every_name_that_is_read_is_bound_somewhere(folder):
    """Ruff and mypy do not look: to them the dimension strings of jaxtyping are unknown names."""
    unknown = set()
    for path in (ROOT / folder).rglob("*.py"):
        names = list(ast.walk(ast.parse(path.read_text())))
        defs = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        bound = {node.name for node in names if isinstance(node, defs)}
        bound |= {node.arg for node in names if isinstance(node, ast.arg)}
        bound |= {node.name for node in names if isinstance(node, ast.ExceptHandler | ast.MatchAs)}
        for node in names:
            if isinstance(node, ast.Import | ast.ImportFrom):
                bound |= {(x.asname or x.name).split(".")[0] for x in node.names}
        read = [node for node in names if isinstance(node, ast.Name)]
        bound |= {node.id for node in read if not isinstance(node.ctx, ast.Load)}
        known = bound | set(dir(builtins)) | {"__file__", "__name__", "__doc__"}
        unknown |= {(path.name, node.lineno, node.id) for node in read if node.id not in known}
    assert unknown == set()


def test_modules_import_absolutely_and_inits_import_nothing():
    assert {m for m in PATHS if any(name.startswith(".") for name in IMPORTS[m])} == set()
    assert {module for module in INITS if IMPORTS[module]} == set()


def test_slow_tests_are_marked_where_they_are_written():
    """`.ci/run` looks for them in the files of tests that have the word."""
    others = [path for path in (ROOT / "tests").rglob("*.py") if path.name[:5] != "test_"]
    assert [path.name for path in others if "mark.slow" in path.read_text()] == []


@pytest.mark.parametrize("fenced", FENCES)
def test_third_party_is_imported_only_behind_its_fence(fenced):
    importers = {m for m, names in IMPORTS.items() if any(within(n, fenced) for n in names)}
    assert {m for m in importers if not any(within(m, inner) for inner in FENCES[fenced])} == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_package_sees_no_other_through_its_wall(package):
    for module in (m for m in PATHS if within(m, package)):
        seen = reached(module)
        assert {n for n in seen if any(within(n, wall) for wall in WALLS[package])} == set()
