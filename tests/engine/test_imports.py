"""What people bring along: env files, launch scripts, command lines. Read as text, run never."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from engine import env_file, imports, shell_words
from engine.errors import EngineError, SettingsError
from engine.imports import Imported
from engine.launch import reference
from engine.presets import find
from engine.settings import OPTIONS, Settings
from gptoss_tui.__main__ import main
from tests.launch.support import request_of

# In the form of the tutorial's 02_train.sh: arguments, defaults, arrays, a branch for the data, a computed size.
SCRIPT = r"""#!/bin/bash
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
CHECKPOINT_PATH="NOWHERE" # don't forget
DATA_ARG="MOCK"
while [[ $# -gt 0 ]]; do
    case $1 in
        --checkpoint-path) CHECKPOINT_PATH="$2"; shift 2 ;;
        *) echo "Unknown option: $1"; exit 1 ;;
    esac
done
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
NUM_NODES=2
WORLD_SIZE=$(($GPUS_PER_NODE*$NUM_NODES))
DISTRIBUTED_ARGS=(
    --nproc_per_node $GPUS_PER_NODE
    --nnodes $NUM_NODES
)
MODEL_ARGS=(
    --num-layers 24   # the real one
    --hidden-size 2880
    --num-experts 32
    --rotary-base 10000
    --window-size 127,0
    --disable-bias-linear
)
DATA_ARGS_LIST=()
if [[ "$DATA_ARG" == "MOCK" ]]; then
    DATA_ARGS_LIST+=(
        "--mock-data"
        "--split '98,2,0'"
        "--data-cache-path ${PWD}/cache"
    )
else
    DATA_ARGS_LIST+=("--data-path $DATA_ARG")
fi
python -m torch.distributed.run ${DISTRIBUTED_ARGS[@]} pretrain_gpt.py \
    ${MODEL_ARGS[@]} ${DATA_ARGS_LIST[@]} \
    --tensor-model-parallel-size 1 --pipeline-model-parallel-size ${WORLD_SIZE} \
    --global-batch-size 128 --train-samples 12800 --lr-decay-samples 6400 --lr-warmup-fraction 0.1 \
    --lr 3e-4 --fp8-format hybrid --eval-iters 0 --weight-decay much --save "$CHECKPOINT_PATH" --num-workers 1 \
    2>&1 | tee train_$(date +%F).log
"""


def _of(told: tuple[imports.Told, ...]) -> dict[str, str]:
    return {one.text: one.why for one in told}


def _read(tmp_path: Path, text: str, name: str = "train.sh") -> Imported:
    (tmp_path / name).write_text(text)
    return imports.read([tmp_path / name])


def test_a_launch_script_becomes_settings(tmp_path):
    found = _read(tmp_path, SCRIPT)
    assert found.values == {
        "machine.gpus_per_node": 8, "machine.nodes": 2, "model.name": "gpt-oss-20b", "data.source": "mock",
        "data.validation_percent": 2.0, "layout.tp": 1, "layout.pp": 16, "layout.mode": "manual",
        "training.global_batch": 128, "training.iterations": 100, "training.decay_iterations": 50,
        "training.warmup_iterations": 5, "training.learning_rate": 3e-4, "training.goal": "pretrain",
    }  # fmt: skip
    assert found.settings.training.iterations == 100


def test_everything_else_is_accounted_for(tmp_path):
    found = _read(tmp_path, SCRIPT)
    impossible, ignored = _of(found.impossible), _of(found.ignored)
    assert impossible["--rotary-base 10000"] == "gpt-oss-20b has --rotary-base 150000"
    assert "does not have it" in impossible["--disable-bias-linear"]
    assert "FP8 is not offered" in impossible["--fp8-format hybrid"]
    assert "'much' is not allowed" in impossible["--weight-decay much"]
    assert "the shell would compute it" in impossible["--data-cache-path ${PWD}/cache"]
    assert set(impossible) == {"--rotary-base 10000", "--disable-bias-linear", "--fp8-format hybrid", "--eval-iters 0",
                               "--weight-decay much", "--data-cache-path ${PWD}/cache"}  # fmt: skip
    assert {"--save NOWHERE", "--num-workers 1", "else …", "while …", "CUDA_DEVICE_MAX_CONNECTIONS=1"} == set(ignored)
    assert _of(found.understood)["--window-size 127,0"] == "as gpt-oss-20b has it"


# The tutorial's step 2 with data of one's own, its variables set in front as it says.
TUTORIAL = r"""
export HOST_MEGATRON_LM_DIR="/src/megatron-lm"
export HOST_DATA="/data/web"
cat > ./distributed_config.env << 'EOF'
GPUS_PER_NODE=8
EOF
PYTORCH_IMAGE="nvcr.io/nvidia/pytorch:25.12-py3"
docker run --rm --gpus all --ipc=host --ulimit memlock=-1 \
  -v "${HOST_MEGATRON_LM_DIR}:/workspace/megatron-lm" \
  -v "${HOST_DATA}:/workspace/data_dir" \
  -v "$(pwd)/tokenizer:/workspace/tokenizer_model" \
  --workdir /workspace/megatron-lm \
  $PYTORCH_IMAGE \
  bash examples/gptoss/02_train.sh \
    --checkpoint-path /workspace/checkpoints \
    --tokenizer /models/tokenizer --data /workspace/data_dir/text_document \
  2>&1 | tee "${LOGS}/training_$(date +'%y-%m-%d').log"
