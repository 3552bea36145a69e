"""What must hold between the deployment's files: each rule returns its violations as sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from composefile import Variable, interpolate, variables
from dockerfile import Stage

Document = Mapping[str, Any]
DAGSTER = ("migrate", "code", "webserver", "daemon")
WAIT = {True: "service_completed_successfully", False: "service_healthy"}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|CREDENTIAL")
PIN = re.compile(r"\b([A-Za-z][\w.-]*)==([\w.]+)")


def ends_by_itself(service: Document) -> bool:
    """Whether a service is started for one task and not again."""
    return service.get("restart") == "no"


def with_defaults(compose: Document) -> Any:
    """Return the document as compose sees it when only required variables are set."""
    return interpolate(compose, {v.name: "given" for v in variables(compose) if v.is_required})


def env_names(node: Any) -> set[str]:
    """Return every `{env: NAME}` of a Dagster file."""
    if isinstance(node, Mapping):
        if set(node) == {"env"}:
            return {node["env"]}
        return set().union(*(env_names(value) for value in node.values()), set())
    if isinstance(node, list):
        return set().union(*(env_names(value) for value in node), set())
    return set()


def unset_variables(compose: Document, *dagster_files: Document) -> Iterator[str]:
    """Every variable that Dagster's files read is set wherever they are read."""
    wanted = set().union(*(env_names(document) for document in dagster_files))
    for name in DAGSTER:
        given = compose["services"][name].get("environment", {})
        yield from (f"{name}: {missing} is not set" for missing in sorted(wanted - set(given)))


def unexplained_variables(compose: Document, example: str) -> Iterator[str]:
    """Every variable of the compose file is named in .env.example and the other way round."""
    named = set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", example, re.MULTILINE))
    asked = {variable.name for variable in variables(compose)}
    yield from (f".env.example lacks {name}" for name in sorted(asked - named))
    yield from (f"nothing reads {name} of .env.example" for name in sorted(named - asked))
    for name, value in re.findall(r"^#?([A-Z][A-Z0-9_]*)=(.*)$", example, re.MULTILINE):
        if value.strip():
            yield f".env.example gives {name} a value"


def soft_secrets(compose: Document) -> Iterator[str]:
    """Secrets are required, have no default and are nowhere written out."""
    for variable in sorted(variables(compose), key=lambda v: v.name):
        if SECRET.search(variable.name) and not variable.is_required:
            yield f"{variable.name} must be ${{{variable.name}:?message}}"
    for name, service in compose["services"].items():
        for key, value in service.get("environment", {}).items():
            if SECRET.search(key) and not _is_required_reference(value):
                yield f"{name}: {key} is written out"


def _is_required_reference(value: str) -> bool:
    found: set[Variable] = variables(value)
    return value.startswith("${") and len(found) == 1 and found.pop().is_required


def open_ports(compose: Document) -> Iterator[str]:
    """Only 127.0.0.1 of the host is listened on, and only for the webserver."""
    for name, service in with_defaults(compose)["services"].items():
        for port in service.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                yield f"{name}: port {port} is open to other machines"
            if name != "webserver":
                yield f"{name}: port {port} is published"
        if service.get("network_mode") == "host":
            yield f"{name} shares the host's network"


def powers(compose: Document) -> Iterator[str]:
    """Every service runs under a number other than 0, without capabilities or a writable image."""
    for name, service in with_defaults(compose)["services"].items():
        if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", str(service.get("user"))):
            yield f"{name} runs as {service.get('user')}"
        if service.get("read_only") is not True:
            yield f"{name}: its image is writable"
        if service.get("cap_drop") != ["ALL"] or service.get("cap_add"):
            yield f"{name} has capabilities"
        if "no-new-privileges:true" not in service.get("security_opt", []):
            yield f"{name} can gain privileges"
        if service.get("privileged") or "docker.sock" in json.dumps(service.get("volumes", [])):
            yield f"{name} can do what root can"


def unwatched_services(compose: Document) -> Iterator[str]:
    """What runs for ever is health-checked and restarted; who waits for health can get it."""
    services = compose["services"]
    for name, service in services.items():
        if not ends_by_itself(service) and "test" not in service.get("healthcheck", {}):
            yield f"{name} has no health check"
        if not ends_by_itself(service) and service.get("restart") != "unless-stopped":
            yield f"{name} is not restarted"
        for other, how in service.get("depends_on", {}).items():
            if other not in services:
                yield f"{name} waits for {other}, which does not exist"
            elif how["condition"] != WAIT[ends_by_itself(services[other])]:
                yield f"{name} waits for {other} by {how['condition']}"


def option(command: list[str], flag: str) -> str | None:
    """Return the value behind a flag."""
    return command[command.index(flag) + 1] if flag in command else None


