"""Conversion tensor by tensor: never more than a few experts in memory, whatever the model's size.

Hugging Face checkpoints become the Megatron checkpoint that Megatron-Bridge would write, and the
other way round. Needs numpy, no torch but for adapters and logits, no Megatron and no GPU.
"""