"""


def test_the_tutorial_s_command_becomes_its_route(tmp_path):
    found = _read(tmp_path, TUTORIAL)
    assert found.values == {
        "launch.launcher": "container", "launch.runtime": "docker", "launch.route": "tutorial",
        "launch.image": "nvcr.io/nvidia/pytorch:25.12-py3", "launch.megatron_lm": "/src/megatron-lm",
        "data.source": "prefix", "data.path": "/data/web/text_document", "data.tokenizer": "/models/tokenizer",
        "output.export": False, "training.goal": "pretrain",
    }  # fmt: skip
    assert any("set it by hand" in one.why for one in found.impossible if "tokenizer_model" in one.text)


def test_an_env_file_gives_the_five_keys_and_keeps_the_rest(tmp_path):
    found = _read(tmp_path, "# mine\nNUM_NODES=2\nMASTER_ADDR=node01\nNCCL_DEBUG=INFO\n", "distributed_config.env")
    assert found.values == {
        "machine.nodes": 2, "launch.master_addr": "node01",
        "launch.env_file": str(tmp_path / "distributed_config.env"),
    }  # fmt: skip
    assert [one.key for one in found.understood] == ["machine.nodes", "launch.master_addr", "launch.env_file"]
    # The name is not what makes it one.
    assert _read(tmp_path, "NUM_NODES=3\n", "cluster").values == {"machine.nodes": 3}


def test_a_batch_script_becomes_a_slurm_run(tmp_path):
    text = (
        "#!/bin/bash\n#SBATCH --nodes=4 --partition=h100\n#SBATCH --time=12:00:00\n#SBATCH --constraint=ib --nice\n"
        "#SBATCH --output=log --comment=long\n"
        "srun torchrun --nproc-per-node 8 --rdzv-endpoint $HOST:29500 pretrain_gpt.py "
        "--train-iters 10 --load /ckpt/base --finetune\n"
    )
    found = _read(tmp_path, text)
    assert found.values == {
        "launch.launcher": "slurm", "machine.nodes": 4, "launch.partition": "h100", "launch.time_limit": "12:00:00",
        "launch.slurm_options": "--constraint=ib --nice --comment=long", "machine.gpus_per_node": 8,
        "training.iterations": 10,
        "model.checkpoint": "/ckpt/base", "training.goal": "continue",
    }  # fmt: skip
    assert "--rdzv-endpoint $HOST:29500" in _of(found.impossible)


def test_later_files_win(tmp_path):
    (tmp_path / "a.env").write_text("NUM_NODES=4\n")
    (tmp_path / "b.sh").write_text("torchrun --nnodes=2 pretrain_gpt.py --lr 1e-3\n")
    found = imports.read([tmp_path / "a.env", tmp_path / "b.sh"])
    assert found.values == {"machine.nodes": 2, "training.learning_rate": 1e-3}


def _value(key: str) -> st.SearchStrategy[object]:
    option = OPTIONS[key]
    if option.choices:
        return st.sampled_from(option.choices)
    if option.kind is int:
        return st.integers(int(option.minimum or 0), int(option.maximum or 1000))
    return st.floats(option.minimum, option.maximum, allow_nan=False)


CARRIED = [
    "training.iterations", "training.sequence_length", "training.global_batch", "training.micro_batch",
    "training.learning_rate", "training.minimum_learning_rate", "training.schedule", "training.warmup_iterations",
    "training.weight_decay", "training.adam_beta2", "training.gradient_clip", "training.seed",
    "training.checkpoint_interval", "training.evaluation_interval", "training.evaluation_iterations",
    "training.log_interval",
]  # fmt: skip


@how(max_examples=40, deadline=None)
@given(st.fixed_dictionaries({key: _value(key) for key in CARRIED}), st.sampled_from(["gpt-oss-20b", "gpt-oss-120b"]))
def test_what_our_own_route_writes_is_read_back_the_same(values, model):
    """`launch/reference.py` the one way, the import the other; nothing of it is refused or unknown."""
    chosen = {**values, "model.name": model, "launch.route": "megatron-lm", "launch.megatron_lm": "/src",
              "data.source": "prefix", "data.path": "/data/web text", "training.goal": "continue"}  # fmt: skip
    request = request_of(values=chosen)
    words = " ".join(f"'{word}'" if " " in word else word for word in reference.flags(request))
    found = imports.read_command_line(f"torchrun pretrain_gpt.py {words}")
    for key in [*CARRIED, "model.name", "data.source", "data.path", "training.goal"]:
        assert found.settings.value(key) == request.settings.value(key), key
    assert found.impossible == ()
    assert [one.text for one in found.ignored if "no counterpart" in one.why] == []


def test_nothing_is_ever_run(tmp_path):
    canary = tmp_path / "canary"
    found = _read(
        tmp_path,
        f"A=$(touch {canary})\nB=`touch {canary}`\ntorchrun pretrain_gpt.py --lr $(touch {canary}) --seed $A "
        f"--weight-decay `touch {canary}` --clip-grad $((1+1))\n",
    )
    assert not canary.exists()
    assert found.values == {}
    assert len(found.impossible) == 4


@how(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab=$(){}[]<>|&;#'\"`\\ \n-*1:@!ifdone") | st.characters(codec="utf-8"), max_size=60))
def test_garbage_is_refused_in_words(text):
    for given_text in (text, f"torchrun pretrain_gpt.py --lr {text}"):
        try:
            imports.read_command_line(given_text)
        except SettingsError as error:
            assert error.message and error.hint


@how(max_examples=60, deadline=None)
@given(st.binary(max_size=120))
def test_a_garbage_file_gives_no_traceback(tmp_path_factory, data):
    for name in ("x.env", "x.sh"):
        path = tmp_path_factory.mktemp("garbage") / name
        path.write_bytes(data)
        try:
            imports.read([path])
        except EngineError as error:
            assert error.message and error.hint


@how(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(
        {key: _value(env_file.NAMES[key]) for key in ("GPUS_PER_NODE", "NUM_NODES", "MASTER_PORT", "NODE_RANK")}
    )
)
def test_an_env_file_that_we_wrote_is_read_back(values):
    found = env_file.parse(env_file.render(values))
    assert {key: int(value) for key, value in found.items()} == values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo hello\n", "nothing in it starts pretrain_gpt.py"),
        ("torchrun 'pretrain_gpt.py\n", "No closing quotation"),
        ("", "nothing in it starts"),
        ("A=xxxxxxxx\n" + "A=$A$A\n" * 60 + "torchrun pretrain_gpt.py $A\n", "its variables grow"),
        ("A=(x y)\n" + "A=($A $A)\n" * 60 + "torchrun pretrain_gpt.py $A\n", "its variables grow"),
    ],
)
def test_what_starts_no_training_is_refused(tmp_path, text, words):
    with pytest.raises(SettingsError, match=words) as caught:
        _read(tmp_path, text)
    assert str(tmp_path / "train.sh") in caught.value.message


def test_a_dangerous_env_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="bash would not read it as it is"):
        _read(tmp_path, "NUM_NODES=$(id)\n", "x.env")
    (tmp_path / "huge.sh").write_text("#" * 1_000_001)
    for path, words in ((tmp_path / "huge.sh", "larger than"), (tmp_path / "none", "there is no file"),
                        (tmp_path, "cannot be read")):  # fmt: skip
        with pytest.raises(EngineError, match=words):
            imports.read([path])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a 'b c' \"d # e\" f # g", ["a", "b c", "d # e", "f"]),
        ("X=1 Y=$X\nrun $X ${Y} ${Z:-2}", ["run", "1", "1", "2"]),
        ("A=(x y)\nA+=(z)\nrun ${A[@]}", ["run", "x", "y", "z"]),
        ("N=4\nM=$((N * 2))\nrun $M", ["run", "8"]),
        ("run a \\\n  b 2>&1 >log", ["run", "a", "b"]),
        ("for x in 1 2; do\n boom\ndone\nrun", ["run"]),
        ("f() {\n boom\n}\nrun", ["run"]),
    ],
)
def test_the_shell_is_read_as_bash_would(text, words):
    assert [word.text for word in shell_words.read(text).commands[-1]] == words


def test_the_verb_says_what_became_of_it_and_keeps_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "train.sh").write_text(SCRIPT)
    words = ["import", str(tmp_path / "train.sh")]
    assert main([*words, "--save-preset", "mine", "--output", str(tmp_path / "gptoss.toml")]) == 0
    shown = capsys.readouterr().out
    for head in ("understood (", "ignored (", "cannot be had here (6)"):
        assert head in shown
    assert find("mine").settings == imports.read([tmp_path / "train.sh"]).settings
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["settings"]["layout"]["pp"] == 16 and len(facts["impossible"]) == 6
    # The same as a start for the set-up, with an edit on top.
    assert main(["new", "--from", str(tmp_path / "train.sh"), "--no-input", "--json", "--set", "layout.pp=8"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"]["layout"]["pp"] == 8
    assert main(["import", str(tmp_path / "gone.sh")]) == 4


def test_nothing_found_leaves_the_defaults():
    assert imports.read_command_line("python pretrain_gpt.py").settings == Settings()