def wrong_addresses(compose: Document, workspace: Document) -> Iterator[str]:
    """Clients ask where servers listen: workspace, health checks, published port."""
    services = with_defaults(compose)["services"]
    grpc = workspace["load_from"][0]["grpc_server"]
    command = services["code"]["command"]
    for name in ("webserver", "daemon"):
        environ = services[name]["environment"]
        if environ.get(grpc["host"]["env"]) != "code":
            yield f"{name} looks for the code at {environ.get(grpc['host']['env'])}"
        if environ.get(grpc["port"]["env"]) != option(command, "-p"):
            yield f"{name} asks another port than {option(command, '-p')}"
        if environ["DAGSTER_POSTGRES_HOST"] != "postgres":
            yield f"{name} looks for the database at {environ['DAGSTER_POSTGRES_HOST']}"
    if grpc["location_name"] != option(command, "--location-name"):
        yield f"workspace.yaml calls the location {grpc['location_name']}"
    for name in ("code", "webserver"):
        port = option(services[name]["command"], "-p")
        if not re.search(rf"\b{port}\b", " ".join(services[name]["healthcheck"]["test"])):
            yield f"{name}: the health check asks another port than {port}"
        if option(services[name]["command"], "-h") != "0.0.0.0":
            yield f"{name} listens inside its container only"
    inside = [published.rsplit(":", 1)[1] for published in services["webserver"]["ports"]]
    if inside != [option(services["webserver"]["command"], "-p")]:
        yield f"webserver: published is {inside}"


def wrong_database(compose: Document) -> Iterator[str]:
    """The database that PostgreSQL makes is the one that Dagster asks for."""
    made = compose["services"]["postgres"]["environment"]
    for name in DAGSTER:
        asked = compose["services"][name]["environment"]
        for key in ("USER", "PASSWORD", "DB"):
            if asked[f"DAGSTER_POSTGRES_{key}"] != made[f"POSTGRES_{key}"]:
                yield f"{name}: {key} differs from postgres"


def wrong_images(compose: Document, stages: Mapping[str, Stage]) -> Iterator[str]:
    """Built images name a stage that ends as a user with a number; others name a full tag."""
    for name, service in compose["services"].items():
        target = service.get("build", {}).get("target")
        if "build" not in service:
            if not re.search(r":\d+", service["image"]):
                yield f"{name}: {service['image']} has no version"
        elif target not in stages:
            yield f"{name}: deploy/Dockerfile has no stage {target}"
        elif not re.fullmatch(r"[1-9]\d*:[1-9]\d*", stages[target].last("USER") or ""):
            yield f"{name}: stage {target} ends as user {stages[target].last('USER')}"
    for stage in stages.values():
        if stage.base not in stages and not re.search(r":\d+\.\d+\.\d+-", stage.base):
            yield f"{stage.base} is not one release"


def other_commands(compose: Document, stages: Mapping[str, Stage]) -> Iterator[str]:
    """An image does by default what its service does."""
    for name, target in (("code", "code"), ("webserver", "web"), ("trainer", "trainer")):
        command = json.loads(stages[target].last("CMD") or "[]")
        if command != compose["services"][name]["command"]:
            yield f"{name}: compose and Dockerfile start different things"


def wrong_mounts(compose: Document, stages: Mapping[str, Stage]) -> Iterator[str]:
    """Code and trainer see data and runs below their working directory, and nobody else does."""
    for name, service in compose["services"].items():
        binds = [v for v in service.get("volumes", []) if isinstance(v, Mapping)]
        seen = {v["source"]: v["target"] for v in binds}
        target = service.get("build", {}).get("target", "")
        folder = stages[target].last("WORKDIR") if target in stages else None
        wanted = {f"./{place}": f"{folder}/{place}" for place in ("data", "runs")}
        if seen != (wanted if name in ("code", "trainer") else {}):
            yield f"{name} mounts {seen}"
        if any(v.get("bind", {}).get("create_host_path", True) for v in binds):
            yield f"{name}: a missing folder would be made, by root"
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0] if isinstance(volume, str) else "./"
            if not source.startswith("./") and source not in compose.get("volumes", {}):
                yield f"{name}: volume {source} is not declared"


def missing_sources(stages: Mapping[str, Stage], ignored: str, root: Path) -> Iterator[str]:
    """What the Dockerfile copies exists and is let through by .dockerignore."""
    lines = [line for line in ignored.splitlines() if line and not line.startswith("#")]
    allowed = [line[1:] for line in lines if line.startswith("!")]
    if lines[:1] != ["*"]:
        yield ".dockerignore does not start by leaving everything out"
    sources = {source for stage in stages.values() for source in stage.sources()}
    for source in sorted(sources):
        if not (root / source).exists():
            yield f"COPY {source}: no such file"
        if not any(fnmatch(source, pattern) for pattern in allowed):
            yield f"COPY {source}: .dockerignore leaves it out"
    yield from (f".dockerignore lets in {name}" for name in sorted(set(allowed) - sources))


def other_pins(text: str, constraints: str) -> Iterator[str]:
    """A version named in the deployment is the one in constraints.txt."""
    pinned = {name.lower(): version for name, version in PIN.findall(constraints)}
    for name, version in PIN.findall(text):
        if pinned.get(name.lower()) != version:
            yield f"{name}=={version}, but constraints.txt has {pinned.get(name.lower())}"


def registries(text: str) -> Iterator[str]:
    """Where packages come from is the user's business."""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for host in re.findall(r"https?://([\w.-]+)", code):
        if host != "127.0.0.1":
            yield f"names the host {host}"
    yield from re.findall(r"--(?:extra-)?index-url|--trusted-host|--find-links", code)
