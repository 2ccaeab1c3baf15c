"""Guards the keys: they follow what the code behind a trial does, and nothing that is only written about it."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipelines.config.params import load_params
from pipelines.training import fingerprint
from tests import projects
from tests.conftest import ROOT
from tests.processes import environment

PARAMS = load_params(ROOT / "params.yaml")
SOURCES = fingerprint.read()
CONFIG = ("benchmarks", "claims", "recipes")  # modules whose dataclasses the core is handed
TOY_OPTIMISER = '''

@OPTIMISERS.entry("rmsprop")
def rmsprop(groups: Groups, *, lr: float, rho: float, eps: float, weight_decay: float) -> Optimizer:
    """Tieleman and Hinton's."""
    return torch.optim.RMSprop(groups, lr=lr, alpha=rho, eps=eps, weight_decay=weight_decay)
'''
TOY_LOSS = '''

@LOSSES.entry("hinge")
class Hinge(Loss):
    """The sum of what is missing to a margin of 1."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.multi_margin_loss(outputs, labels)
'''
TOY_TRANSFORM = '''

@AUGMENT.entry("invert")
@dataclass(kw_only=True, eq=False, repr=False)
class Invert(AugmentOp):
    """Black for white."""

    def draw(self, draws: Draws, shape: Shape) -> Drawn:
        return ()

    def forward(self, images: Tensor, drawn: Drawn) -> Tensor:
        return -images
'''


def code(name: str, sources: dict[str, str] | None = None) -> dict[str, str]:
    """The digests behind a row, in these sources."""
    return fingerprint.of_training(PARAMS.benchmark(name).resolved("paper"), sources or SOURCES)


def edited(module: str, old: str, new: str) -> dict[str, str]:
    """The sources with an edit, which must be one."""
    assert SOURCES[module].count(old) >= 1, f"{module} lacks {old}"
    return SOURCES | {module: SOURCES[module].replace(old, new)}


def added(module: str, text: str) -> dict[str, str]:
    return SOURCES | {module: SOURCES[module] + text}


# --- what trains nothing again -----------------------------------------------------------------------------------

PROSE: dict[str, dict[str, str]] = {
    "a comment": added("pipelines.training.losses", "\n# a word\n"),
    "a comment in a line": edited("pipelines.data.batches", "  # of the next batch", "  # of the next"),
    "formatting": edited("pipelines.training.losses", "return p * (1 - p)", "return (\n            p*(1-p) )"),
    "a function's docstring": edited(
        "pipelines.data.subsets", '"""Positions (n,), rising, of', '"""The positions (n,), rising, of'
    ),
    "a module's docstring": edited("models.lenet", '"""LeNet-1, LeNet-4 and', '"""The nets LeNet-1, LeNet-4 and'),
    "a class's docstring": edited("pipelines.training.classifier", '"""A model under its recipe.', '"""A model.'),
    "an error's words": edited("pipelines.training.sdlm", "it has no second derivatives for", "nothing is known of"),
    "an error's class": edited("pipelines.training.boosting", "raise UserError(", "raise ValueError("),
    "a check": edited("pipelines.config.recipes", "a number between 0 and 1", "more than 0, less than 1"),
    "a type check's import": edited("pipelines.data.subsets", "import Subset", "import Subset, Recipe"),
    "a report": edited("pipelines.training.checkpoint", '"images_per_s": rate', '"images_per_s": 2 * rate'),
    "a lock": edited("pipelines.command.locks", "within_s=patience_s", "within_s=2 * patience_s"),
    "an unused function": added("pipelines.data.subsets", "\n\ndef odd(count):\n    return range(1, count, 2)\n"),
    "another family": edited("models.mlp", "2.4 / ", "2.5 / "),
    "an optimiser": added("pipelines.training.optimisers", TOY_OPTIMISER),
    "a loss": added("pipelines.training.losses", TOY_LOSS),
    "a transform": added("pipelines.data.transforms", TOY_TRANSFORM),
    "a transform that it does not use": edited("pipelines.data.transforms", "+ self.bias)", "- self.bias)"),
    "an optimiser that it does not use": edited("pipelines.training.sdlm", "/ len(images) for", "* len(images) for"),
    "a loss that it does not use": edited("pipelines.training.losses", "* 2 - 1", "* 2 - 2"),
}


@pytest.mark.parametrize("what", PROSE)
def test_what_does_nothing_to_a_trial_does_not_move_its_key(what: str) -> None:
    assert PROSE[what] != SOURCES
    assert code("lenet5-mnist", PROSE[what]) == code("lenet5-mnist")


def test_the_folder_above_has_no_say(tmp_path: Path) -> None:
    for package in ("models", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / "elsewhere" / package, ignore=shutil.ignore_patterns("__pycache__"))
    assert code("lenet5-mnist", fingerprint.read(tmp_path / "elsewhere")) == code("lenet5-mnist")


def test_a_claim_has_no_say() -> None:
    """It is no part of the resolved config."""
    assert not {"claim", "deviations", "remarks", "label"} & set(PARAMS.benchmark("lenet5-mnist").resolved("paper"))


def test_fields_of_other_optimisers_have_no_say() -> None:
    """So that one more optimiser, with a field of its own, trains no row again."""
    all_have = {"name", "lr", "bias_lr", "layer_lr"}
    sgd = {"decay_biases", "layer_decay", "weight_decay", "momentum", "nesterov"}
    fields = {"sgd": all_have | sgd, "sdlm": all_have | {"mu", "samples"}}
    for name, wanted in {"allcnn-c-cifar10": fields["sgd"], "lenet5-rbf-mnist": fields["sdlm"]}.items():
        assert set(PARAMS.benchmark(name).resolved("paper")["recipe"]["optimiser"]) == wanted


# --- what does train again ---------------------------------------------------------------------------------------

# Edits of one operator or number, and a row that uses what is edited.
MEANING: dict[str, tuple[str, dict[str, str]]] = {
    "the net": ("lenet5-mnist", edited("models.lenet", "AMPLITUDE, SLOPE = 1.7159", "AMPLITUDE, SLOPE = 1.7158")),
    "a transform": ("lenet5-mnist", edited("pipelines.data.transforms", "* ((self.high - self.low) / 255)", "* 1")),
    "a measured transform": ("strided-a-cifar10", edited("pipelines.data.transforms", "+ self.bias)", "- self.bias)")),
    "an augmentation": ("conv-local-13pct-cifar10", edited("pipelines.data.transforms", "images.flip(3)", "images")),
    "a loss": ("strided-a-cifar10", edited("pipelines.training.losses", "F.cross_entropy(", "2 * F.cross_entropy(")),
    "a loss's constant": ("lenet5-rbf-mnist", edited("pipelines.training.losses", "-self.constant)", "self.constant)")),
    "an optimiser": ("strided-a-cifar10", edited("pipelines.training.optimisers", "momentum=momentum", "momentum=0")),
    "sdlm": ("lenet5-rbf-mnist", edited("pipelines.training.sdlm", "value=-group", "value=group")),
    "sdlm's rules": ("lenet5-rbf-mnist", edited("pipelines.training.sdlm", "slope.square()", "slope.abs()")),
    "the schedule": ("lenet5-mnist", edited("pipelines.training.schedules", "* done / length", "* done * length")),
    "the order": ("lenet5-mnist", edited("pipelines.data.batches", '"order", epoch', '"order", 0')),
    "the module": (
        "lenet5-mnist",
        edited("pipelines.training.classifier", '["initial_lr"] * factor', '["initial_lr"]'),
    ),
    "the subset": ("convnetjs-cifar10", edited("pipelines.data.subsets", "% chosen.skip_every != 0", "% 7 != 0")),
    "boosting": ("lenet4-boosted-mnist", edited("pipelines.training.boosting", "AT_A_TIME = 256", "AT_A_TIME = 255")),
    "precision": ("allcnn-c-cifar10", edited("pipelines.training.core", '"bf16-mixed"', '"bf16-true"')),
    "a default": ("lenet5-mnist", edited("pipelines.data.batches", "self.done = 0", "self.done = 1")),
    "a condition": ("lenet5-rbf-mnist", edited("pipelines.training.sdlm", "if not plain and", "if plain and")),
    "a second step": (
        "lenet5-mnist",
        edited(
            "pipelines.training.classifier",
            "self.sums.add(passed, len(labels))\n",
            "optimiser.step()\n            self.sums.add(passed, len(labels))\n",
        ),
    ),
}


@pytest.mark.parametrize("what", MEANING)
def test_an_edit_of_what_a_trial_computes_moves_its_key(what: str) -> None:
    name, sources = MEANING[what]
    before, after = code(name), code(name, sources)
    assert before != after
    (module,) = (module for module in sources if sources[module] != SOURCES[module])
    assert {one for one in before | after if before.get(one) != after.get(one)} == {module}


def test_code_of_boosting_is_behind_boosted_rows_alone() -> None:
    _, sources = MEANING["boosting"]
    assert code("lenet5-mnist", sources) == code("lenet5-mnist")


def test_a_new_import_brings_what_it_imports() -> None:
    sources = edited("pipelines.data.subsets", "kept % chosen.skip_every", "rest.of(kept, chosen.skip_every)")
    sources["pipelines.data.subsets"] += "\nfrom pipelines.data import rest\n"
    sources["pipelines.data.rest"] = "def of(a, b):\n    return helper(a, b)\n\ndef helper(a, b):\n    return a % b\n"
    once = code("lenet5-mnist", sources)
    assert "pipelines.data.rest" in once
    sources["pipelines.data.rest"] = sources["pipelines.data.rest"].replace("a % b", "a // b")
    assert code("lenet5-mnist", sources) != once


# --- the rule itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMS.benchmarks)
def test_what_only_names_reports_or_checks_is_behind_no_trial(name: str) -> None:
    behind = set(code(name))
    assert {f"models.{PARAMS.benchmark(name).model.family}", "pipelines.training.core"} <= behind
    assert not {module for module in behind if module.startswith(("pipelines.command", "pipelines.cluster"))}
    assert not behind & {f"pipelines.config.{name}" for name in (*CONFIG, "params", "schema", "values", "wording")}
    assert "pipelines.training.store" not in behind
    optimiser = PARAMS.benchmark(name).recipe.optimiser.name
    assert ("pipelines.training.sdlm" in behind) == (optimiser == "sdlm")


def test_methods_of_what_the_core_is_handed_decide_no_number() -> None:
    """Their code is not followed: the config's dataclasses and the dataset hold no arithmetic on weights."""
    methods = {
        f"{cls.name}.{function.name}"
        for module in (f"pipelines.config.{name}" for name in CONFIG)
        for cls in ast.parse(SOURCES[module]).body
        if isinstance(cls, ast.ClassDef)
        for function in cls.body
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("_")
    }
    assert methods == {
        "Benchmark.resolved",
        "Benchmark.where",
        "ClaimedOn.end",
        "ClaimedOn.words",
        "Evaluation.protocol",
        "Precision.choices",
        "Precision.on",
        "Optimiser.used",  # this and the next only leave out what another optimiser reads
        "Recipe.resolved",
        "Resources.counts",  # this and the next follow from the number of workers, which is in the key
        "Resources.most",
    }


