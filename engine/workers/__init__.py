"""The processes that train. The only place that imports torch, Megatron and transformers.

Nothing imports a worker: it is started as `python -m engine.workers.NAME RUN_DIR`.
"""
