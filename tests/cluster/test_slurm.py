"""The documented commands on a real SLURM of two machines: a node is lost, the job queued again, the ledger written."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.command.files import read_json
from pipelines.training.spec import Spec
from tests.checkout import Checkout
from tests.cluster.machines import NOTICED_SOON, SCRATCH, Machine, Machines, machines
from tests.disturbed import OFTEN, specs, stamp
from tests.processes import until
from tests.projects import ROOT

pytestmark = [pytest.mark.usefixtures("ends_all"), pytest.mark.alone]
TOOLS = os.environ.get("SLURM_ROOT")  # of Debian's packages, where they are unpacked and not installed
CONF = """
    ClusterName=test
    SlurmctldHost=ctl(10.77.0.254)
    AuthType=auth/none
    CredType=cred/none
    AuthInfo=cred_expire=5
    SlurmUser=root
    StateSaveLocation={folder}/state
    SlurmdSpoolDir={folder}/%n
    SlurmctldPidFile={folder}/ctl.pid
    SlurmdPidFile={folder}/%n.pid
    SlurmctldLogFile={folder}/ctl.log
    SlurmdLogFile={folder}/%n.log
    ProctrackType=proctrack/linuxproc
    TaskPlugin=task/none
    SelectType=select/cons_tres
    SwitchType=switch/none
    MpiDefault=none
    ReturnToService=2
    SlurmdTimeout=10
    SchedulerParameters=bf_interval=2
    KillWait=5
    NodeName=n[1-2] NodeAddr=10.77.0.[1-2] CPUs=1 RealMemory=1000 State=UNKNOWN
    PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
    PartitionName=gpu Nodes=ALL MaxTime=INFINITE State=UP
"""


def commands(title: str) -> list[str]:
    """Those that docs/clusters.md gives under a title."""
    _, _, section = (ROOT / "docs/clusters.md").read_text().partition(f"\n## {title}\n")
    block = section.partition("\n    ")[2].partition("\n\n")[0]
    return [line.strip().partition("    #")[0] for line in block.splitlines()]


class Slurm:
    """A checkout, on the machines of a SLURM cluster."""

    def __init__(self, scene: Machines, checkout: Checkout) -> None:
        self.scene, self.checkout = scene, checkout
        conf = scene.folder / "slurm.conf"
        conf.write_text(textwrap.dedent(CONF).format(folder=scene.folder))
        (scene.folder / "state").mkdir()
        self.environment = checkout.environment | NOTICED_SOON
        self.environment |= {
            "SLURM_CONF": str(conf),
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:1",
            "PYTHONPATH": os.pathsep.join([str(scene.folder), str(checkout.folder)]),
        }
        self.run("slurmctld-wlm")
        for node in scene.nodes:
            self.boot(node)
        until(lambda: "n[1-2] idle" in self.run("sinfo", "--noheader", "--format=%N %t"))

    def boot(self, node: Machine) -> None:
        spool = self.scene.folder / node.name
        spool.mkdir(exist_ok=True)
        words = ["slurmd-wlm", "-N", node.name, "-d", "/usr/sbin/slurmstepd-wlm"]
        node.run(*words, environment=self.environment)

    def run(self, *words: str) -> str:
        return self.scene.switch.run(*words, environment=self.environment)

    def type(self, line: str) -> str:
        """What a person types in the checkout; but these machines have no GPUs, and share their /tmp."""
        line = line.replace(" --gpus-per-node 8", f" --scratch {SCRATCH}")
        return self.run("env", f"--chdir={self.checkout.folder}", "bash", "-c", line)

    def log(self, job: str) -> str:
        path = self.checkout.folder / f"store/logs/slurm-{job}.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def slurm(tmp_path: Path, mirror: Path) -> Iterator[Slurm]:
    path = f"{TOOLS or ''}/usr/sbin"
    if shutil.which("slurmctld-wlm", path=path) is None:
        pytest.skip("no SLURM here (Debian's slurmctld and slurmd, installed or unpacked at $SLURM_ROOT)")
    (tmp_path / "checkout").mkdir()
    checkout = Checkout(tmp_path / "checkout", mirror)
    with machines(tmp_path, 2, TOOLS) as scene:
        yield Slurm(scene, checkout)


def state(slurm: Slurm, job: str) -> str:
    found = slurm.run("scontrol", "--oneliner", "show", "job", job)
    return next(word.removeprefix("JobState=") for word in found.split() if word.startswith("JobState="))


def test_a_job_outlives_its_node_and_its_end(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled, ended by its time limit, and with a node lost: the ledger is written in the end."""
    home, slow = slurm.checkout.folder, slurm.scene.folder / "slow"
    monkeypatch.chdir(home)
    slurm.checkout.small(epochs=60, images=2000)  # enough for three interruptions
    slurm.checkout.edit(lambda found: found["suites"].update(paper=found["suites"]["laptop"]))
    (slurm.scene.folder / "sitecustomize.py").write_text(OFTEN)
    slow.touch()
    prepare, preview, submit, follow = commands("With a SLURM account")
    slurm.type(prepare)
    assert "#SBATCH --partition=gpu\n#SBATCH --account=mine\n" in slurm.type(preview)
    trials = [*specs("lenet5-mnist"), *specs("linear-mnist")]

    def saved() -> list[Spec]:
        """Two trials that have saved a checkpoint by now, in whichever order they were begun."""
        began = {trial.key: stamp(trial.files.checkpoint) for trial in trials}

        def since() -> list[Spec]:
            return [trial for trial in trials if stamp(trial.files.checkpoint) > began[trial.key]]

        until(lambda: len(since()) > 1)
        return since()

    job = slurm.type(submit).split()[1]
    one, *_ = saved()
    slurm.run("scancel", job)
    until(lambda: state(slurm, job) == "CANCELLED")
    assert not one.files.finished and one.files.checkpoint.exists()
    slurm.run("scontrol", "requeue", job)
    saved()
    slurm.run("scancel", "--signal=USR1", "--batch", job)  # as SLURM does before the time is up
    until(lambda: state(slurm, job) == "PENDING")
    hosts = [read_json(trial.files.progress)["host"] for trial in saved()]
    assert sorted(hosts) == ["n1", "n2"]
    slurm.scene.nodes[1].end()
    slow.unlink()
    until(lambda: state(slurm, job) in ("COMPLETED", "FAILED"), 400)
    assert state(slurm, job) == "COMPLETED", slurm.log(job)
    ledger = (home / "report/ledger.json").read_text()
    assert "lenet5-mnist" in ledger and "linear-mnist" in ledger
    told = slurm.type(follow.replace("tail -F", "cat"))
    assert told == slurm.log(job)
    assert told.count("\nerror: ended by SIGUSR1; the same command goes on at its last checkpoint\n") == 1
    assert not [words for words in ("Traceback", "[state-dump]", "Aborted", "Exited with exit code") if words in told]
    assert sum(read_json(trial.files.result)["resumed"] for trial in trials) >= 4  # two trials by each of the first two
