"""The settings that say where and how the steps are started."""

from __future__ import annotations

from dataclasses import dataclass

from engine.options import option


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSettings:
    launcher: str = option(
        "local",
        help="How the steps are started.",
        why="`local` is torchrun on this machine, `container` the same inside docker or podman, `slurm` a batch job "
        "for each step, and `ssh` torchrun on every host of machine.hosts. All run the same workers on the same files.",
        choices=("local", "container", "slurm", "ssh"),
    )
    route: str = option(
        "bridge",
        help="What trains: Megatron-Bridge, or a Megatron-LM checkout in one of two ways.",
        why="Only what Bridge trains can be exported to Hugging Face. `tutorial` runs examples/gptoss/02_train.sh "
        "unchanged, which trains a toy; `megatron-lm` runs pretrain_gpt.py with the flags of the real gpt-oss.",
        choices=("bridge", "tutorial", "megatron-lm"),
        advanced=True,
    )
    megatron_lm: str = option(
        "",
        help="Directory of the Megatron-LM checkout, for the routes `tutorial` and `megatron-lm`.",
        why="The tutorial's scripts live there: git clone https://github.com/NVIDIA/Megatron-LM.git",
        native="HOST_MEGATRON_LM_DIR",
        advanced=True,
    )
    env_file: str = option(
        "",
        help="An existing distributed_config.env whose comments and further keys the run keeps.",
        why="A cluster's own NCCL settings then reach every step. bash sources the file: whatever it would execute is "
        "refused.",
        native="--distributed-config-file",
        advanced=True,
    )
    image: str = option(
        "",
        help="The container image; empty means NVIDIA's for the chosen route.",
        why="It must hold torch, Megatron and, on GPUs, TransformerEngine: nvcr.io/nvidia/nemo for Bridge, "
        "nvcr.io/nvidia/pytorch for the tutorial.",
        native="PYTORCH_IMAGE",
    )
    runtime: str = option(
        "auto",
        help="The program that starts containers; `auto` takes docker when its engine answers, else podman.",
        why="For Slurm, pyxis and apptainer start the image inside the job; `auto` means none there.",
        choices=("auto", "docker", "podman", "pyxis", "apptainer"),
        advanced=True,
    )
    mounts: str = option(
        "",
        help="Further directories for the container: SOURCE:TARGET or SOURCE:TARGET:ro, separated by commas.",
        why="The run, the data, the model and the Hugging Face cache are mounted anyway, under the same paths.",
        native="docker run -v",
        advanced=True,
    )
    container_options: str = option(
        "",
        help="Further docker or podman options as they are typed, for example --ulimit nofile=65536:65536.",
        why="They come last, so that they win over those that gptoss gives.",
        native="docker run",
        advanced=True,
    )
    partition: str = option(
        "", help="Slurm partition; empty means the cluster's default.", native="#SBATCH --partition"
    )
    account: str = option(
        "", help="Slurm account that is charged; empty means your default.", native="#SBATCH --account", advanced=True
    )
    qos: str = option("", help="Slurm quality of service.", native="#SBATCH --qos", advanced=True)
    time_limit: str = option(
        "",
        help="Time limit of each Slurm job, as D-HH:MM:SS, HH:MM:SS or minutes; empty means the partition's.",
        why="launch.grace_s before it ends the training saves a checkpoint and the job goes back into the queue.",
        native="#SBATCH --time",
    )
    mail: str = option(
        "",
        help="Address to which Slurm writes when a job begins, ends or fails.",
        native="#SBATCH --mail-user",
        advanced=True,
    )
    slurm_options: str = option(
        "",
        help="Further sbatch options as they are typed, for example --constraint=h100 --exclude=node07.",
        native="#SBATCH",
        advanced=True,
    )
    requeue: bool = option(
        True,
        help="Put a Slurm job back into the queue when its time limit or its node ends it.",
        why="It then goes on from its last checkpoint without anybody watching.",
        native="#SBATCH --requeue",
        advanced=True,
    )
    python: str = option(
        "",
        is_path=True,
        help="The Python that runs the workers; empty means the one that runs gptoss.",
        why="Name another one when torch and Megatron live in another environment.",
        advanced=True,
    )
    cpu_affinity: str = option(
        "auto",
        help="Whether each rank stays on the processor cores beside its GPU.",
        why="On a machine with several sockets, data and checkpoints then never cross from one to the other. "
        "`auto` does nothing where the machine does not say which cores those are. For the route bridge.",
        choices=("auto", "off"),
        advanced=True,
    )
    master_addr: str = option(
        "localhost",
        help="Name or address of the first node.",
        why="Every node must reach it.",
        native="MASTER_ADDR",
        advanced=True,
    )
    master_port: int = option(
        0,
        help="Port of the rendezvous on the first node; 0 means a free one.",
        minimum=0,
        maximum=65535,
        native="MASTER_PORT",
        advanced=True,
    )
    node_rank: int = option(
        0,
        help="This machine's number among the nodes.",
        minimum=0,
        maximum=4095,
        native="NODE_RANK",
        advanced=True,
    )
    grace_s: int = option(
        300,
        help="How long a stopping run may take to save its checkpoint before it is ended.",
        why="A 120b checkpoint is 1.6 TB: leave time to write it.",
        unit="s",
        minimum=1,
        maximum=86_400,
        advanced=True,
    )
    restarts: int = option(
        2,
        help="How often in a row a failed step is started again without coming further than before.",
        why="Nodes fail; bad settings fail every time, so the number is capped. Training goes on from its last "
        "checkpoint, and a newer one than last time begins the count anew.",
        minimum=0,
        maximum=100,
        advanced=True,
    )
    restart_wait_s: float = option(
        10.0,
        help="How long to wait before the first restart; the wait doubles with each further one.",
        unit="s",
        minimum=0,
        maximum=3600,
        advanced=True,
    )
    hang_s: int = option(
        1800,
        help="How long a step may show no sign of life before it is taken for hung and started again; 0 for ever.",
        why="A rank that waits for a lost one waits for ever. Where each rank stands is saved first, as rank-K.stacks. "
        "Iterations, evaluations and saves that usually take long are given ten times their usual pause.",
        unit="s",
        minimum=0,
        maximum=86_400,
        advanced=True,
    )
