"""docker-compose.yml and the Dockerfile name only what exists: commands, options, variables, secrets and paths."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import redis
import yaml
from tornado.options import options as flower_options

from workers import settings
from workers.services import binaries
from workers.services.ports import choose_port

TREE = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((TREE / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"] == "headrace")
SECRETS = "/run/secrets/"
# What valkey-cli does with commands on its standard input; the wheel has the server only.
VALKEY_CLI = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    connection.sendall(sys.stdin.read().encode() + b"QUIT\\n")
    while piece := connection.recv(4096):
        print(piece.decode(), end="")
"""


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions with their continued lines joined."""
    text = (TREE / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def commands() -> Iterator[tuple[str, list[str]]]:
    """(where, argv) of every `headrace` and `celery` command line in both files."""
    for name, service in SERVICES.items():
        for where, argv in (("command", service.get("command", [])), ("healthcheck", healthcheck(name)[1:])):
            if argv[:1] in (["headrace"], ["celery"]):
                yield f"{name}.{where}", argv
    for word, rest in dockerfile():
        if word in ("CMD", "ENTRYPOINT"):
            yield f"Dockerfile.{word}", json.loads(rest)


def healthcheck(service: str) -> list[str]:
    return list(SERVICES[service].get("healthcheck", {}).get("test", ["NONE"]))


def shell_text(text: str, folder: Path) -> str:
    """What the shell in the container is given, with the paths of a scratch folder."""
    return text.replace("$$", "$").replace(SECRETS, f"{folder}/").replace("--dir /data", f"--dir {folder}")


def parse(group: click.Command, argv: list[str], obj: object = None) -> click.Context:
    """Parse as the command would, without running it; raises UsageError for what it does not know."""
    command, name, rest = group, argv[0], [word for word in argv[1:] if word != "--help"]
    context: click.Context | None = None
    while isinstance(command, click.Group) and rest:
        context = command.make_context(name, rest, parent=context, obj=obj)
        found, below, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert below is not None
        command, name = below, str(found)
    asked_for_help = "--help" in argv
    return command.make_context(name, rest, parent=context, obj=obj, resilient_parsing=asked_for_help)


@pytest.mark.parametrize(("where", "argv"), [pytest.param(*one, id=one[0]) for one in commands()])
def test_every_command_exists_and_takes_its_options(
    where: str, argv: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each `headrace` or `celery` command line is one that this version understands."""
    monkeypatch.setenv("HEADRACE_DATA_DIR", str(tmp_path))
    if argv[0] == "headrace":
        from producers.cli import cli

        assert parse(cli, argv).command.name, where
        return
    from celery.bin.base import CLIContext
    from celery.bin.celery import celery

    from workers.app import app

    context = parse(celery, argv, CLIContext(app=app, no_color=True, workdir=None, quiet=True))
    if context.command.name == "flower":
        words = [word.lstrip("-").split("=")[0].replace("-", "_") for word in context.params["tornado_argv"]]
        assert [word for word in words if word not in flower_options] == []


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The settings load from each container's variables alone, and the mounted passwords reach both URLs."""
    for variable in [variable for variable in os.environ if variable.startswith("HEADRACE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    for secret in COMPOSE["secrets"]:
        (tmp_path / secret).write_text(f"the {secret}\n")
    image = [line for word, line in dockerfile() if word == "ENV"]
    for variable, value in [word.split("=", 1) for line in image for word in shlex.split(line)]:
        monkeypatch.setenv(variable, value)
    for variable, value in SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, str(value).replace(SECRETS, f"{tmp_path}/"))
    conf = settings.load()
    assert "the%20postgres_password@postgres:5432" in conf.target().dsn
    assert conf.broker_url() == "redis://:the%20valkey_password@valkey:6379/0"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_secrets_are_files_that_are_mounted(name: str) -> None:
    """A service reads exactly the secrets that it is given, each is declared, and none is written in the file."""
    service = SERVICES[name]
    used = set(re.findall(rf"{SECRETS}(\w+)", json.dumps(service)))
    assert used == set(service.get("secrets", []))
    assert used <= {key for key, value in COMPOSE["secrets"].items() if value == {"file": f"./secrets/{key}"}}
    words = {key: value for key, value in service.get("environment", {}).items() if "PASSWORD" in key or "TOKEN" in key}
    assert [key for key, value in words.items() if not key.endswith("_FILE") or not value.startswith(SECRETS)] == []


def test_every_service_is_looked_after() -> None:
    """Each service has an init process, a restart policy and, unless it ends by itself, a sign of health."""
    assert {name for name, service in SERVICES.items() if service.get("init") is not True} == set()
    policies = {name: service["restart"] for name, service in SERVICES.items()}
    assert policies == {**dict.fromkeys(SERVICES, "unless-stopped"), "migrate": "no"}
    assert {name for name in SERVICES if healthcheck(name) == ["NONE"]} == {"migrate", "watcher", "incoming"}
    mounted = {volume.split(":")[0] for name in ("postgres", "valkey") for volume in SERVICES[name]["volumes"]}
    assert mounted == set(COMPOSE["volumes"])


def test_only_flower_is_published_and_on_loopback() -> None:
    """The machine offers Flower on 127.0.0.1, where it listens inside, and nothing else."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    port = SERVICES["flower"]["environment"]["HEADRACE_FLOWER__PORT"]
    assert published == {"flower": [f"127.0.0.1:{port}:{port}"]}
    assert f"http://127.0.0.1:{port}/healthcheck" in healthcheck("flower")[-1]


def test_worker_and_watcher_see_the_same_files() -> None:
    """Worker and watcher have one host name, the same mounts, and look into the folder that is mounted."""
    worker, watcher = SERVICES["worker"], SERVICES["watcher"]
    assert (worker["environment"], worker["volumes"]) == (watcher["environment"], watcher["volumes"])
    mounts = [mount.rsplit(":", 2)[1] for mount in worker["volumes"]]
    assert json.loads(worker["environment"]["HEADRACE_TELEMETRY__DATA_DIRS"]) == mounts[:1]


def test_the_two_workers_share_the_rooms_and_one_takes_ticks() -> None:
    """Every room has one worker, one of the two takes ticks, and both see hdbpp's file where the image looks for it."""
    shares = {name: SERVICES[name]["environment"] for name in ("worker", "jobs")}
    rooms = [room for share in shares.values() for room in json.loads(share["HEADRACE_WORKER__ROOMS"])]
    assert sorted(rooms) == sorted(settings.ROOMS)
    assert [share.get("HEADRACE_WORKER__TICKS", "true") for share in shares.values()] == ["true", "false"]
    words = " ".join(rest for word, rest in dockerfile() if word == "ENV")
    folder = re.search(r"HEADRACE_POSTPROCESSING__LEGACY_CONFIG=(\S+)/hdbpp_postprocessing.conf", words)
    assert folder is not None
    for name in shares:
        assert folder.group(1) in [mount.rsplit(":", 2)[1] for mount in SERVICES[name]["volumes"]]


@pytest.mark.parametrize("name", ["worker", "jobs", "beat"])
def test_the_health_check_asks_the_process_by_its_name(name: str) -> None:
    """`inspect ping` goes to the node name that the command gives itself."""
    command, check = SERVICES[name]["command"], healthcheck(name)
    assert command[command.index("-n") + 1] == check[check.index("-d") + 1]


def test_the_image_copies_what_exists_and_is_not_root() -> None:
    """Every COPY source is in the tree, all that the wheel needs is copied, and the last user is not root."""
    copies = [rest.split()[:-1] for word, rest in dockerfile() if word == "COPY" and "--from" not in rest]
    sources = {source for words in copies for source in words}
    assert {source for source in sources if not (TREE / source).exists()} == set()
    assert {"workers", "producers", "sql", "beat_schedule.py", "pyproject.toml", "README.md", "LICENSE"} <= sources
    assert [rest for word, rest in dockerfile() if word == "USER"][-1] == "headrace"


def test_valkeys_command_asks_for_the_password(tmp_path: Path) -> None:
    """Valkey as the compose file starts it keeps strangers out, is healthy by the check, and hides its password."""
    port = choose_port(None)
    secret = tmp_path / "valkey_password"
    secret.write_text("from-a-file\n")
    script(tmp_path / "docker-entrypoint.sh", 'exec "$@"')
    script(tmp_path / "valkey-server", f'exec {binaries.valkey_binary()} --port {port} --bind 127.0.0.1 "$@"')
    script(tmp_path / "valkey-cli", f'exec {sys.executable} -c "$CLIENT" {port}')
    shell, flag, text = SERVICES["valkey"]["command"]
    kind, check = healthcheck("valkey")
    assert kind == "CMD-SHELL"
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CLIENT": VALKEY_CLI}

    def is_healthy() -> bool:
        argv = ["sh", "-c", shell_text(check, tmp_path)]
        return subprocess.run(argv, env=env, stderr=subprocess.DEVNULL, check=False).returncode == 0

    argv = [shell, flag, shell_text(text, tmp_path)]
    process = subprocess.Popen(argv, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not is_healthy():
            assert time.monotonic() < deadline and process.poll() is None
        wanted = {"appendonly": "yes", "save": "", "maxmemory-policy": "noeviction", "dir": str(tmp_path)}
        with redis.Redis(port=port, password="from-a-file") as client:
            assert client.config_get(*wanted) == wanted
        secret.write_text("wrong\n")
        assert not is_healthy()
        assert b"from-a-file" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    finally:
        process.terminate()
        assert process.wait(10) == 0


def script(path: Path, text: str) -> None:
    """An executable that stands in for one of the image's."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_postgresqls_health_check_is_understood() -> None:
    """The real pg_isready takes the compose file's words and finds nobody (2), instead of refusing them (3)."""
    program, *words = healthcheck("postgres")[1:]
    assert program == "pg_isready"
    tool = binaries.postgres_bin() / program
    if not tool.exists():
        pytest.skip("these PostgreSQL binaries come without pg_isready")
    assert subprocess.run([str(tool), *words, "-p", str(choose_port(None))], check=False).returncode == 2


def test_flowers_health_check_is_valid_python() -> None:
    """The one-liner compiles, and says no when nothing listens."""
    program, flag, code = healthcheck("flower")[1:]
    assert (program, flag) == ("python", "-c")
    code = code.replace(":5555/", f":{choose_port(None)}/")
    assert subprocess.run([sys.executable, flag, code], stderr=subprocess.DEVNULL, check=False).returncode == 1
