"""params.yaml, suite.yaml and models/*.yaml of a project as one mapping, which a test changes and writes back.

``{"datasets": …, "benchmarks": …, "suites": …, "suite": …}``, each benchmark with its family as ``model.family``; of
``suite`` the name alone counts, the rest is derived.
"""

from __future__ import annotations

import copy
import functools
import pickle
import shutil
from pathlib import Path
from typing import Any

import yaml

from pipelines.config import yamlfile
from pipelines.config.origins import Origin
from pipelines.config.params import SENTENCES, Params, Written, build_params

ROOT = Path(__file__).resolve().parents[1]


def copy_params(folder: Path) -> Path:
    """Put the committed files into ``folder``; its params.yaml."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "params.yaml", ROOT / "suite.yaml", *(ROOT / "models").glob("*.yaml")):
        shutil.copy(path, folder / path.relative_to(ROOT))
    return folder / "params.yaml"


def read(folder: Path) -> dict[str, Any]:
    """What the files in ``folder`` hold."""
    paths = (folder / "params.yaml", folder / "suite.yaml", *sorted((folder / "models").glob("*.yaml")))
    found: dict[str, Any] = pickle.loads(_read(*((path.stem, path.read_text("utf-8")) for path in paths)))
    return found


@functools.cache  # hundreds of tests change one value of the committed files
def _read(*texts: tuple[str, str]) -> bytes:
    params, suite, *families = ((name, yamlfile.parse(text, name)) for name, text in texts)
    benchmarks: dict[str, Any] = {}
    for family, rows in families:
        for name, row in copy.deepcopy(rows).items():
            if name != SENTENCES:
                row["model"] = {"family": family, **row["model"]}
                benchmarks[name] = row
    return pickle.dumps({**params[1], "benchmarks": benchmarks, **suite[1]})


def apart(found: dict[str, Any], *, families: tuple[str, ...] = ()) -> tuple[Written, dict[str, Any]]:
    """``found`` as the loader gets it; what has no family stands in the first of ``families``."""
    rows: dict[str, dict[Any, Any]] = {}
    for name, row in found.get("benchmarks", {}).items():
        row = copy.deepcopy(row)
        model = row.get("model") if isinstance(row, dict) else None
        family = model.pop("family", None) if isinstance(model, dict) else None
        rows.setdefault(family if isinstance(family, str) else families[0], {})[name] = row
    rest = {key: value for key, value in found.items() if key not in ("benchmarks", "suite")}
    return Written(params=rest, families=rows), {key: found[key] for key in ("suite",) if key in found}


def build(found: dict[str, Any]) -> Params:
    """``found``, checked."""
    return build_params(*apart(found | {"suite": active(found)}))


def active(found: dict[str, Any]) -> dict[str, Any]:
    """The block of suite.yaml for the suite that is named in it, whatever else is wrong."""
    plan = found["suites"][found["suite"]["name"]]
    rows = {name: found["benchmarks"][name] for name in plan["benchmarks"]}
    entries = {
        name: {"family": row["model"]["family"], "dataset": row["dataset"], "budget": plan["budget"]}
        for name, row in rows.items()
    }
    suite: dict[str, Any] = found["suite"]
    return suite | {"datasets": list({row["dataset"]: 0 for row in rows.values()}), "benchmarks": entries}


def write(folder: Path, found: dict[str, Any]) -> Path:
    """Write the files that hold ``found`` into ``folder``, in place of any there; the params.yaml."""
    written, suite = apart(found | {"suite": active(found)})
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    for path in models.glob("*.yaml"):
        path.unlink()
    named = {"params": written.params, "suite": suite} | {
        f"models/{family}": r for family, r in written.families.items()
    }
    for name, content in named.items():
        text = yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / "params.yaml"


def shape(origin: Origin) -> tuple[int, int, int]:
    """(C, H, W) of the images of a data set like it."""
    fixed: dict[str, tuple[int, int, int]] = {"idx": (1, 28, 28), "cifar": (3, 32, 32)}
    return fixed.get(origin.kind, (3, origin.size, origin.size))


def classes(dataset: str) -> int:
    """How many the data set of that name has."""
    return {"ilsvrc2012": 1000, "ilsvrc100": 100, "tiny-imagenet": 200}.get(dataset, 10)


class _Plain(yaml.SafeDumper):
    """Without anchors: two rows that share a list in memory stay two lists."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
