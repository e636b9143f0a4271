"""Checkpoints of every kind as named tensors that are read one at a time: opened without running anything in them, and
aligned with the base that they were fine-tuned from.

`checkpoint.open_checkpoint` opens one; `alignment.align` tells what of several belongs together.
"""
