"""The reference route: the tutorial's command, gpt-oss's real flags, and the traps told before the start."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import SettingsError
from engine.launch import container, launchers, local, reference, traps
from engine.plan.layout import Layout
from engine.plan.plan import Plan, PlannedStep
from engine.run import start
from engine.run.directory import RunDirectory, read_records
from engine.run.state import Status
from engine.settings import Settings
from tests.launch.support import FAKES, request_of, until

TUTORIAL = {"launch.route": "tutorial", "launch.megatron_lm": "/src/Megatron-LM", "data.source": "mock"}
MEGATRON = {**TUTORIAL, "launch.route": "megatron-lm"}

# The lines of examples/gptoss/02_train.sh (Megatron-LM 16b4fde1) that the traps are about.
SCRIPT = """
NUM_LAYERS=12
PP_SIZE=${WORLD_SIZE}
TRAIN_SAMPLES=1953125000
    --hidden-size 512
    --enable-gpt-oss
    --fp8-format hybrid
        "--vocab-size 128256"
    --save-interval 10000
    --save $CHECKPOINT_PATH
    --tensorboard-dir "${CHECKPOINT_PATH}/tensorboard"
    --no-load-optim
"""


def test_the_tutorial_is_started_as_it_is_written():
    argv = container.command(request_of(values={**TUTORIAL, "launch.launcher": "container"})).expanded()
    image = argv.index("nvcr.io/nvidia/pytorch:25.12-py3")
    assert argv[image + 1 :] == (
        "bash", "examples/gptoss/02_train.sh",
        "--checkpoint-path", "/workspace/checkpoints",
        "--tensorboard-logs-path", "/workspace/tensorboard_logs",
        "--distributed-config-file", "/workspace/megatron-lm/examples/gptoss/distributed_config.env",
    )  # fmt: skip
    mounts = [argv[i + 1] for i, word in enumerate(argv) if word == "--mount"]
    assert mounts[:4] == [
        "type=bind,source=/src/Megatron-LM,target=/workspace/megatron-lm",
        "type=bind,source=/runs/mine/checkpoints,target=/workspace/checkpoints",
        "type=bind,source=/runs/mine/tensorboard,target=/workspace/tensorboard_logs",
        "type=bind,source=/runs/mine/distributed_config.env,"
        "target=/workspace/megatron-lm/examples/gptoss/distributed_config.env",
    ]
    assert argv[argv.index("--workdir") + 1] == "/workspace/megatron-lm"


def test_the_tutorial_with_real_data_mounts_tokenizer_and_data():
    values = {**TUTORIAL, "launch.launcher": "container", "data.source": "prefix", "data.path": "/data/web_text",
              "data.tokenizer": "/models/tokenizer"}  # fmt: skip
    argv = container.command(request_of(values=values)).expanded()
    text = " ".join(argv)
    assert "--tokenizer /workspace/tokenizer_model --data /workspace/data_dir/web_text" in text
    assert "source=/data,target=/workspace/data_dir" in text
    assert "source=/models/tokenizer,target=/workspace/tokenizer_model" in text


def test_without_a_container_it_runs_in_the_checkout():
    command = local.command(request_of(values=TUTORIAL))
    assert command.cwd == Path("/src/Megatron-LM")
    assert command.argv[:2] == ("bash", "examples/gptoss/02_train.sh")
    assert command.reports is False and "signal.sh stop" in command.stop[0]


@pytest.mark.parametrize(
    ("values", "changes", "words"),
    [
        ({**TUTORIAL, "launch.megatron_lm": ""}, {}, "needs a Megatron-LM checkout"),
        (TUTORIAL, {"device": "cpu"}, "needs GPUs"),
        ({**TUTORIAL, "data.source": "text"}, {}, "cannot read data.source = text"),
        ({**TUTORIAL, "data.source": "prefix", "data.path": "/d/x"}, {}, "falls back to mock data without a tokenizer"),
        ({**TUTORIAL, "launch.launcher": "slurm"}, {}, "cannot be started by slurm"),
    ],
)
def test_what_the_route_cannot_do_is_refused(values, changes, words):
    with pytest.raises(SettingsError, match=words):
        launchers.command(request_of(values=values, **changes))


def test_the_other_steps_stay_our_workers():
    command = local.command(request_of(step="prepare", uses_all_ranks=False, values=MEGATRON))
    assert "engine.workers.prepare" in command.argv and command.reports


def _flags(**changes) -> dict[str, str]:
    words = reference.flags(request_of(**changes))
    pairs = zip(words, (*words[1:], "--"), strict=True)
    return {word: "" if value.startswith("--") else value for word, value in pairs if word.startswith("--")}


def test_the_flags_are_gpt_oss_s_and_not_the_example_s():
    flags = _flags(values=MEGATRON)
    wanted = {"--num-layers": "24", "--hidden-size": "2880", "--kv-channels": "64", "--window-size": "127,0",
              "--rotary-base": "150000", "--num-experts": "32", "--moe-router-topk": "4", "--softmax-type": "learnable",
              "--padded-vocab-size": "201088", "--expert-tensor-parallel-size": "1", "--hidden-dropout": "0.0",
              "--position-embedding-type": "yarn", "--exit-signal-handler": ""}  # fmt: skip
    assert {key: flags[key] for key in wanted} == wanted
    for forbidden in ("--disable-bias-linear", "--swiglu", "--enable-gpt-oss", "--export-force-local-attention"):
        assert forbidden not in flags
    assert _flags(values={**MEGATRON, "model.name": "gpt-oss-120b"})["--num-experts"] == "128"


def test_a_restart_goes_on_and_the_first_start_takes_the_converted_weights():
    flags = _flags(values=MEGATRON)
    assert flags["--load"] == flags["--save"] == "/runs/mine/checkpoints"
    assert flags["--pretrained-checkpoint"] == "/runs/mine/converted"
    assert "--pretrained-checkpoint" not in _flags(values={**MEGATRON, "training.goal": "pretrain"})


def test_the_layout_brings_what_it_needs():
    flags = _flags(values=MEGATRON, layout=Layout(tp=2, cp=2, ep=2, dp=1))
    assert flags["--cp-comm-type"] == "a2a" and "--sequence-parallel" in flags
    assert "--sequence-parallel" not in _flags(values=MEGATRON)


def test_wsd_says_over_how_many_iterations_the_rate_falls():
    wsd = {**MEGATRON, "training.schedule": "WSD", "training.iterations": 500}
    assert _flags(values=wsd)["--lr-wsd-decay-iters"] == "50"
    assert "--lr-wsd-decay-iters" not in _flags(values=MEGATRON)


@pytest.mark.engine
@pytest.mark.parametrize("name", ["gpt-oss-20b", "gpt-oss-120b"])
def test_megatron_itself_parses_the_flags(name, tmp_path):
    """With Megatron's own parser; it asks the GPU for its capability, so that one question is answered for it."""
    values = {**MEGATRON, "model.name": name, "launch.megatron_lm": str(tmp_path), "training.recompute": "moe",
              "training.schedule": "WSD"}  # fmt: skip
    words = reference.flags(request_of(values=values, run=tmp_path))
    code = (
        "import sys; from megatron.training.arguments import parse_args\n"
        "args = parse_args(ignore_unknown_args=False)\n"
        "assert args.quick_geglu and args.add_bias_linear and not args.swiglu, args\n"
        "assert args.window_size == (127, 0), args.window_size\n"
        "assert args.glu_linear_offset == 1.0 and args.softmax_type == 'learnable'\n"
        "assert args.yarn_original_max_position_embeddings == 4096\n"
        "print(args.num_layers, args.num_experts)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def _keys(world: int = 8, script: str | None = SCRIPT, **values: object) -> dict[str, str]:
    chosen = Settings().with_values({"model.name": "gpt-oss-20b", "output.export": False, **TUTORIAL, **values})
    return {finding.key: str(finding.severity) for finding in traps.find(chosen, world, script)}


def test_the_traps_of_the_example_are_told():
    assert _keys() == {
        "reference.pipeline": "error", "reference.toy": "warning", "reference.load": "warning",
        "reference.stop": "warning", "reference.mock": "warning", "reference.fp8": "warning",
        "reference.modelopt": "warning", "reference.tensorboard": "info",
    }  # fmt: skip


@pytest.mark.parametrize(("world", "fits"), [(1, True), (4, True), (6, True), (8, False), (16, False)])
def test_only_numbers_of_gpus_that_divide_the_layers_start(world, fits):
    assert ("reference.pipeline" not in _keys(world)) is fits


def test_a_mended_script_is_not_accused():
    mended = "PP_SIZE=1\n --load $X \n --exit-signal-handler\nNUM_LAYERS=24\n"
    assert _keys(script=mended) == {}


def test_real_data_has_a_trap_of_its_own():
    assert _keys(**{"data.source": "prefix", "data.path": "/d/x"})["reference.vocabulary"] == "warning"


def test_what_the_route_cannot_export_is_an_error():
    assert _keys(**{"output.export": True})["reference.export"] == "error"
    assert _keys(**{"output.export": True, "launch.route": "megatron-lm"}) == {"reference.export": "error"}


def test_a_checkout_without_the_example_is_an_error():
    assert _keys(script=None)["reference.script"] == "error"


def test_our_own_route_has_no_traps():
    assert _keys(**{"launch.route": "bridge"}) == {}


@pytest.fixture
def make_megatron_run(tmp_path, monkeypatch):
    """A run of the route megatron-lm with a FakeMegatron; its supervisor ends with the test."""
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path / "runs"))
    checkout = tmp_path / "Megatron-LM"
    checkout.mkdir()
    (checkout / "pretrain_gpt.py").write_text("")
    made: list[RunDirectory] = []

    def make() -> RunDirectory:
        values = {**MEGATRON, "launch.megatron_lm": str(checkout), "launch.python": str(FAKES / "fake_megatron.py")}
        settings = Settings().with_values({"model.name": "gpt-oss-20b", "output.export": False, **values})
        steps = (PlannedStep(name="train", ranks_per_node=1, why="test"),)
        plan = Plan(device="gpu", layout=Layout(), ranks_per_node=1, nodes=1, steps=steps, gpus=(0,))
        made.append(start.create(settings, plan, "reference"))
        return made[-1]

    yield make
    for run in made:
        supervisor = run.read_state().supervisor
        if supervisor and supervisor.send(signal.SIGQUIT):
            until(lambda supervisor=supervisor: not supervisor.is_alive())


def test_its_log_becomes_the_run_s_metrics_and_result(make_megatron_run):
    run = make_megatron_run()
    start.launch(run)
    state = start.wait(run, 60)
    assert state.status is Status.FINISHED, (run.attempt(1, "train") / "launcher.log").read_text()
    assert [(r["iteration"], r["loss"]) for r in read_records(run.metrics)] == [(1, 5.0), (2, 4.0), (3, 3.0)]
    assert state.results["train"] == {"first_loss": 5.0, "last_loss": 3.0, "iteration": 3}


def test_a_stop_reaches_it_and_is_no_success(make_megatron_run, monkeypatch):
    monkeypatch.setenv("HANG", "1")
    run = make_megatron_run()
    start.launch(run)
    until(lambda: list(read_records(run.metrics))[2:])
    start.stop(run)
    assert start.wait(run, 60).status is Status.STOPPED
    assert "exiting program after receiving SIGTERM" in (run.attempt(1, "train") / "launcher.log").read_text()
