"""A trial: trains on real images, is resumable bit for bit, never opens the test split, needs no Ray, MLflow or DVC."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import json
import math
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.command.errors import UserError
from pipelines.command.files import read_json, read_lines, replacing
from pipelines.config import schema
from pipelines.config.benchmarks import Model
from pipelines.config.params import load_params
from pipelines.data import datasets, subsets
from pipelines.training import checkpoint, checks, inputs, provenance, spec, status, store, trainer
from pipelines.training.inputs import Inputs
from pipelines.training.spec import Spec
from tests import projects
from tests.conftest import ROOT, THREADS, edit_params, hide_test_images
from tests.processes import environment

NAME = "lenet5-mnist"
SMALL: dict[str, Any] = {"recipe.subset": {"first": 300}, "budgets.laptop": {"epochs": 3, "seeds": [0]}}


def planned(changes: Mapping[str, Any] | None = None, *, name: str = NAME, seed: int = 0, root: str = "store") -> Spec:
    projects.copy_params(Path())
    params = edit_params(Path("params.yaml"), **{name: {**SMALL, **(changes or {})}})
    return spec.plan(params.benchmark(name), "laptop", seed, data=Path("datasets"), root=Path(root), threads=THREADS)


def weights(files: store.TrialFiles) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(files.weights, weights_only=True)
    return found


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.numeric
def test_a_trial_learns_and_says_where_its_numbers_come_from(project: Path) -> None:
    # Off the plateau at once, and at a rate with which any seed learns on any processor: about 1.5, then 0.5.
    learning = {"model.options": {"init": "sqrt_fan_in"}, "recipe.optimiser.lr": 0.01}
    one = planned({"recipe.subset": {}, "budgets.laptop": {"epochs": 2, "seeds": [0]}, **learning})
    files = trainer.run(one)
    curve = read_lines(files.curve)
    assert [point["epoch"] for point in curve] == [1, 2]
    assert curve[1]["loss"] < 0.8 * curve[0]["loss"] < 0.8 * 2.3026  # ln 10: what guessing costs
    steps, lr = -(-2000 // one.benchmark.recipe.batch), one.benchmark.recipe.optimiser.lr
    assert curve[1]["lr"] == pytest.approx(lr / (2 * steps))  # the paper's schedule, run through in the budget's epochs
    result = read_json(files.result)
    assert result["parameters"] == 60_850
    assert result["images_seen"] == 2 * 2000
    assert result["config"] == one.benchmark.resolved("laptop")
    assert result["dataset_digest"] == datasets.open_dataset(one.data, "mnist").digest
    assert result["versions"]["torch"] == torch.__version__
    assert {"models.lenet", "pipelines.training.classifier", "pipelines.data.transforms"} <= set(result["sources"])
    assert not files.checkpoint.exists()


def test_a_net_on_the_plateau_is_told_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its steps are too small to leave it, whatever the processor."""
    trainer.run(planned({"recipe.optimiser.lr": 1e-7}))
    found = re.findall(r"^.*stuck at chance.*$", capsys.readouterr().out, re.MULTILINE)
    assert len(found) == 1
    expected = (
        r"lenet5-mnist seed 0: stuck at chance: after 2 epochs its loss is 2\.3\d\d\d, that of a guess ln 10 = 2\.3026"
    )
    assert re.fullmatch(expected, found[0])


