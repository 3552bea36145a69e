"""The deployment's files fit each other, and each rule notices when they do not."""

import subprocess
from pathlib import Path

import pytest
import rules
import yaml
from composefile import COMPOSE, ROOT, changed, interpolate, load, variables
from dockerfile import parse_dockerfile
from servers import BIN

DEPLOY = ROOT / "deploy"
COMPOSE_FILES = sorted(ROOT.glob("docker-compose*.yml"))
EXAMPLE = (DEPLOY / ".env.example").read_text()
WORKSPACE = load(DEPLOY / "workspace.yaml")
INSTANCE = load(DEPLOY / "dagster.yaml")
STAGES = parse_dockerfile((DEPLOY / "Dockerfile").read_text())
# Every rule that a compose file can break: how to ask it, and changes that it must notice. A change
# is a path into the document and a new value; None removes.
COMPOSE_RULES = {
    "unset_variables": (
        lambda doc: rules.unset_variables(doc, INSTANCE, WORKSPACE),
        [
            ("services.daemon.environment.DAGSTER_POSTGRES_PASSWORD", None),
            ("services.migrate.environment.TRIALSHARDS_CODE_HOST", None),
            ("services.code.environment", {}),
        ],
    ),
    "unexplained_variables": (
        lambda doc: rules.unexplained_variables(doc, EXAMPLE),
        [("services.webserver.image", "${NEW}"), ("secrets.pip_conf.file", "x")],
    ),
    "soft_secrets": (
        rules.soft_secrets,
        [
            ("services.code.environment.DAGSTER_POSTGRES_PASSWORD", "dagster"),
            ("services.postgres.environment.POSTGRES_PASSWORD", "${DAGSTER_POSTGRES_PASSWORD}"),
            ("services.postgres.environment.POSTGRES_PASSWORD", "${PASSWORD:-dagster}"),
            ("services.code.labels", ["${API_TOKEN}"]),
        ],
    ),
    "open_ports": (
        rules.open_ports,
        [
            ("services.webserver.ports", ["3000:3000"]),
            ("services.webserver.ports", ["0.0.0.0:3000:3000"]),
            ("services.postgres.ports", ["127.0.0.1:5432:5432"]),
            ("services.daemon.network_mode", "host"),
        ],
    ),
    "powers": (
        rules.powers,
        [
            ("services.postgres.user", None),
            ("services.webserver.user", "root"),
            ("services.code.user", "${TRIALSHARDS_UID:-0}:0"),
            ("services.daemon.read_only", None),
            ("services.trainer.cap_drop", []),
            ("services.code.cap_add", ["SYS_ADMIN"]),
            ("services.code.security_opt", []),
            ("services.code.privileged", True),
            ("services.daemon.volumes", ["/var/run/docker.sock:/var/run/docker.sock"]),
        ],
    ),
    "unwatched_services": (
        rules.unwatched_services,
        [
            ("services.daemon.healthcheck", None),
            ("services.code.restart", "always"),
            ("services.migrate.restart", "unless-stopped"),
            ("services.code.depends_on.migrate.condition", "service_started"),
            ("services.webserver.depends_on.code.condition", "service_started"),
            ("services.daemon.depends_on.queue", {"condition": "service_healthy"}),
        ],
    ),
    "wrong_addresses": (
        lambda doc: rules.wrong_addresses(doc, WORKSPACE),
        [
            ("services.daemon.environment.TRIALSHARDS_CODE_HOST", "localhost"),
            ("services.webserver.environment.TRIALSHARDS_CODE_PORT", "4266"),
            ("services.webserver.environment.DAGSTER_POSTGRES_HOST", "db"),
            ("services.code.command.6", "4266"),
            ("services.code.command.4", "127.0.0.1"),
            ("services.code.command.10", "robots"),
            ("services.code.healthcheck.test.5", "4266"),
            ("services.webserver.ports", ["127.0.0.1:3000:8080"]),
        ],
    ),
    "wrong_database": (
        rules.wrong_database,
        [
            ("services.postgres.environment.POSTGRES_DB", "postgres"),
            ("services.migrate.environment.DAGSTER_POSTGRES_USER", "me"),
        ],
    ),
    "wrong_images": (
        lambda doc: rules.wrong_images(doc, STAGES),
        [
            ("services.postgres.image", "postgres"),
            ("services.postgres.image", "postgres:latest"),
            ("services.daemon.build.target", "worker"),
            ("services.daemon.build.target", "builder"),
        ],
    ),
    "other_commands": (
        lambda doc: rules.other_commands(doc, STAGES),
        [("services.code.command.8", "pipeline.other"), ("services.webserver.command", ["true"])],
    ),
    "wrong_mounts": (
        lambda doc: rules.wrong_mounts(doc, STAGES),
        [
            ("services.trainer.volumes.0.target", "/data"),
            ("services.code.volumes.1", "dagster_storage:/app/runs"),
            ("services.code.volumes.0.bind", None),
            ("services.webserver.volumes.0", "logs:/opt/dagster/storage"),
        ],
    ),
}
CHANGES = [
    pytest.param(rule, path, value, id=f"{rule}-{path}")
    for rule, (_, changes) in COMPOSE_RULES.items()
    for path, value in changes
]


