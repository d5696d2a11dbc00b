"""cluster.yaml and its on-prem variant: what Ray, EC2 and a shell make of every line of them, offline."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from launches import launched
from samples import embed_spec

from jobs.spec import EmbedSpec, load

ROOT = Path(__file__).parent.parent
AWS, ONPREM = ROOT / "cluster.yaml", ROOT / "jobs" / "cluster_onprem.yaml"
FILES = pytest.mark.parametrize("file", [AWS, ONPREM], ids=lambda file: file.stem)

# Of `ray start` and what installs it: each notes how it was called, in a file.
NOTING = '#!/bin/bash\nprintf "%s\\n" "RAY_AUTH_MODE=$RAY_AUTH_MODE" "$@" > "$HOME/called-{name}"\n'
UV = """#!/bin/bash
case $1 in
    venv)
        mkdir -p "${@: -1}/bin"
        touch "${@: -1}/bin/python"
        chmod +x "${@: -1}/bin/python"
        echo made >> "$HOME/venvs"
        ;;
    pip) printf "%s\\n" "$@" > "$HOME/called-uv" ;;
esac
"""


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text())
    return found


@FILES
def test_ray_takes_it(file: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read(file)
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    validate_config(prepare_config(config))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**config, "hed_node_type": "head"}))


def test_nodes_are_of_the_kinds_that_jobs_ask_for() -> None:
    config = read(AWS)
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert all(0 == kind["min_workers"] < kind["max_workers"] for kind in types.values())
    assert sum(kind["max_workers"] for kind in types.values()) == config["max_workers"]
    spot = {name for name, kind in types.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"decode"}
    same = ("labels", "resources")
    assert [types["decode"][key] for key in same] == [types["decode_on_demand"][key] for key in same]
    sizes = {kind["node_config"]["InstanceType"] for name, kind in types.items() if name != "embed"}
    assert len(sizes) == 1
    assert {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in types.values()} == {
        "tubelet-worker"
    }


def told(file: Path) -> EmbedSpec:
    """The job whose resources a text tells of."""
    lines = [line.removeprefix("#   ") for line in file.read_text().splitlines()]
    first = lines.index("resources:")
    resources = yaml.safe_load("\n".join(lines[first : first + 3]))["resources"]
    spec = load(embed_spec(Path("/videos"), Path("/x"), resources=resources))
    assert isinstance(spec, EmbedSpec)
    return spec


@pytest.mark.parametrize("file", [AWS, ROOT / "README.md"], ids=lambda file: file.name)
def test_the_autoscaler_starts_what_is_told_of_it(file: Path) -> None:
    config, resources = read(AWS), told(file).resources
    decode, embed = resources.decode, resources.embed
    assert decode.most is not None
    assert embed.most is not None
    decoders = (decode.most, {"CPU": decode.cpus or 1.0}, decode.labels)
    models = (embed.most, {"GPU": embed.gpus or 0.0}, embed.labels)
    assert launched(config, decoders, models) == {"decode_on_demand": 2, "decode": 2, "embed": 8}
    types = config["available_node_types"]
    for order in (types, dict(reversed(types.items()))):  # by priority, wherever they stand
        config["available_node_types"] = order
        assert launched(config, (32, {"CPU": 1}, decode.labels)) == {"decode_on_demand": 1}
    most = launched(config, (10_000, {"CPU": 1}, decode.labels))
    assert (most["decode_on_demand"], most["decode"]) == (2, 16)
    assert launched(config, (2, {"GPU": 1}, {"role": "train"})) == {"no place": 2}


def test_rays_autoscaler_forgets_a_launch_that_failed() -> None:
    """Why some nodes are on demand. If this fails, Ray has learned to fall back: see cluster.yaml."""
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
    from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

    monitor = CloudResourceMonitor()
    failed = InstanceUpdateEvent(new_instance_status=Instance.ALLOCATION_FAILED, instance_type="decode")
    monitor.notify([failed])
    assert monitor.get_recoverable_resource_availabilities() == {}
    failed.new_instance_status = Instance.ALLOCATION_TIMEOUT
    monitor.notify([failed])
    assert monitor.get_recoverable_resource_availabilities() == {"decode": 0.0}


def test_ec2_knows_every_field_of_the_nodes() -> None:
    session = pytest.importorskip("botocore.session").get_session()
    from botocore.validate import ParamValidator

    shape = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, kind in read(AWS)["available_node_types"].items():
        asked = {"MinCount": 1, "MaxCount": 1, **kind["node_config"]}
        assert ParamValidator().validate(asked, shape).generate_report() == "", name
    assert ParamValidator().validate({**asked, "SpotPrice": 1}, shape).has_errors()


@pytest.fixture
def node(tmp_path: Path) -> dict[str, str]:
    """A node's environment, its home what file_mounts make of it; what it runs is only noted."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (tmp_path / "tubelet").symlink_to(ROOT)
    (tmp_path / ".bashrc").touch()
    (tmp_path / "uv").write_text(UV)
    install = (
        "mkdir -p ~/.local/bin; cp ~/uv ~/.local/bin/uv; chmod +x ~/.local/bin/uv; echo got >> ~/downloads"
    )
    fakes = {"ray": NOTING.format(name="ray"), "curl": f"#!/bin/bash\necho '{install}'\n"}
    for name, text in fakes.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    return {"HOME": str(tmp_path), "PATH": f"{bin_folder}:/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.10"}


