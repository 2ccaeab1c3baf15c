"""Several machines on this one: each with a network, processes, a name and a scratch folder to itself.

Linux namespaces, joined by a bridge; all of it ends with the process that made it. A machine can be switched off in the
middle of its work.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.processes import name_of, started_by, until

OWN = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
IDLE = [*OWN, "bash", "-c", "sleep infinity & wait"]  # a shell, which buries the processes that others leave behind
NOTICED_SOON = {  # Ray itself takes a minute for a machine that is switched off
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
SCRATCH = "/mnt"  # a folder of its own on each machine; all else is shared


class Machine:
    """One of them."""

    def __init__(self, name: str, within: Machine | None = None) -> None:
        self.name = name
        around = [] if within is None else within.inside
        self.process = subprocess.Popen([*around, *IDLE])
        until(lambda: "sleep" in map(name_of, started_by(self.process.pid)), 20)
        self.pid = next(one.pid for one in started_by(self.process.pid) if name_of(one) == "bash")
        self.run("hostname", name)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def inside(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--mount", "--net", "--uts", "--pid", f"--wd={os.getcwd()}"]

    def run(self, *words: str, environment: Mapping[str, str] | None = None) -> str:
        done = subprocess.run([*self.inside, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def end(self) -> None:
        """Switch it off: all its processes end at once."""
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(self.pid).send_signal(signal.SIGKILL)
        self.process.wait()


class Machines:
    """A switch, on which the controlling machine is, and the nodes."""

    def __init__(self, folder: Path, count: int, root: str | None) -> None:
        self.folder, self.count = folder, count
        self.switch = Machine("ctl")
        if root:
            self.switch.run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={root}/usr:/usr", "/usr")
        self.switch.run("ip", "link", "add", "br0", "type", "bridge")
        self.switch.run("ip", "address", "add", f"{self.address(0)}/24", "dev", "br0")
        self.switch.run("ip", "link", "set", "br0", "up")
        self._name(self.switch, own=self.address(0))
        self.nodes = [self.start(number) for number in range(1, count + 1)]

    @staticmethod
    def address(number: int) -> str:
        return f"10.77.0.{number or 254}"

    def start(self, number: int) -> Machine:
        """Switch a node on."""
        node, end = Machine(f"n{number}", self.switch), f"v{number}"
        bridge = ["nsenter", f"--target={self.switch.pid}", "--net", "ip", "link"]
        subprocess.run([*bridge, "delete", end], capture_output=True)  # of the machine that was here
        pair = ["add", end, "type", "veth", "peer", "name", "eth0", "netns", str(node.pid)]
        subprocess.run([*bridge, *pair], check=True)
        subprocess.run([*bridge, "set", end, "master", "br0", "up"], check=True)
        node.run("ip", "address", "add", f"{self.address(number)}/24", "dev", "eth0")
        node.run("ip", "link", "set", "eth0", "up")
        node.run("ip", "route", "add", "default", "via", self.address(0))
        node.run("mount", "-t", "tmpfs", "tmpfs", SCRATCH)
        self._name(node, own="127.0.1.1")  # as Debian does
        return node

    def cut(self, number: int) -> None:
        """Cut a node off the network; it goes on."""
        self.switch.run("ip", "link", "set", f"v{number}", "down")

    def heal(self, number: int) -> None:
        """Have it back on the network."""
        self.switch.run("ip", "link", "set", f"v{number}", "up")

    def _name(self, machine: Machine, own: str) -> None:
        names = {"ctl": self.address(0)} | {f"n{k}": self.address(k) for k in range(1, self.count + 1)}
        names |= {machine.name: own}
        hosts = self.folder / f"hosts.{machine.name}"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in names.items()))
        machine.run("mount", "--bind", str(hosts), "/etc/hosts")

    def end(self) -> None:
        for machine in (*self.nodes, self.switch):
            machine.end()


@contextmanager
def machines(folder: Path, count: int = 2, root: str | None = None) -> Iterator[Machines]:
    """``count`` machines; skips the test where this machine's user can't make them.

    ``root`` is a folder of unpacked packages, which they see among what is installed.
    """
    if shutil.which("nsenter") is None or subprocess.run([*OWN, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces for machines of their own here (root, unshare and nsenter)")
    found = Machines(folder, count, root)
    try:
        yield found
    finally:
        found.end()