def test_what_is_written_differently_and_parsed_alike_is_the_same() -> None:
    first = fingerprint.parse('"""A."""\nX: int = 1\n\ndef f(a: str) -> None:\n    """B."""\n    return a+X\n')
    second = fingerprint.parse("X: int = (1)\ndef f(a: str) -> None:\n    # c\n    return (a + X)\n")
    assert first == second
    assert first.used["f"] == ["X", "a"]


@pytest.mark.parametrize("text", ["from . import x\n", "from torch import *\n"])
def test_an_import_that_hides_what_it_brings_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="an import is relative or of"):
        fingerprint.parse(text)


def digest(text: str, name: str = "f") -> dict[str, str]:
    return fingerprint.digests([f"models.x.{name}"], {}, {"models.x": text})


def test_another_meaning_of_a_name_from_elsewhere_is_another() -> None:
    text = "from torch import tanh as g, sigmoid as h\n\ndef f(x):\n    return g(x)\n"
    assert digest(text) != digest(text.replace("tanh", "relu"))
    assert digest(text) == digest(text.replace("sigmoid", "relu"))


def test_what_is_defined_under_a_condition_counts() -> None:
    text = "import sys\nif sys.byteorder == 'big':\n    def f(x):\n        return x\n"
    assert digest(text) != digest(text.replace("return x", "return -x"))
    checked = "if TYPE_CHECKING:\n    X = str\nelse:\n    X = 1\n\ndef f():\n    return X\n"
    assert digest(checked) == digest(checked.replace("str", "int")) != digest(checked.replace("= 1", "= 2"))


