"""A small language model trained on real prose: `python -m mithril_opt.demo`.

`train.py` holds the part to copy: the optimizer, the jitted step and the loop.
"""
