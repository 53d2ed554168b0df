"""How planning time grows with the number of GPUs, and how far predictions are from published rows.

Run as `python -m bench.planner`. Times are CPU time of one core, best of three.
"""

from __future__ import annotations

import statistics
import time

from engine.models import CATALOGUE, GPT_OSS_120B
from engine.plan import calibration, search, throughput
from engine.plan.calibration import Published
from engine.plan.cluster import named
from engine.plan.job import Job
from engine.plan.layout import Layout
from engine.plan.report import judge


def growth() -> None:
    """Print the time to search all layouts of 120b, and to answer with findings and alternatives."""
    print(f"{'GPUs':>7} {'layouts':>8} {'that fit':>9} {'search ms':>10} {'answer ms':>10}  chosen")
    for nodes in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048):
        cluster = named("H100", 8, nodes)
        job = Job(model=GPT_OSS_120B, global_batch=max(256, 4 * cluster.world_size))
        count = sum(1 for _ in search.layouts(job.model, cluster.world_size))
        found: list[search.Candidate] = []
        search_s = answer_s = float("inf")
        for _ in range(3):
            before = time.process_time()
            found = search.search(job, cluster, search.Space())
            search_s = min(search_s, time.process_time() - before)
            before = time.process_time()
            judge(job.model, gpu="H100", nodes=nodes, global_batch=job.global_batch)
            answer_s = min(answer_s, time.process_time() - before)
        chosen = str(search.choose(found).layout) if found else "nothing fits"
        times = f"{1e3 * search_s:10.0f} {1e3 * answer_s:10.0f}"
        print(f"{cluster.world_size:7,} {count:8,} {len(found):9,} {times}  {chosen}")


def predict(row: Published) -> float:
    """Tokens per second and GPU that the model says for a published row."""
    cluster = named(row.gpu, row.gpus_per_node, row.nodes)
    job = Job(
        model=CATALOGUE[row.model],
        goal=row.goal,
        sequence_length=row.sequence_length,
        micro_batch=row.micro_batch,
        global_batch=row.global_batch,
        precision=row.precision,
        gradient_precision=row.gradient_precision,
        recompute=frozenset(row.recompute),
    )
    dp = cluster.world_size // (row.tp * row.pp * row.cp)
    layout = Layout(tp=row.tp, pp=row.pp, cp=row.cp, ep=row.ep, dp=dp)
    return throughput.estimate(job, layout, cluster).tokens_per_s_per_gpu


def comparison() -> None:
    """Print every published row beside its prediction, as the table of docs/planning.md."""
    print("| row | published tokens/s/GPU | predicted | error | |\n|---|---|---|---|---|")
    errors: dict[bool, list[float]] = {True: [], False: []}
    for row in calibration.published():
        error = predict(row) / row.tokens_per_s_per_gpu - 1
        note = f"not counted: {row.excluded}" if row.excluded else "fitted" if row.fitted else ""
        print(f"| {row.name} | {row.tokens_per_s_per_gpu:,.0f} | {predict(row):,.0f} | {error:+.1%} | {note} |")
        if not row.excluded:
            errors[row.fitted].append(abs(error))
    every = errors[True] + errors[False]
    print(
        f"\nmedian absolute error: {statistics.median(every):.1%} over {len(every)} rows; "
        f"{statistics.median(errors[False]):.1%} over the {len(errors[False])} that nothing was fitted to"
    )


if __name__ == "__main__":
    growth()
    print()
    comparison()