@pytest.mark.parametrize("rule", COMPOSE_RULES)
def test_the_compose_file_keeps_the_rule(rule):
    ask, _ = COMPOSE_RULES[rule]
    assert list(ask(load())) == []


@pytest.mark.parametrize(("rule", "path", "value"), CHANGES)
def test_the_rule_notices(rule, path, value):
    ask, _ = COMPOSE_RULES[rule]
    assert list(ask(changed(load(), path, value)))


def check_schema(path: Path) -> subprocess.CompletedProcess:
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: path.name)
def test_compose_files_follow_the_specification(path):
    assert check_schema(path).returncode == 0, check_schema(path).stdout
    assert "version" not in load(path)


def test_the_specification_notices(tmp_path):
    (tmp_path / "compose.yml").write_text(
        yaml.safe_dump(changed(load(), "services.code.comand", ["x"]))
    )
    assert check_schema(tmp_path / "compose.yml").returncode == 1


def test_overrides_change_services_that_exist():
    overrides = [path for path in COMPOSE_FILES if path != COMPOSE]
    assert overrides
    for path in overrides:
        assert set(load(path)) <= {"services"}
        assert set(load(path)["services"]) <= set(load()["services"])


def test_no_file_names_a_package_registry():
    paths = [*COMPOSE_FILES, DEPLOY / "Dockerfile", DEPLOY / "pip.conf", DEPLOY / ".env.example"]
    assert [list(rules.registries(path.read_text())) for path in paths] == [[]] * len(paths)
    assert list(rules.registries("RUN pip install --index-url https://a.example/simple x"))


def test_the_example_names_everything_and_gives_nothing_away():
    assert list(rules.unexplained_variables(load(), EXAMPLE)) == []
    assert list(rules.unexplained_variables(load(), EXAMPLE + "DAGSTER_POSTGRES_PASSWORD=x\n"))
    assert list(rules.unexplained_variables(load(), EXAMPLE + "UNUSED=\n"))
    secrets = {v.name for v in variables(load()) if v.is_required}
    assert secrets == {"DAGSTER_POSTGRES_PASSWORD"}
    with pytest.raises(ValueError, match="DAGSTER_POSTGRES_PASSWORD is missing"):
        interpolate(load(), {"DAGSTER_POSTGRES_PASSWORD": ""})


def test_default_files_of_the_compose_file_exist():
    secrets = rules.with_defaults(load())["secrets"]
    assert [name for name, how in secrets.items() if not (ROOT / how["file"]).is_file()] == []


def test_the_readme_starts_the_same_servers():
    """The native start is what compose does, with addresses of this machine."""
    said = " ".join((DEPLOY / "README.md").read_text().split())
    for name in rules.DAGSTER:
        words = " ".join(load()["services"][name]["command"])
        words = words.replace("0.0.0.0", "127.0.0.1").replace("/opt/dagster", "$DAGSTER_HOME")
        assert words in said
    for wanted in rules.env_names([INSTANCE, WORKSPACE]):
        assert f"{wanted}=" in said or f"read -rs {wanted}" in said
    for service in ("code", "daemon"):
        assert " ".join(load()["services"][service]["healthcheck"]["test"][1:]) in said
