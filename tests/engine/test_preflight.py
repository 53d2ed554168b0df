"""What is said before a run starts. Verdicts over facts that are written down; probes over real files."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from engine import machine_file, models, preflight, preflight_facts
from engine.cli import starting
from engine.findings import Finding, Severity, warning
from engine.hardware.host import Disk, InfinibandPort
from engine.launch_settings import LaunchSettings
from engine.machine import Gpu, Machine
from engine.plan.layout import Layout
from engine.plan.plan import Plan, PlannedStep
from engine.preflight_facts import Facts, HubFacts
from engine.settings import Settings
from engine.versions import Installed

PACKAGES = {
    "torch": "2.13.0", "megatron-core": "0.19.2", "megatron-bridge": "0.6.2", "transformers": "5.12.1",
    "datasets": "5.2.0", "einops": "0.8.2", "omegaconf": "2.3.1", "pillow": "12.3.0", "psutil": "7.2.0",
    "tensorboard": "2.21.0",
    "transformer-engine": "2.16.0", "nvidia-modelopt": "0.42.0", "megatron-energon": "7.1",
    "nvidia-resiliency-ext": "0.6.0",
}  # fmt: skip
INSTALLED = Installed(
    executable="/env/bin/python", python="3.12.1", packages=PACKAGES, torch_cuda="13.0", system_cudnn="9.21.1"
)
ROOMY = Disk(purpose="runs", path="/runs", filesystem="ext4", total_gib=1e5, free_gib=1e5)
HUB = HubFacts(repository="openai/gpt-oss-20b", cache=replace(ROOMY, path="/cache"), is_complete=True)
FACTS = Facts(installed=INSTALLED, output=ROOMY, hub=HUB)
H100 = Gpu(index=0, name="NVIDIA H100 80GB HBM3", memory_total_gib=79.6, compute_capability=(9, 0))
MACHINE = Machine(
    gpus=tuple(replace(H100, index=index) for index in range(8)),
    cuda_version=(13, 0),
    ram_gib=2048,
    ram_free_gib=2000,
    shm_gib=1024,
    open_files=65_536,
)
SETTINGS = Settings().with_values({"training.iterations": 1000, "training.checkpoint_interval": 100})


def plan_of(steps: str = "prepare convert train export verify", **changes: object) -> Plan:
    base = {"device": "gpu", "layout": Layout(ep=8, dp=8), "ranks_per_node": 8, "nodes": 1}
    facts = base | changes
    planned = tuple(PlannedStep(name=n, ranks_per_node=facts["ranks_per_node"], why="") for n in steps.split())  # type: ignore[arg-type]
    return Plan(steps=planned, **facts)  # type: ignore[arg-type]


def judge(
    settings: Settings = SETTINGS, plan: Plan | None = None, machine: Machine = MACHINE, facts: Facts = FACTS
) -> tuple[Finding, ...]:
    return preflight.judge(settings, plan or plan_of(), machine, models.find(settings), facts)


def keys(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.key for finding in findings]


def test_nothing_to_say_about_a_good_start() -> None:
    assert judge() == ()


def with_settings(**values: object) -> Settings:
    return SETTINGS.with_values({key.replace("__", "."): value for key, value in values.items()})


PORT = InfinibandPort(device="mlx5_0", port=1, gbit_per_s=400, is_active=True)
SHARED = replace(FACTS, output=replace(ROOMY, is_shared=True))
TWO_NODES = with_settings(machine__nodes=2, launch__master_addr="node0", launch__master_port=29500)
RDMA = replace(MACHINE, infiniband=(PORT,))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"settings": with_settings(training__warmup_iterations=1000)}, ["training.warmup"]),
        ({"settings": with_settings(training__decay_iterations=5)}, ["training.warmup"]),
        ({"settings": with_settings(training__global_batch=100)}, ["training.batch"]),
        ({"facts": replace(FACTS, output=replace(ROOMY, free_gib=100))}, ["disk.full"]),
        ({"facts": replace(FACTS, output=replace(ROOMY, free_gib=1000))}, ["disk.tight"]),
        ({"facts": replace(FACTS, output=replace(ROOMY, is_writable=False))}, ["paths.output"]),
        ({"facts": replace(FACTS, missing=("data.path = '/x'",))}, ["paths.missing"]),
        ({"facts": replace(FACTS, port_owner="python (process 1)")}, ["network.port"]),
        ({"facts": replace(FACTS, hub=replace(HUB, is_complete=False))}, ["hub.download"]),
        ({"facts": replace(FACTS, hub=replace(HUB, is_complete=False, is_offline=True))}, ["hub.offline"]),
        (
            {"facts": replace(FACTS, hub=replace(HUB, is_complete=False, cache=replace(ROOMY, free_gib=1)))},
            ["hub.disk"],
        ),
        (
            {"facts": replace(FACTS, hub=replace(HUB, is_complete=False, cache=replace(ROOMY, is_writable=False)))},
            ["hub.cache"],
        ),
        ({"facts": replace(FACTS, installed=replace(INSTALLED, torch_cuda=""))}, ["packages.torch-cpu"]),
        ({"machine": replace(MACHINE, ram_gib=64, ram_free_gib=60)}, ["memory.full"]),
        ({"machine": replace(MACHINE, ram_free_gib=60)}, ["memory.busy"]),
        ({"machine": replace(MACHINE, shm_gib=0.0625)}, ["limits.shm"]),
        ({"machine": replace(MACHINE, open_files=1024)}, ["limits.files"]),
        ({"machine": replace(MACHINE, cuda_version=(12, 8))}, ["packages.driver"]),
        ({"machine": replace(MACHINE, gpus=MACHINE.gpus[:4])}, ["gpu.too-few"]),
        ({"machine": replace(MACHINE, findings=(warning("gpu.busy", "GPU 1 is busy", "slow", "wait"),))}, ["gpu.busy"]),
        (
            {"machine": replace(MACHINE, gpus=(replace(H100, name="V100", compute_capability=(7, 0)),) * 8)},
            ["gpu.precision"],
        ),
        ({"settings": TWO_NODES, "plan": plan_of(nodes=2), "machine": RDMA, "facts": SHARED}, []),
        ({"settings": TWO_NODES, "plan": plan_of(nodes=2), "machine": RDMA}, ["disk.not-shared"]),
        ({"settings": TWO_NODES, "plan": plan_of(nodes=2), "facts": SHARED}, ["limits.rdma"]),
        (
            {
                "settings": TWO_NODES,
                "plan": plan_of(nodes=2),
                "machine": replace(RDMA, memlock_gib=0.0078),
                "facts": replace(SHARED, is_clock_synchronised=False),
            },
            ["limits.memlock", "network.clock"],
        ),
        (
            {
                "settings": with_settings(machine__nodes=2, launch__node_rank=2),
                "plan": plan_of(nodes=2),
                "machine": RDMA,
                "facts": SHARED,
            },
            ["network.address", "network.no-port", "network.rank"],
        ),
    ],
)
def test_findings(change: dict[str, object], expected: list[str]) -> None:
    found = judge(**change)  # type: ignore[arg-type]
    assert keys(found) == expected
    assert all(finding.what and finding.why for finding in found)
    assert all(finding.fix for finding in found if finding.severity is not Severity.INFO)


def test_the_cpu_asks_for_nothing_of_gpus() -> None:
    plan = plan_of(device="cpu", ranks_per_node=2, layout=Layout(ep=2, dp=2))
    tiny = SETTINGS.with_values({"model.name": "tiny", "training.precision": "fp32"})
    small = Machine(ram_gib=16, ram_free_gib=8, shm_gib=0.06, open_files=1024, findings=(warning("gpu.none", "none"),))
    packages = {name: PACKAGES[name] for name in list(PACKAGES)[:10]}
    facts = replace(FACTS, hub=None, installed=replace(INSTALLED, packages=packages, torch_cuda=""))
    assert judge(tiny, plan, small, facts) == ()


def test_the_worst_comes_first() -> None:
    machine = replace(MACHINE, open_files=1024, cuda_version=(12, 8), shm_gib=0.1)
    assert keys(judge(machine=machine)) == ["limits.shm", "packages.driver", "limits.files"]


@pytest.mark.parametrize(
    ("model", "precision", "keep", "expected"),
    [
        # domain anchors: 41.8 GB of bf16 weights, 293 GB a checkpoint; 2 + 1 of them while saving
        ("gpt-oss-20b", "bf16", 2, (41.8, 3 * 292.8, 41.8)),
        ("gpt-oss-20b", "bf16", 0, (41.8, 10 * 292.8, 41.8)),
        ("gpt-oss-20b", "fp32", 1, (83.7, 2 * 251.0, 83.7)),
        ("gpt-oss-120b", "bf16", 20, (233.7, 10 * 1635.6, 233.7)),
    ],
)
def test_disk_in_gb(model: str, precision: str, keep: int, expected: tuple[float, ...]) -> None:
    settings = SETTINGS.with_values(
        {"model.name": model, "training.precision": precision, "output.keep_checkpoints": keep}
    )
    need = preflight.disk_need_gib(settings, plan_of(), models.find(settings))
    assert [size * 2**30 / 1e9 for size in need.values()] == pytest.approx(expected, rel=2e-3)


def test_steps_that_are_left_out_need_no_disk() -> None:
    need = preflight.disk_need_gib(SETTINGS, plan_of("prepare train"), models.GPT_OSS_20B, data_bytes=2**30)
    assert list(need) == ["3 checkpoints", "the tokenised data"]
    assert need["the tokenised data"] == 1


@pytest.mark.parametrize(("model", "size_gb"), [(models.GPT_OSS_20B, 13.76), (models.GPT_OSS_120B, 65.25)])
def test_download_size(model: models.Model, size_gb: float) -> None:
    """The sums of the published safetensors files, openai/gpt-oss-20b and -120b."""
    assert preflight.download_gib(model) * 2**30 / 1e9 == pytest.approx(size_gb, rel=2e-3)


def test_the_message_names_value_limit_and_way_out() -> None:
    (finding,) = judge(facts=replace(FACTS, output=replace(ROOMY, free_gib=100)))
    assert finding.what == "the run needs 896 GiB in /runs, and 100 GiB are free"
    assert finding.why == (
        "it writes 39.0 GiB for the converted model, 818 GiB for 3 checkpoints, 39.0 GiB for the exported model"
    )
    assert "output.directory" in finding.fix
    assert finding.ignorable


# The probes, over real files and sockets.


def facts_of(values: Mapping[str, object], tmp_path: Path, **environ: str) -> Facts:
    settings = Settings().with_values({"model.name": "tiny", **values})
    return preflight_facts.read_facts(settings, models.find(settings), tmp_path / "runs", environ)


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x" * 1000)
    (tmp_path / "half.bin").write_text("")
    text, half = str(tmp_path / "text"), str(tmp_path / "half")
    assert facts_of({"data.source": "text", "data.path": text}, tmp_path).missing == ()
    assert facts_of({"data.source": "text", "data.path": text}, tmp_path).data_bytes == 1000
    limited = {"data.source": "text", "data.path": text, "data.max_megabytes": 0.0005}
    assert facts_of(limited, tmp_path).data_bytes == 500
    assert facts_of({"data.source": "text"}, tmp_path).missing == ("data.path = ''",)
    assert facts_of({"data.source": "prefix", "data.path": half}, tmp_path).missing == (f"data.path = '{half}.idx'",)
    checkpoint = {"model.checkpoint": text, "data.tokenizer": "/nowhere"}
    tracker = f"{text}/latest_checkpointed_iteration.txt"
    assert facts_of(checkpoint, tmp_path).missing == (
        "data.tokenizer = '/nowhere'",
        f"model.checkpoint = '{tracker}'",
    )


def test_data_that_cannot_be_used_is_seen_before_the_run(tmp_path: Path) -> None:
    text, chats, pair = tmp_path / "a.jsonl", tmp_path / "c.jsonl", tmp_path / "pair"
    text.write_text('{"text": "x"}\n')
    chats.write_text('{"messages": []}\n')
    Path(f"{pair}.idx").write_bytes(b"no index")
    Path(f"{pair}.bin").write_bytes(b"")
    for values, says in (
        ({"data.source": "text", "data.path": str(text)}, None),
        ({"data.source": "text", "data.path": str(text), "data.column": "txt"}, "no column 'txt'"),
        ({"data.source": "text", "data.path": str(chats)}, "the goal continue learns text"),
        ({"data.source": "chat", "data.path": str(text), "training.goal": "sft"}, "no chats"),
        ({"data.source": "prefix", "data.path": str(pair)}, "is not a Megatron index"),
        ({"data.source": "text", "data.path": "hf:owner/name"}, None),
    ):
        facts = facts_of(values, tmp_path)
        assert facts.missing == ()
        if says is None:
            assert facts.data_problem is None
        else:
            assert facts.data_problem and says in facts.data_problem[0]
            (finding,) = [one for one in judge(facts=replace(FACTS, data_problem=facts.data_problem))
                          if one.key == "data.unusable"]  # fmt: skip
            assert finding.severity is Severity.ERROR and finding.fix


def test_weights_are_looked_for(tmp_path: Path) -> None:
    settings = SETTINGS.with_values({"model.path": str(tmp_path)})
    model = models.GPT_OSS_20B
    facts = replace(FACTS, hub=None)
    assert keys(preflight.judge(settings, plan_of(), MACHINE, model, facts)) == ["paths.weights"]
    (tmp_path / "model-00001-of-00002.safetensors").write_text("")
    assert preflight.judge(settings, plan_of(), MACHINE, model, facts) == ()


def test_a_port_and_its_owner(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        owner = facts_of({"launch.master_port": port}, tmp_path).port_owner
        assert owner is not None and owner.endswith(f"(process {preflight_facts.os.getpid()})")
        assert facts_of({"launch.master_port": port, "launch.node_rank": 1}, tmp_path).port_owner is None
    assert preflight_facts.port_owner(port) is None


def hub(tmp_path: Path, **environ: str) -> HubFacts:
    found = preflight_facts.read_hub(Settings(), models.GPT_OSS_20B, {"HF_HOME": str(tmp_path), **environ})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("address", "rank", "words"),
    [
        ("node09.invalid", 0, "cannot be looked up"),
        ("x" * 300, 0, "cannot be looked up"),
        ("192.0.2.1", 0, "is no address of this machine"),  # TEST-NET-1: nobody's
        ("192.0.2.1", 1, ""),
        ("localhost", 0, ""),
        ("127.0.0.2", 0, ""),
    ],
)
def test_an_address_where_nobody_can_meet(address: str, rank: int, words: str) -> None:
    problem = preflight_facts.address_problem(LaunchSettings(master_addr=address, node_rank=rank))
    assert words in problem and bool(words) is bool(problem)
    found = judge(facts=replace(FACTS, address_problem=problem))
    assert keys(found) == (["network.master"] if words else [])


def test_the_hub_s_cache(tmp_path: Path) -> None:
    assert (hub(tmp_path).is_complete, hub(tmp_path).has_config) == (False, False)
    snapshot = tmp_path / "hub" / "models--openai--gpt-oss-20b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'
    )
    (snapshot / "1.safetensors").write_text("")
    (snapshot / "2.safetensors").symlink_to("../../blobs/cut-off")  # a download that was interrupted
    assert (hub(tmp_path).is_complete, hub(tmp_path).has_config) == (False, True)
    (snapshot / "2.safetensors").unlink()
    (snapshot / "2.safetensors").write_text("")
    assert hub(tmp_path).is_complete
    (snapshot / "model.safetensors.index.json").write_text("[]")
    assert not hub(tmp_path).is_complete


def test_tokens_are_noticed_and_never_shown(tmp_path: Path) -> None:
    assert not hub(tmp_path).has_token
    found = hub(tmp_path, HF_TOKEN="hf_secret", HF_HUB_OFFLINE="1")
    assert found.has_token and found.is_offline
    assert "hf_secret" not in repr(found)
    (tmp_path / "token").write_text("hf_secret")
    assert hub(tmp_path).has_token


def test_a_local_model_needs_no_hub(tmp_path: Path) -> None:
    assert facts_of({}, tmp_path).hub is None
    settings = Settings().with_values({"model.path": str(tmp_path)})
    assert preflight_facts.read_hub(settings, models.GPT_OSS_20B, {}) is None


def test_new_weights_need_the_configuration_alone() -> None:
    settings = SETTINGS.with_values({"training.goal": "pretrain"})
    offline = replace(HUB, is_complete=False, is_offline=True)
    plan = plan_of("prepare train export")
    assert keys(judge(settings, plan, facts=replace(FACTS, hub=offline))) == ["hub.offline"]
    assert judge(settings, plan, facts=replace(FACTS, hub=replace(offline, has_config=True))) == ()


def test_check_on_this_host(tmp_path: Path) -> None:
    settings = Settings().with_values({"model.name": "tiny", "launch.python": "/nowhere/python"})
    plan = plan_of(device="cpu", ranks_per_node=2, layout=Layout(dp=2))
    machine = Machine(ram_gib=16, ram_free_gib=16)
    found = preflight.check(settings, plan, machine, tmp_path / "runs", {})
    assert keys(found) == ["packages.python"]


def test_a_described_machine_is_judged_by_its_file_alone(tmp_path, monkeypatch):
    """Nothing that this host lacks, holds or listens on says anything about another machine."""
    text = """
        [host]
        disk_free_gib = 400.0
        [gpu]
        name = "NVIDIA H100 80GB HBM3"
        nvlinks = 18
        nvlink_shape = "switch"
    """
    machine = machine_file.loads(text)
    assert machine.is_described
    monkeypatch.setattr("engine.preflight.read_facts", lambda *_: pytest.fail("this host is looked at"))
    values = {"data.source": "text", "data.path": str(tmp_path / "elsewhere"), "output.tracker": "wandb",
              "launch.launcher": "slurm", "launch.python": "/opt/there/python"}  # fmt: skip
    settings = SETTINGS.with_values(values)
    found = {one.key: one for one in starting.check(settings, plan_of(), machine)}
    assert set(found) <= {"disk.full", "disk.tight", "limits.rdma"}
    assert "400 GiB" in found["disk.full"].what


def test_a_described_machine_of_one_kind_has_no_other_findings():
    machine = machine_file.loads('[gpu]\nname = "NVIDIA H100 80GB HBM3"\ncount = 4\n')
    found = [one.key for one in starting.check(SETTINGS, plan_of(), machine)]
    assert "gpu.too-few" in found and not [key for key in found if key.startswith(("packages", "paths", "hub"))]
