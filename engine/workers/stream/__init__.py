"""Conversion tensor by tensor: never more than a few experts in memory, whatever the model's size.

Hugging Face checkpoints become the Megatron checkpoint that Megatron-Bridge would write, and the
other way round. Needs torch and numpy, no Megatron and no GPU.
"""
