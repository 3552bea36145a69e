"""The system without containers: PostgreSQL and the services of docker-compose.yml as processes.

`compose_stack(project_root)` starts everything with the compose file's own commands, environment
and health checks; `dev_server(project_root, dagster_home)` is the small one, `dg dev` on SQLite.
Both stop what they started and wait for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from composefile import COMPOSE, ROOT, interpolate, load
from database import find_postgres, postgres_server
from processes import Environ, free_port, start, stop, wait_until
from webclient import wait_for_locations

BIN = Path(sys.executable).parent
CONTAINER_HOME = "/opt/dagster"


def plain_environ(project_root: Path, home: Path) -> Environ:
    """Return an environment in which `project_root` is the project, as in the images."""
    postgres = find_postgres()
    folders = [str(BIN), *([str(postgres)] if postgres else []), os.environ["PATH"]]
    return {
        "PATH": os.pathsep.join(folders),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(project_root),
        "DAGSTER_HOME": str(home),
    }


@dataclass
class Stack:
    """The services of a compose file as processes, each by its own command and health check.

    Args:
        services: The compose file's, with variables replaced.
        project_root: Stands for the image's working directory.
        home: Stands for the image's `/opt/dagster`; logs of the servers go there, too.
        ports: Port inside a container -> port on this machine.
    """

    services: Mapping[str, Any]
    project_root: Path
    home: Path
    ports: Mapping[int, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Address of the webserver."""
        return f"http://127.0.0.1:{self.ports[3000]}"

    def translate(self, text: str) -> str:
        """Replace addresses inside containers by those on this machine."""
        text = text.replace("0.0.0.0", "127.0.0.1").replace(CONTAINER_HOME, str(self.home))
        ports = "|".join(str(port) for port in self.ports)
        return re.sub(rf"\b({ports})\b", lambda match: str(self.ports[int(match[0])]), text)

    def environ(self, name: str) -> Environ:
        """Return the environment of a service; other services are on this machine, too."""
        given = self.services[name].get("environment", {})
        environ = plain_environ(self.project_root, self.home)
        for key, value in given.items():
            is_host = key.endswith("_HOST") and value in self.services
            environ[key] = "127.0.0.1" if is_host else self.translate(value)
        return environ

    def command(self, name: str) -> list[str]:
        return [self.translate(word) for word in self.services[name]["command"]]

    def run_once(self, name: str) -> str:
        """Run a service that ends, such as the migration, and return what it said."""
        done = subprocess.run(
            self.command(name),
            cwd=self.project_root,
            env=self.environ(name),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, *names: str) -> None:
        """Start services and wait until their own health checks pass."""
        for name in names:
            self.processes[name] = start(
                self.command(name),
                cwd=self.project_root,
                environ=self.environ(name),
                log=self.home / f"{name}.log",
            )
        for name in names:
            wait_until(partial(self.is_healthy, name), f"{name} healthy")

    def is_healthy(self, name: str) -> bool:
        """Run a service's health check; a process that ended is an error, with its log."""
        process = self.processes.get(name)
        if process is not None and process.poll() is not None:
            log = (self.home / f"{name}.log").read_text()
            raise ChildProcessError(f"{name} ended with {process.returncode}:\n{log[-4000:]}")
        kind, *check = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD", f"{name}: wanted a health check of kind CMD, got {kind}"
        words = [self.translate(word) for word in check]
        environ = self.environ(name)
        done = subprocess.run(words, env=environ, capture_output=True, check=False)
        return done.returncode == 0

    def stop(self, *names: str) -> bool:
        """Stop services as the engine does; return whether all ended within their time."""
        obeyed = [self._stop_one(name) for name in names]
        return all(obeyed)

    def _stop_one(self, name: str) -> bool:
        grace = self.services[name].get("stop_grace_period", "10s")
        seconds = int(grace[:-1]) * {"s": 1, "m": 60}[grace[-1]]
        return stop(self.processes.pop(name), seconds)

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text()


@contextlib.contextmanager
def compose_stack(project_root: Path, home: Path) -> Iterator[Stack]:
    """Start all of docker-compose.yml but the trainer, in its order; stop everything at the end."""
    secret = {"DAGSTER_POSTGRES_PASSWORD": secrets.token_urlsafe(24)}
    services = interpolate(load(COMPOSE), secret)["services"]
    home.mkdir(parents=True)
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / "deploy" / name, home)
    with postgres_server(services["postgres"]) as database:
        ports = {5432: database.port, 4000: free_port(), 3000: free_port()}
        stack = Stack(services, project_root, home, ports)
        assert stack.is_healthy("postgres")
        stack.run_once("migrate")
        try:
            stack.start("code")
            stack.start("webserver", "daemon")
            wait_for_locations(stack.url)
            yield stack
        finally:
            stack.stop(*reversed(stack.processes))


@contextlib.contextmanager
def dev_server(project_root: Path, dagster_home: Path) -> Iterator[str]:
    """Start webserver, daemon and code server by `dg dev` with SQLite; yield the address."""
    dagster_home.mkdir(parents=True, exist_ok=True)
    if not (dagster_home / "dagster.yaml").exists():
        shutil.copy(ROOT / "deploy" / "local" / "dagster.yaml", dagster_home)
    port = free_port()
    command = ["dg", "dev", "--host", "127.0.0.1", "--port", str(port)]
    environ = plain_environ(project_root, dagster_home)
    log = dagster_home / "dev.log"
    process = start(command, cwd=project_root, environ=environ, log=log)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        if process.poll() is not None:
            raise ChildProcessError(f"dg dev ended with {process.returncode}:\n{log.read_text()}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/server_info", timeout=5).close()
            return True
        return False

    try:
        wait_until(answers, "dg dev answers")
        wait_for_locations(url)
        yield url
    finally:
        stop(process)
