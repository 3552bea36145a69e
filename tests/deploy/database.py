"""A PostgreSQL server of our own, made for one test and gone after it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import free_port


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs, the newest one, or None."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(installed, key=lambda folder: -float(folder.parent.name))
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@dataclass(frozen=True)
class Postgres:
    """A running PostgreSQL server, reached by TCP with a password."""

    port: int
    user: str
    password: str
    database: str

    @property
    def url(self) -> str:
        return f"postgresql://{self.user}:{self.password}@127.0.0.1:{self.port}/{self.database}"


@contextlib.contextmanager
def postgres_server(service: Mapping[str, Any]) -> Iterator[Postgres]:
    """Start PostgreSQL with user, password, database and options of a compose service.

    PostgreSQL refuses to run as root: then it runs as the system's user `postgres`.
    """
    programs = find_postgres()
    assert programs is not None, "no PostgreSQL: apt-get install postgresql, or put it in PATH"
    account = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        as_user = {"user": account, "group": pwd.getpwnam(account).pw_gid, "extra_groups": []}
    settings, port = service["environment"], free_port()
    server = Postgres(
        port, settings["POSTGRES_USER"], settings["POSTGRES_PASSWORD"], settings["POSTGRES_DB"]
    )
    # Not pytest's tmp_path, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="trialshards-postgres-"))

    def call(*command: str) -> None:
        subprocess.run(
            [str(programs / command[0]), *command[1:]],
            cwd=folder,
            check=True,
            capture_output=True,
            env={"PGPASSWORD": server.password, "LANG": "C.UTF-8"},
            **as_user,
        )

    try:
        (folder / "password").write_text(server.password)
        shutil.chown(folder, account)
        shutil.chown(folder / "password", account)
        data, options = folder / "data", settings["POSTGRES_INITDB_ARGS"].split()
        who = ("--username", server.user, "--pwfile", str(folder / "password"))
        call("initdb", "-D", str(data), "--encoding=UTF8", "--no-sync", *who, *options)
        flags = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        log = ("-l", str(folder / "log"))
        call("pg_ctl", "-D", str(data), "-o", flags, *log, "-w", "start")
        try:
            address = ("-h", "127.0.0.1", "-p", str(port), "-U", server.user)
            call("createdb", *address, server.database)
            yield server
        finally:
            call("pg_ctl", "-D", str(data), "-m", "fast", "-w", "stop")
    finally:
        shutil.rmtree(folder)