def test_other_code_than_it_was_planned_with_does_not_train_a_trial(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the store would hand out its weights as those of the code that the key stands for."""
    one, losses = planned(), inputs.LOADED["pipelines.training.losses"]
    trainer._loaded.cache_clear()
    with monkeypatch.context() as edited:
        since = losses.replace("F.cross_entropy(outputs, labels)", "2 * F.cross_entropy(outputs, labels)")
        edited.setattr("pipelines.training.trainer.LOADED", inputs.LOADED | {"pipelines.training.losses": since})
        with pytest.raises(UserError, match="lenet5-mnist seed 0: the source files or the data were changed after it"):
            trainer.run(one)
    assert not one.files.trial.exists()
    trainer._loaded.cache_clear()
    trainer.run(one)


def test_a_trial_names_the_commit_that_it_began_with(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or last went on with: hours later the checkout may be at another."""
    one = planned()

    def state() -> dict[str, Any]:  # the curve is there as soon as it trains
        later = one.files.curve.exists()
        return {"git_commit": ("b" if later else "a") * 40, "git_dirty": later}

    monkeypatch.setattr(provenance, "git_state", state)
    result = read_json(trainer.run(one).result)
    assert (result["git_commit"], result["git_dirty"]) == ("a" * 40, False)


def test_what_is_fitted_is_kept_under_the_code_that_fitted_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not under the file as it has become since."""
    one = planned()
    name, loaded = "pipelines.data.transforms", inputs.LOADED["pipelines.data.transforms"]
    for source, kept in ((loaded, 1), (loaded + "# a word", 1), (loaded.replace(" / 255)", " / 256)"), 2)):
        monkeypatch.setattr(inputs, "LOADED", inputs.LOADED | {name: source})
        assert Inputs.of(one).transforms
        assert len(list((one.store / "fitted").glob("*.pt"))) == kept


def test_a_finished_trial_is_not_trained_again(project: Path) -> None:
    one = planned()
    trainer.run(one)
    stamp = one.files.weights.stat().st_mtime_ns
    trainer.run(one)
    assert one.files.weights.stat().st_mtime_ns == stamp


def test_what_one_kind_of_device_has_finished_is_not_trained_anew_for_another(project: Path) -> None:
    """A row whose precision differs between devices has a key on each; the settings that trained are on record."""
    one = planned({"recipe.precision": {"cuda": "bf16"}})
    there = one.on("cuda", threads=1)
    assert (one.precision, there.precision) == ("fp32", "bf16") and one.key != there.key
    assert there.settled is there and not there.files.finished
    trainer.run(one)
    assert there.settled.finished and there.settled.key == one.key and not there.files.finished
    assert read_json(there.settled.files.result)["config"]["recipe"]["precision"] == "fp32"
    alike = planned().on("cuda", threads=1)
    assert [each.key for each in alike.variants] == [planned().key]


def test_the_seed_decides_the_weights_and_nothing_else_does(project: Path) -> None:
    first, again, other = planned(root="a"), planned(root="b"), planned(seed=1, root="a")
    assert same(weights(trainer.run(first)), weights(trainer.run(again)))
    assert not same(weights(first.files), weights(trainer.run(other)))


KILLED = """
    import os, signal, sys, pickle
    from pipelines.training import checkpoint, trainer
    checkpoint.CheckpointCallback._agree = lambda self, now, batch: True  # a checkpoint wherever there may be one
    one, stop_at = pickle.load(open(sys.argv[1], "rb")), float(sys.argv[2])
    save = checkpoint.CheckpointCallback._save
    def save_and_die(self, trainer):
        save(self, trainer)
        if self.loader.epoch + self.loader.done / len(self.loader) >= stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
    checkpoint.CheckpointCallback._save = save_and_die
    trainer.run(one)
"""

# Each has something of its own to lose in a restart: momentum and bf16; Adadelta's state and augmentation; dropout.
RECIPES: dict[str, dict[str, Any]] = {
    "momentum": {},
    "augmented": {
        "recipe.augment": [{"shift": {"pixels": 2}}],
        "recipe.optimiser": {"name": "adadelta", "lr": 1.0},
        "recipe.schedule": {"points": [[0, 1.0], [10, 0.1]]},
    },
    "dropout": {
        "model": {"family": "allcnn", "name": "allcnn", "options": {"base": "A", "variant": "base"}},
        "recipe.subset": {"first": 60},
        "recipe.precision": {"cpu": "bf16"},
        "recipe.channels_last": True,
    },
}


@pytest.mark.parametrize(  # epochs: in the first, between two, in the second, behind the last
    ("recipe", "stop_at"),
    [("momentum", 0.4), ("augmented", 1.2), ("augmented", 3.0), ("dropout", 0.4), ("dropout", 1.0)],
)
def test_a_killed_trial_ends_at_the_weights_of_an_undisturbed_one(
    project: Path, recipe: str, stop_at: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = trainer.run(planned(RECIPES[recipe], root="undisturbed"))
    one = planned(RECIPES[recipe], root="killed")
    (project / "spec.pickle").write_bytes(pickle.dumps(one))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLED), "spec.pickle", str(stop_at)], env=environment()
    )
    assert done.returncode == -9
    assert one.files.checkpoint.exists() and not one.files.finished
    trainer.run(one)
    assert read_json(one.files.result)["resumed"] == 1
    assert same(weights(one.files), weights(undisturbed))
    keys = ("epoch", "loss", "train_error", "lr")
    resumed, straight = read_lines(one.files.curve), read_lines(undisturbed.curve)
    assert [[p[k] for k in keys] for p in resumed] == [[p[k] for k in keys] for p in straight]


def test_training_opens_no_test_file(project: Path, mnist_slice: Path) -> None:
    """They are not there while a trial trains; so trains every block in tests/test_every_benchmark.py."""
    hide_test_images(project, mnist_slice)
    one = planned()
    checks.check(Inputs.of(one), "laptop")
    assert trainer.run(one).finished


def test_preprocessing_is_fitted_on_the_images_that_are_trained_on(project: Path) -> None:
    """A mean, or ZCA, that has seen the validation slice would have been told of it."""
    changes = {"recipe.preprocess": [{"raw": {}}, {"mean_subtract": {"per": "pixel"}}]}
    one = planned({**changes, "recipe.subset": {"hold_out": 400}})
    dataset = datasets.open_dataset(one.data, "mnist")
    images = np.array(dataset.split("train")[0])
    kept = np.setdiff1d(np.arange(2000), subsets.validation(2000, 400))
    fitted, _ = Inputs.of(one).transforms
    seen = fitted(torch.from_numpy(images[:5])).numpy()
    np.testing.assert_allclose(seen, images[:5] - images[kept].mean(0, dtype=np.float64), atol=1e-3)
    assert np.abs(images.mean(0, dtype=np.float64) - images[kept].mean(0, dtype=np.float64)).max() > 0.1


@pytest.mark.numeric
def test_the_weights_that_are_kept_are_the_last_epochs_even_where_it_is_the_worse_one(project: Path) -> None:
    def spoilt(epochs: int) -> Spec:
        lengths = {"budgets.paper.epochs": epochs, "budgets.laptop": {"epochs": epochs, "seeds": [0]}}
        changes = {"recipe.schedule": {"points": [[0, 1.0], [1, 1000.0]]}, "recipe.subset": {}}
        return planned({**lengths, **changes}, name="linear-mnist", root=f"epochs-{epochs}")

    first, second = trainer.run(spoilt(1)), trainer.run(spoilt(2))
    better, worse = (point["train_error"] for point in read_lines(second.curve))
    assert better < worse and read_lines(first.curve)[0]["train_error"] == better
    assert not same(weights(first), weights(second))
    largest = [max(float(weight.abs().max()) for weight in weights(files).values()) for files in (first, second)]
    assert largest[1] > 10 * largest[0]  # the steps of the last epoch were a thousand times as long


def test_a_trial_needs_torch_lightning_numpy_and_yaml_alone(project: Path) -> None:
    forbidden = ["ray", "mlflow", "dvc", "psutil", "requests", "jinja2", "filelock", "sklearn"]
    block = f"import sys; sys.modules.update(dict.fromkeys({forbidden!r}))\n"
    planned()
    code = block + "from pipelines import trial; sys.argv = ['trial', 'lenet5-mnist']; trial.main()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "lenet5-mnist seed 0: trained in" in done.stdout


def test_a_model_file_imports_nothing_of_ours() -> None:
    for path in (ROOT / "models").glob("*.py"):
        tree = ast.parse(path.read_text())
        modules = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        assert not [m for m in modules if m.startswith("pipelines")], path


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "batch larger than the data": ({"recipe.batch": 4000}, "recipe.batch is 4000; expected at most the 300"),
    "unknown model": ({"model.name": "lenet6"}, "model lenet6 is not known; did you mean lenet"),
    "unknown option": ({"model.options": {"haed": "softmax"}}, "option haed is not known; did you mean head"),
    "bad name": ({"model.options": {"head": "svm"}}, ".model.options.head is 'svm'; allowed: rbf, softmax"),
    "unit too few": (
        {"model": {"family": "mlp", "name": "mlp", "options": {"hidden": [0]}}},
        ".model: mlp: hidden [0]",
    ),
    "first beyond the data": ({"recipe.subset": {"first": 2001}}, "first is 2001; expected at most the 2,000 training"),
    "hold_out of all": (
        {"recipe.subset": {"hold_out": 2000}},
        "hold_out is 2000; expected at most 1,999, one less than",
    ),
    "sample beyond the rest": (
        {"recipe.subset": {"skip_every": 2, "sample": 1001}},
        "sample is 1001; expected at most the 1,000 that the rest of the subset leaves of the 2,000 training images of",
    ),
    "a rest of none": ({"recipe.subset": {"first": 1, "skip_every": 2}}, "recipe.subset leaves none of the 2,000"),
    "budget beyond the recipe's": (
        {"budgets.laptop": {"epochs": 1, "seeds": [0], "train_images": 301}},
        "budgets.laptop.train_images is 301; expected at most 300 of the 2,000 training images of mnist",
    ),
    "samples beyond the data": (
        {"recipe.optimiser": {"name": "sdlm", "lr": 0.01, "samples": 301}},
        "recipe.optimiser.samples is 301; expected at most 300 of the 2,000 training images of mnist",
    ),
    "impossible size": (
        {"model": {"family": "mlp", "name": "mlp", "options": {"hidden": [10**12]}}},
        "it is too large for",
    ),
    "unknown transform": ({"recipe.preprocess": [{"skale": {}}]}, "'skale' is no known operation"),
    "misspelt argument": ({"recipe.preprocess": [{"scale": {"lo": 0, "high": 1}}]}, "scale: lo is 0"),
    "misfitting shape": ({"recipe.preprocess": [{"scale": {"low": 0, "high": 1}}, {"pad": {"pixels": 1}}]}, "pad"),
    "crop too large": ({"recipe.augment": [{"crop": {"size": 40}}]}, "size is 40; expected at most 32"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_trained_is_said_in_one_line_before_it_starts(project: Path, name: str) -> None:
    changes, words = BAD[name]
    one = planned(changes)
    with pytest.raises(UserError) as caught:
        checks.check(Inputs.of(one), "laptop")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert ".yaml: lenet5-mnist" in str(caught.value)


NO_BOOLEANS = ["no", "false", "off", "0", 0, 1, 1.0, math.nan, {}, [], {"a": True}, None]
OPTIONS: list[tuple[str, dict[str, Any], str, Sequence[Any], str]] = [
    ("allcnn", {}, "logits_relu", NO_BOOLEANS, "expected true or false"),
    ("allcnn", {}, "dropout", NO_BOOLEANS, "expected true or false"),
    ("allcnn", {}, "conv7_padding", [True, "1", 1.0, None, {}], "expected a whole number"),
    ("allcnn", {}, "base", [True, "D", 3, None, {}, ["A"]], "allowed: A, B, C"),
    ("alexnet", {}, "bias", ["1", True, None, {}, [0.1]], "expected a number"),
    ("alexnet", {}, "bias", [math.nan, math.inf, -math.inf, 10**400], "expected a finite number"),
    ("mlp", {}, "hidden", ["300", 300, None, {}], "expected a list"),
    ("mlp", {}, "hidden[1]", [[300, "100"], [300, 1.0], [300, True], [300, None]], "expected a whole number"),
]


@pytest.mark.parametrize(("name", "given", "option", "values", "words"), OPTIONS)
def test_an_option_of_another_type_is_one_line(
    project: Path, name: str, given: dict[str, Any], option: str, values: Sequence[Any], words: str
) -> None:
    """YAML 1.2's "no" is text, and would be true to a network."""
    one = planned({})
    for value in values:
        options = {**given, option.partition("[")[0]: value}
        model = Model(family=name, name=name, options=options)
        with pytest.raises(UserError) as caught:
            inputs.build_network(dataclasses.replace(one.benchmark, model=model), 10, (1, 227, 227))
        line = str(caught.value)
        assert line.startswith(f"models/{name}.yaml: lenet5-mnist.model.options.{option} is "), value
        assert words in line and "\n" not in line


def test_a_builder_says_what_the_range_of_an_option_is(project: Path) -> None:
    one = planned({})
    for option, value in (("dropout", 1.5), ("dropout", -0.1), ("fc_std", -1.0), ("bias", 1e39)):
        model = Model(family="alexnet", name="alexnet", options={option: value})
        with pytest.raises(UserError, match=r"^models/alexnet\.yaml: lenet5-mnist\.model(: alexnet|\.options\.)"):
            inputs.build_network(dataclasses.replace(one.benchmark, model=model), 10, (1, 67, 67))


def test_every_option_of_every_builder_can_be_checked() -> None:
    """Its annotation is one that a value from params.yaml is held to."""
    for path in (ROOT / "models").glob("[a-z]*.py"):
        for name, build in inputs.builders(path.stem).items():
            if "in_shape" in inspect.signature(build).parameters:
                for option, hint in typing.get_type_hints(build).items():
                    if option not in ("classes", "in_shape", "return"):
                        with pytest.raises(UserError, match=f"^{name} is "):
                            schema.convert(hint, {"a": "mapping"}, name)


def test_the_key_follows_everything_that_decides_the_weights(project: Path) -> None:
    base = planned()
    changed = [
        planned({"recipe.batch": 16}),
        planned({"model.options": {"head": "rbf"}}),
        planned({"budgets.laptop": {"epochs": 4, "seeds": [0]}}),
        planned(seed=1),
    ]
    keys = {base.key, *(one.key for one in changed)}
    assert len(keys) == 1 + len(changed)
    unchanged = planned({"claim.value": 1.0, "deviations": ["another"], "resources": {"cpus": 2}})
    assert unchanged.key == base.key


def test_progress_on_disk_ends_done(project: Path) -> None:
    seen: list[dict[str, Any]] = []
    one = planned()
    trainer.run(one, watch=lambda told: seen.append(dict(told)))
    assert seen[0]["state"] == "running" and seen[-1]["state"] == "done"
    assert json.loads(one.files.progress.read_text())["epoch"] == 3


def test_an_epoch_is_a_pass_over_what_the_recipe_trains_on(project: Path) -> None:
    """Not over what a budget leaves of it: the ledger counts so, and everybody else."""
    seen: list[dict[str, Any]] = []
    one = planned({"budgets.laptop": {"epochs": 3, "seeds": [0], "train_images": 200}})  # of 300
    files = trainer.run(one, watch=lambda told: seen.append(dict(told)))
    assert [point["epoch"] for point in read_lines(files.curve)] == pytest.approx([2 / 3, 4 / 3, 2], abs=1e-6)
    result = read_json(files.result)
    assert (result["epochs"], result["images_seen"]) == (2, 600) and one.recipe_epochs() == pytest.approx(2)
    assert {told["epochs"] for told in seen} == {2.0} and (seen[0]["epoch"], seen[-1]["epoch"]) == (0, 2)
    short = planned({"budgets.laptop": {"epochs": 1, "seeds": [0], "train_images": 77}})
    curve, result = read_lines(trainer.run(short).curve), read_json(short.files.result)
    assert curve[-1]["epoch"] == pytest.approx(77 / 300, abs=1e-6) and result["epochs"] == 0.257
    (line,) = [status.line("x", told) for told in [read_json(short.files.progress)]]
    assert line.split()[1:3] == ["epoch", "0.257/0.257"]


def test_a_trial_that_diverges_says_so_and_can_be_read(project: Path) -> None:
    """In JSON that others read, too: NaN is none."""
    one = planned({"recipe.loss": "mse", "recipe.optimiser.lr": 1e30}, name="linear-mnist")
    with pytest.raises(UserError, match=r"^linear-mnist seed 0: the loss of epoch 1 is nan; try a lower lr$"):
        trainer.run(one)
    told = status.read(one.files.progress, since=0.0)
    assert told is not None and (told["state"], told["loss"]) == ("failed", None)
    assert status.line(one.name, told).endswith("failed")


def test_resolved_is_plain_and_complete() -> None:
    params = load_params(ROOT / "params.yaml")
    for benchmark in params.benchmarks.values():
        resolved = benchmark.resolved("paper")
        assert json.loads(json.dumps(resolved)) == resolved
        assert resolved["recipe"]["optimiser"]["lr"] == benchmark.recipe.optimiser.lr


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"recipe.optimiser": {"name": "sgd", "lr": 0.1, "layer_decay": {"hed": 0.1}}},
            "models/lenet.yaml: lenet5-mnist.recipe.optimiser: layer_decay names hed; expected layers of the model: c1",
        ),
        (  # a container has no weights of its own
            {"recipe.optimiser": {"name": "sgd", "lr": 0.1, "layer_decay": {"full": 0.1}}},
            "models/lenet.yaml: lenet5-mnist.recipe.optimiser: layer_decay names full; expected layers of the model: ",
        ),
        (
            {
                "model": {"family": "alexnet", "name": "alexnet"},
                "recipe.preprocess": [{"resize": {"size": 224}}],
                "recipe.optimiser": {"name": "sdlm", "lr": 0.1, "samples": 100},
            },
            "models/alexnet.yaml: lenet5-mnist.recipe.optimiser: ",
        ),
    ],
)
def test_an_optimiser_that_does_not_fit_the_model_is_one_line(
    project: Path, changes: dict[str, Any], line: str
) -> None:
    one = planned(changes)
    with pytest.raises(UserError) as caught:
        checks.check(Inputs.of(one), "laptop")
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("ends_all")
def test_a_signal_ends_the_command_with_one_line(project: Path) -> None:
    planned({"budgets.laptop": {"epochs": 5000, "seeds": [0, 1]}})
    trials = spec.trials(load_params(), NAME, data=Path("datasets"), root=Path("store"))
    command = [sys.executable, "-W", "ignore", "-m", "pipelines.trial", NAME, "--device=cpu", "--threads=1", "--seeds"]
    started = [
        subprocess.Popen([*command, str(one.seed)], env=environment(), stderr=subprocess.PIPE, text=True)
        for one in trials
    ]
    for process, one, how in zip(started, trials, (signal.SIGINT, signal.SIGTERM), strict=True):
        while not one.files.progress.exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert said.splitlines() == ["error: interrupted; the same command continues where this one stopped"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a file system of its own can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("written_next", ["progress", "checkpoint"])
def test_a_disk_that_fills_up_is_one_line_and_loses_nothing(
    project: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, written_next: str
) -> None:
    undisturbed = trainer.run(planned(root="undisturbed"))
    monkeypatch.setattr(checkpoint.CheckpointCallback, "_agree", lambda self, now, batch: True)
    monkeypatch.setattr(checkpoint, "PROGRESS_EVERY_S", 0.0)
    one = planned(root=str(small_disk / "store"))
    filler = small_disk / "filler"

    def fill(told: Mapping[str, Any]) -> None:
        if one.files.checkpoint.exists() and not filler.exists():
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            monkeypatch.setattr(checkpoint, "PROGRESS_EVERY_S", 0.0 if written_next == "progress" else math.inf)

    with pytest.raises(UserError) as caught:
        trainer.run(one, watch=fill)
    assert str(caught.value).startswith(f"no space left in {small_disk / 'store'} (0 MB free)")
    assert one.files.checkpoint.exists()
    filler.unlink()
    trainer.run(one)
    assert read_json(one.files.result)["resumed"] == 1
    assert same(weights(one.files), weights(undisturbed))


def test_weights_that_do_not_fit_are_one_line(small_disk: Path) -> None:
    with (
        pytest.raises(UserError, match="no space left in"),
        trainer._full_disk_reported(small_disk),
        replacing(small_disk / "weights.pt") as temporary,
    ):
        torch.save(torch.zeros(1_000_000), temporary)
