"""Carry trials and data sets to a machine without a network, and bring the trials home.

    python -m pipelines.store list
    python -m pipelines.store export lenet5-mnist --seeds 0 1 -o trials.tar
    python -m pipelines.store export --datasets cifar10 --piece-size 60M -o parts/cifar10.tar
    python -m pipelines.store import trials.tar parts/cifar10.tar

Finished trials are packed with their weights and provenance, unfinished trials with their checkpoints, from which
``pipelines.trial`` and ``pipelines.train`` continue. An import is checked against this checkout's rows, code and data.
Needs only torch, Lightning, NumPy and PyYAML.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import signal
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from pipelines.command import arguments, locks
from pipelines.command.errors import HeldError, UserError, brief, guard
from pipelines.command.files import DamagedError, remove
from pipelines.command.progress import counting, say
from pipelines.config import wording
from pipelines.config.params import Params, load_params
from pipelines.data import datasets, parcels
from pipelines.data import portable as portable_data
from pipelines.data.datasets import ARRAYS, DATA, META
from pipelines.data.parcels import Carried, Writer
from pipelines.training import portable, provenance, store
from pipelines.training.portable import JSON_FILES, TENSOR_FILES, Plans

FIRST = "parcel.json"  # a parcel's first file
PARCEL_FORMAT = 1  # of parcels
MOST_FIRST = 2**20  # bytes
NAMES = re.compile(
    rf"{re.escape(FIRST)}|[0-9a-f]{{16}}/({'|'.join(map(re.escape, (*JSON_FILES, *TENSOR_FILES)))})"
    rf"|datasets/[a-z0-9_-]+/({re.escape(META)}|({'|'.join(map(re.escape, ARRAYS))}){re.escape(portable_data.PACKED)})"
)
LOCKS = Path("data")  # where `fetch` keeps those of the data sets


def show(params: Params, args: argparse.Namespace) -> None:
    """Print a table of the trials in the store."""
    plans = Plans(params, DATA, _root(args))
    rows = [
        (
            *(str(found.identity.get(key)) for key in ("benchmark", "seed", "budget")),
            found.state if found.spec else f"{found.state}, of no row here",
            found.files.folder.name,
            f"{found.bytes / 1e6:,.1f} MB",
        )
        for found in plans.found(_known(params, args.benchmarks), args.seeds)
    ]
    if not rows:
        raise UserError(f"{_root(args)} has no such trial; expected one that pipelines.trial or train began")
    rows = [("benchmark", "seed", "budget", "state", "key", "size"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def export(params: Params, args: argparse.Namespace) -> None:
    """Write a parcel of the trials and data sets that the arguments name, by default of every trial."""
    most = None if args.piece_size is None else parcels.piece_bytes(args.piece_size)
    names, root = _known(params, args.benchmarks), _root(args)
    for name in args.datasets:
        if name not in params.datasets:
            raise UserError(wording.unknown("--datasets: data set", name, params.datasets))
    opened = [datasets.open_dataset(DATA, name) for name in dict.fromkeys(args.datasets)]
    with parcels.writing(args.output, most) as writer:
        about = {"format": PARCEL_FORMAT, "versions": provenance.versions(), **provenance.git_state()}
        writer.add_bytes(FIRST, json.dumps(about).encode())
        for dataset in opened:  # before the trials on them
            portable_data.pack(dataset, writer)
        if names or args.seeds or not opened:
            _export_trials(Plans(params, DATA, root), names, args.seeds, writer)
    first, count = writer.files[0].name, len(writer.files)
    more = f" to {writer.files[-1].name}" if count > 1 else ""
    say(f"{args.output.with_name(first)}{more}: {writer.bytes / 1e6:,.1f} MB")


def _export_trials(plans: Plans, names: Collection[str], seeds: Collection[int], writer: Writer) -> None:
    taken, foreign = 0, 0
    for found in plans.found(names, seeds):
        if found.spec is None:
            foreign += 1
            continue
        try:
            with locks.held(found.files.folder / "lock", found.spec.name, patience_s=0):
                if portable.pack(found, found.spec, writer):
                    taken += 1
                    say(f"{found.spec.name}: {found.spec.budget} budget, {found.state}")
        except (HeldError, DamagedError) as error:
            say(f"{error.fact}; left out")
    if foreign:
        say(f"{foreign} more of no row of this checkout, or without its data; left out")
    if not taken:
        raise UserError(f"{plans.root} has no such trial to export; see: python -m pipelines.store list")


def bring_in(params: Params, args: argparse.Namespace) -> None:
    """Take in the contents of parcels; UserError in the end where some of them were refused."""
    refused = 0
    for label, pieces in parcels.gather(args.parcels).items():
        refused += _import(params, _root(args), label, pieces)
    if refused:
        raise UserError(f"{refused} refused, as said above; all else was taken")


def _import(params: Params, root: Path, label: Path, pieces: list[Path]) -> int:
    """Take in one parcel; returns how many of its trials and data sets were refused."""
    plans, refused = Plans(params, DATA, root), 0
    with portable.receiving(root) as incoming, parcels.reading(label, pieces, NAMES) as members:
        _check_about(label, next(members, None))
        for home, files in itertools.groupby(members, lambda member: member.name.rpartition("/")[0]):
            try:
                if home.startswith("datasets/"):
                    say(_take_dataset(params, home.removeprefix("datasets/"), files))
                else:
                    say(_take_trial(plans, incoming / home, files))
            except parcels.ParcelError:
                raise
            except UserError as error:
                refused += 1
                say(f"{home} is refused: {error}")
    return refused


def _check_about(label: Path, member: Carried | None) -> None:
    """ParcelError unless a parcel's first file shows that it can be read here."""
    if member is None or member.name != FIRST:
        raise parcels.ParcelError(f"{label} does not begin with {FIRST}; expected what `export` wrote")
    try:
        about = json.loads(member.whole(MOST_FIRST))
    except (ValueError, RecursionError):
        raise parcels.ParcelError(f"{label}: {FIRST} is damaged; expected what `export` wrote") from None
    format_, versions = (about.get(key) if isinstance(about, dict) else None for key in ("format", "versions"))
    if format_ != PARCEL_FORMAT:
        of = f"{label} is of format {wording.show(format_)}; expected {PARCEL_FORMAT}"
        raise parcels.ParcelError(f"{of}: use the same version of this project")
    there, here = versions.get("torch") if isinstance(versions, dict) else None, provenance.versions()["torch"]
    if there != here:  # an unfinished trial then ends at other bits
        line = f"trained with torch {brief(str(there))}, here is {here}"
        say(f"{label}: {line}; what is unfinished ends at other bits than alone")