# --- one entry adds one thing ------------------------------------------------------------------------------------


def test_one_entry_adds_one_thing(tmp_path: Path, mnist_slice: Path) -> None:
    """In a copy of the checkout: three definitions, each in one place, and a recipe that names them."""
    for package in ("models", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    toys = {"training/optimisers": TOY_OPTIMISER, "training/losses": TOY_LOSS, "data/transforms": TOY_TRANSFORM}
    for module, text in toys.items():
        with (tmp_path / f"pipelines/{module}.py").open("a") as file:
            file.write(text)
    projects.copy_params(tmp_path)
    settings = projects.read(tmp_path)
    row = settings["benchmarks"]["linear-mnist"]
    row["recipe"] |= {"optimiser": {"name": "rmsprop", "lr": 0.001, "rho": 0.9}, "loss": "hinge"}
    row["recipe"] |= {"augment": [{"invert": {}}], "subset": {"first": 300}}
    row.pop("choice", None)
    row["budgets"]["laptop"] = {"epochs": 1, "seeds": [0]}
    projects.write(tmp_path, settings)
    (tmp_path / "datasets").symlink_to(mnist_slice)
    words = [sys.executable, "-m", "pipelines.trial", "linear-mnist", "--device=cpu", "--threads=1"]
    place = environment(PYTHONPATH=str(tmp_path))
    done = subprocess.run(words, cwd=tmp_path, env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "linear-mnist seed 0: trained in" in done.stdout
    row["recipe"]["optimiser"]["momentum"] = 0.9
    projects.write(tmp_path, settings)
    done = subprocess.run(words, cwd=tmp_path, env=place, capture_output=True, text=True)
    line = "error: models/linear.yaml: linear-mnist.recipe.optimiser.momentum is 0.9; expected none with rmsprop\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_an_entry_stands_in_the_module_of_its_registry() -> None:
    """Elsewhere the walk would not see it."""
    source = """
    from pipelines.training.losses import LOSSES, CrossEntropy
    @LOSSES.entry("other")
    class Other(CrossEntropy):
        pass
    """
    with pytest.raises(ValueError, match=r"^loss other is defined in .*; expected pipelines.training.losses$"):
        exec(textwrap.dedent(source), {"__name__": "elsewhere"})
