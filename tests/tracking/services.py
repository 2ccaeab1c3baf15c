"""A laboratory's MLflow, started for a test: PostgreSQL, an S3 of this machine, and a server that wants logins."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.processes import until
from tests.tracking.projects import healthy

NOBODY = 65534  # PostgreSQL refuses to run as root
INI = """
[mlflow]
admin_username = admin
default_permission = READ
database_uri = {database}/logins
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def started(words: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process, which ends with the block, and all that it started."""
    with log.open("ab") as out:
        process = subprocess.Popen(words, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """A cluster of databases, behind a password."""

    programs: Path
    port: int
    password: str

    @property
    def uri(self) -> str:
        return f"postgresql://mlflow:{self.password}@127.0.0.1:{self.port}"

    def run(self, program: str, *words: str) -> str:
        """One of PostgreSQL's own clients."""
        where = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "mlflow", "PGPASSWORD": self.password}
        command = [str(self.programs / program), *words]
        return subprocess.run(command, env=os.environ | where, check=True, capture_output=True, text=True).stdout


@contextmanager
def postgres(log: Path) -> Iterator[Postgres]:
    """PostgreSQL with the databases ``runs`` and ``logins``; skips the test where it is not installed."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL here (Debian's package postgresql)")
    server = Postgres(programs=Path(found[-1]).parent, port=free_port(), password=secrets.token_hex(16))
    unprivileged = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    as_nobody = ["setpriv", *unprivileged] if os.getuid() == 0 else []
    home = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own folders let nobody else in
    try:
        (home / "password").write_text(server.password)
        if as_nobody:
            for path in (home, home / "password"):
                os.chown(path, NOBODY, NOBODY)
        make = ["initdb", f"--pgdata={home}/data", "--username=mlflow", "--auth=scram-sha-256", "--no-sync"]
        make += [f"--pwfile={home}/password", "--encoding=UTF8", "--locale=C"]
        where = f"-p {server.port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off".split()
        make[0] = str(server.programs / make[0])
        subprocess.run([*as_nobody, *make], cwd=home, check=True, stdout=subprocess.DEVNULL)
        command = [*as_nobody, str(server.programs / "postgres"), "-D", f"{home}/data", *where]
        with started(command, os.environ, log):
            ready = [str(server.programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(server.port)]
            until(lambda: subprocess.run(ready).returncode == 0, 30)
            for database in ("runs", "logins"):
                server.run("createdb", database)
            yield server
    finally:
        shutil.rmtree(home, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A bucket of an S3 server, and the environment of a process that may use it."""

    name: str
    endpoint: str
    environment: dict[str, str] = field(default_factory=dict)

    def objects(self) -> dict[str, bytes]:
        import boto3

        names = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
        login = {name: self.environment[variable] for name, variable in names.items()}
        client = boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **login)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
        return {key: client.get_object(Bucket=self.name, Key=key)["Body"].read() for key in keys}


@contextmanager
def bucket(log: Path, name: str) -> Iterator[Bucket]:
    """A new bucket, of a server of its own."""
    import boto3

    port = free_port()
    login = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16)}
    found = Bucket(
        name=name,
        endpoint=f"http://127.0.0.1:{port}",
        environment=login | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"},
    )
    with started([sys.executable, "-m", "moto.server", "--port", str(port)], os.environ, log):
        until(lambda: answers(port), 30)
        given = {"aws_access_key_id": "key", "aws_secret_access_key": login["AWS_SECRET_ACCESS_KEY"]}
        boto3.client("s3", endpoint_url=found.endpoint, region_name="us-east-1", **given).create_bucket(Bucket=name)
        yield found


def answers(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True, kw_only=True)
class Mlflow:
    """A server that wants a login."""

    uri: str
    admin: tuple[str, str]

    def add(self, user: str, password: str) -> None:
        import requests

        asked = {"username": user, "password": password}
        answer = requests.post(f"{self.uri}/api/2.0/mlflow/users/create", json=asked, auth=self.admin, timeout=30)
        assert answer.ok, answer.text


@contextmanager
def mlflow(folder: Path, database: Postgres, artifacts: Bucket) -> Iterator[Mlflow]:
    """``mlflow server`` as docs/clusters.md starts it."""
    port, password = free_port(), secrets.token_hex(16)
    ini = folder / "logins.ini"
    ini.write_text(INI.format(database=database.uri))
    environment = (
        {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        | artifacts.environment
        | {
            "MLFLOW_AUTH_CONFIG_PATH": str(ini),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
            "MLFLOW_BACKEND_STORE_URI": f"{database.uri}/runs",
            "MLFLOW_S3_ENDPOINT_URL": artifacts.endpoint,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
    )
    words = ["server", "--app-name=basic-auth", f"--port={port}", "--workers=1"]
    words.append(f"--artifacts-destination=s3://{artifacts.name}")
    server = Mlflow(uri=f"http://127.0.0.1:{port}", admin=("admin", password))
    log = folder / "mlflow.log"
    with started([sys.executable, "-m", "mlflow", *words], environment, log) as process:
        until(lambda: process.poll() is not None or healthy(server.uri), 120)
        assert process.poll() is None, log.read_text()
        yield server