def run(commands: list[str], node: dict[str, str]) -> None:
    for command in commands:
        subprocess.run(["bash", "-c", command], env=node, check=True, timeout=30)


@FILES
def test_setup_installs_this_project(file: Path, node: dict[str, str], tmp_path: Path) -> None:
    config = read(file)
    for _ in range(2):  # as `ray up` does after an edit
        run(config["setup_commands"], node)
    assert [(tmp_path / name).read_text().split() for name in ("downloads", "venvs")] == [["got"], ["made"]]
    (line,) = (tmp_path / ".bashrc").read_text().splitlines()
    shell = ["bash", "-c", f"{line}; echo $PATH"]
    path = subprocess.run(shell, env=node, check=True, capture_output=True, text=True).stdout
    assert path.startswith(f"{tmp_path}/venv/bin:")
    called = (tmp_path / "called-uv").read_text().splitlines()
    options = dict(zip(called[2::2], called[3::2], strict=True))
    assert called[:2] == ["pip", "install"]
    assert options.pop("--python") == f"{tmp_path}/venv/bin/python"
    assert Path(options.pop("--constraint")).samefile(ROOT / ".ci" / "constraints.txt")
    folder, _, extra = options.pop("--editable").removesuffix("]").partition("[")
    assert options == {}
    assert Path(folder).samefile(ROOT)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"]
    (script,) = entry_points(group="console_scripts", name="tubelet")
    assert project["scripts"]["tubelet"] == script.value
    assert callable(script.load())
    # What the installation reads is among what is copied.
    assert not {".ci", "pyproject.toml", "README.md", "jobs", "models", "pipeline"} & set(
        config["rsync_exclude"]
    )
    assert config["file_mounts"]["/home/ubuntu/tubelet"] == "."


def test_the_head_gets_what_it_starts_others_by(node: dict[str, str], tmp_path: Path) -> None:
    config = read(AWS)
    run(config["setup_commands"] + config["head_setup_commands"], node)
    assert (tmp_path / "called-uv").read_text().splitlines()[-1] == "boto3"
    assert "\nboto3==" in (ROOT / ".ci" / "constraints.txt").read_text()


@FILES
@pytest.mark.parametrize("gpus", [0, 1])
def test_ray_is_started_with_options_that_it_has(
    file: Path, gpus: int, node: dict[str, str], tmp_path: Path
) -> None:
    from ray.scripts.scripts import start

    if gpus:
        smi = tmp_path / "bin" / "nvidia-smi"
        smi.write_text("#!/bin/bash\necho 'GPU 0: NVIDIA L4'\n")
        smi.chmod(0o755)
    elif shutil.which("nvidia-smi", path="/usr/bin:/bin"):
        pytest.skip("this machine has a GPU")
    config = read(file)
    asked = {}
    for kind in ("head", "worker"):
        stop, begin = config[f"{kind}_start_ray_commands"]
        assert stop == "ray stop"
        run([begin], node)
        auth, command, *options = (tmp_path / "called-ray").read_text().splitlines()
        assert (auth, command) == ("RAY_AUTH_MODE=token", "start")
        asked[kind] = start.make_context("start", options).params
    head, worker = asked["head"], asked["worker"]
    assert head["head"]
    assert head["autoscaling_config"].endswith("/ray_bootstrap_config.yaml")
    assert head["dashboard_host"] == "127.0.0.1"
    assert worker["address"] == "10.0.0.10:6379"
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    if file is ONPREM:
        assert (head["num_cpus"], head["num_gpus"]) == (0, 0)
        assert worker["labels"] == f"role={'embed' if gpus else 'decode'}"


@pytest.mark.slow
def test_rays_own_provider_launches_every_kind_of_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against moto's EC2 and IAM, from key pairs to instances."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto")
    from ray.autoscaler._private.util import prepare_config

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        for profile in ("tubelet-head", "tubelet-worker"):
            boto3.client("iam").create_instance_profile(InstanceProfileName=profile)
        config = bootstrap_aws(prepare_config(read(AWS)))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for name, kind in config["available_node_types"].items():
            tags = {"ray-node-type": "worker", "ray-user-node-type": name, "ray-node-name": name}
            ((instance,),) = [provider.create_node(kind["node_config"], tags, 1).values()]
            assert instance.instance_type == kind["node_config"]["InstanceType"]
            profile = "tubelet-head" if name == "head" else "tubelet-worker"
            assert instance.iam_instance_profile["Arn"].endswith(f"/{profile}")
