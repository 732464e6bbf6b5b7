"""Files of scripts/deploy, as far as they can be tried without Docker, Kubernetes and a service
manager.
"""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from m3 import config
from m3.serving import command
from m3.serving.cluster.config import Fleet
from m3.serving.cluster.ray_app import Arguments, app
from m3.serving.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "scripts/deploy"
UNIT = DEPLOY / "systemd/m3.service"
FILES = {
    "docker/Dockerfile",
    "docker/Dockerfile.dockerignore",
    "docker/compose.yaml",
    "kubernetes/m3.yaml",
    "systemd/m3.service",
}


def test_every_file_is_tested_here() -> None:
    assert {str(file.relative_to(DEPLOY)) for file in DEPLOY.rglob("*") if file.is_file()} == FILES


# ---------------------------------------------------------------------- Docker
def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "docker/Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def last(word: str) -> str:
    return next(rest for name, rest in reversed(instructions()) if name == word)


def test_the_image_is_installed_by_the_script_that_installs_everywhere() -> None:
    (install,) = [rest for word, rest in instructions() if word == "RUN" and "install.sh" in rest]
    assert install == "M3_DEVICE=$DEVICE M3_WITH=serve bash scripts/install.sh"
    known = "FROM RUN ARG ENV WORKDIR COPY USER EXPOSE HEALTHCHECK ENTRYPOINT CMD"
    assert {word for word, _ in instructions()} == set(known.split(" "))
    copied = [name for word, rest in instructions() if word == "COPY" for name in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    let_in = {
        line[1:]
        for line in (DEPLOY / "docker/Dockerfile.dockerignore").read_text().splitlines()
        if line[0] == "!"
    }
    assert let_in == set(copied)


@pytest.mark.parametrize(("device", "status"), [("cuda", 0), ("cpu", 1)])
def test_the_script_can_be_told_the_device(device: str, status: int) -> None:
    script = (ROOT / "scripts/install.sh").read_text()
    function = re.search(r"^has_nvidia_gpu\(\) \{.*?^\}", script, re.M | re.S)
    assert function is not None
    ended = subprocess.run(
        ["bash", "-c", f"{function[0]}\nhas_nvidia_gpu"],
        env={"M3_DEVICE": device, "PATH": "/usr/bin:/bin"},
    )
    assert ended.returncode == status


def test_the_image_s_command_is_one_that_m3_takes() -> None:
    program, verb, *arguments = [*json.loads(last("ENTRYPOINT")), *json.loads(last("CMD"))]
    assert (program, verb) == ("m3", "serve")
    assert command.read_settings(command.parse_options(arguments)) == Settings(
        host="0.0.0.0", port=8000, name="m3"
    )


# what https://github.com/compose-spec/compose-spec/blob/main/spec.md allows, of what is used
COMPOSE = {
    "service": {
        "command", "ports", "volumes", "secrets", "shm_size", "read_only", "tmpfs", "cap_drop", "security_opt",
        "stop_grace_period", "restart", "profiles", "image", "build", "deploy",
    },
    "build": {"context", "dockerfile", "args"},
}  # fmt: skip


def test_compose() -> None:
    compose = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())
    assert set(compose) == {"name", "x-server", "services", "secrets"}
    assert set(compose["services"]) == {"cpu", "cuda"}
    for name, service in compose["services"].items():
        assert set(service) <= COMPOSE["service"]
        assert set(service["build"]) <= COMPOSE["build"]
        assert (service["build"]["args"]["DEVICE"], service["profiles"]) == (name, [name])
        context = (DEPLOY / "docker" / service["build"]["context"]).resolve()
        assert (context / service["build"]["dockerfile"]).is_file()
        assert service["ports"] == ["127.0.0.1:8000:8000"]
        assert set(service["secrets"]) <= set(compose["secrets"])
        parsed = command.parse_options([*json.loads(last("ENTRYPOINT"))[2:], *service["command"]])
        assert str(parsed.api_key_file) == f"/run/secrets/{service['secrets'][0]}"
        assert float(service["stop_grace_period"].rstrip("s")) > Settings().shutdown_seconds
    devices = compose["services"]["cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]


# ---------------------------------------------------------------------- Kubernetes
# fields of ray-operator/apis/ray/v1/{rayservice,raycluster}_types.go, of what is used
KUBERAY = {
    "cluster": {
        "rayVersion",
        "enableInTreeAutoscaling",
        "authOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    },
    "head": {"rayStartParams", "template"},
    "worker": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    with (DEPLOY / "kubernetes/m3.yaml").open() as file:
        return {one["kind"]: one for one in yaml.safe_load_all(file)}


def test_the_serve_config_is_one_that_ray_and_m3_take(
    manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(command.KEY_VARIABLE, raising=False)
    text = yaml.safe_load(manifest["RayService"]["spec"]["serveConfigV2"])
    assert set(text) <= set(ServeDeploySchema.model_fields)  # it takes unknown keys in silence
    (application,) = ServeDeploySchema.model_validate(text).applications
    assert application.import_path == f"{app.__module__}:{app.__name__}"
    assert isinstance(app(application.args), serve.Application)
    fleet = config.decode(application.args, Arguments).fleet
    assert isinstance(fleet, Fleet)
    (workers,) = manifest["RayService"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    gpus = int(
        workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    )
    assert (
        sum(model.replicas * (model.gpus or 0) for model in fleet.models)
        <= gpus * workers["minReplicas"]
    )
    assert (
        sum((model.max_replicas or 1) * (model.gpus or 0) for model in fleet.models)
        <= gpus * workers["maxReplicas"]
    )


def test_the_cluster(manifest: dict[str, Any]) -> None:
    assert set(manifest) == {"RayService", "NetworkPolicy"}
    spec = manifest["RayService"]["spec"]
    cluster = spec["rayClusterConfig"]
    assert set(spec) == {"serveConfigV2", "rayClusterConfig"}
    assert set(cluster) == KUBERAY["cluster"]
    assert set(cluster["headGroupSpec"]) == KUBERAY["head"]
    pins = (ROOT / "scripts/constraints-serve.txt").read_text().split()
    assert f"ray=={cluster['rayVersion']}" in pins
    pods = [
        cluster["headGroupSpec"]["template"],
        *(group["template"] for group in cluster["workerGroupSpecs"]),
    ]
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == KUBERAY["worker"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    selector = manifest["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    for pod in pods:
        assert pod["metadata"]["labels"] == selector
        (container,) = pod["spec"]["containers"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        assert command.KEY_VARIABLE in [one["name"] for one in container["env"]]
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


# ---------------------------------------------------------------------- systemd
def test_the_unit_s_command_is_one_that_m3_takes() -> None:
    (line,) = re.findall(r"^ExecStart=(.*)$", UNIT.read_text(), re.M)
    program, verb, *arguments = shlex.split(line)
    assert (Path(program).name, verb) == ("m3", "serve")
    parsed = command.parse_options(arguments)
    assert (str(parsed.config), str(parsed.api_key_file)) == ("/etc/m3/server.yaml", "%d/api_key")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """But for the program, which is not installed there."""
    unit = tmp_path / "m3.service"
    unit.write_text(UNIT.read_text().replace("/opt/m3/.venv/bin/m3", "/bin/true"))
    ended = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")