def _take_trial(plans: Plans, folder: Path, files: Iterator[Carried]) -> str:
    folder.mkdir()
    try:
        for member in files:
            name = Path(member.name).name
            member.copy(folder / name, portable.MOST_JSON if name in JSON_FILES else None)
        return portable.take(folder, plans)
    finally:
        remove(folder)


def _take_dataset(params: Params, name: str, files: Iterator[Carried]) -> str:
    """Put a data set in its place; UserError where one with another digest is there, which stays."""
    if name not in params.datasets:
        raise UserError(wording.unknown("data set", name, params.datasets))
    with (
        locks.held(LOCKS / f".{name}.lock", f"fetch {name}"),
        datasets.receiving(DATA, name) as folder,
        counting(name, None) as advance,
    ):
        for member in files:
            portable_data.unpack(member, folder, name, advance)
            _check_place(name, folder)
    return f"{DATA / name}: whole, in its place"


def _check_place(name: str, folder: Path) -> None:
    if (DATA / name / META).exists():
        theirs, ours = datasets.read_description(folder, name).digest, datasets.open_dataset(DATA, name).digest
        if theirs != ours:
            raise UserError(f"{DATA / name} is another one; expected none there, move it away")


def _known(params: Params, names: Sequence[str]) -> set[str]:
    return {params.benchmark(name).name for name in names}


def _root(args: argparse.Namespace) -> Path:
    return (args.store or store.default()).absolute()


def _arguments() -> argparse.Namespace:
    parser = arguments.Parser(
        prog="python -m pipelines.store",
        description="List the trials in the run store, export them and data sets to a file, or import such a file.",
    )
    commands = parser.add_subparsers(required=True, metavar="list | export | import")
    listing = commands.add_parser("list", help="list the trials, and how far each is")
    listing.set_defaults(run=show)
    out = commands.add_parser("export", help="write trials, data sets or both into a file")
    out.set_defaults(run=export)
    for each in (listing, out):
        each.add_argument("benchmarks", nargs="*", help="benchmarks of models/*.yaml; by default all")
        each.add_argument("--seeds", type=int, nargs="+", default=[], help="of each benchmark; by default all")
    out.add_argument("--datasets", nargs="+", default=[], metavar="NAME", help="data sets; trials only if named, too")
    out.add_argument("--piece-size", metavar="SIZE", help="such as 60M: write FILE.000, FILE.001, ... of at most this")
    out.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="such as trials.tar")
    into = commands.add_parser("import", help="check such files, and take in what they hold")
    into.set_defaults(run=bring_in)
    into.add_argument("parcels", nargs="+", type=Path, metavar="FILE", help="a file of export, or one of its pieces")
    for each in (listing, out, into):
        each.add_argument("--store", type=Path, default=None, help="the run store; $RUN_STORE or store/")
    return parser.parse_args()


def main() -> None:
    """List, export or import."""
    args = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends this as Ctrl-C does
    args.run(load_params(), args)


if __name__ == "__main__":
    guard(main)
