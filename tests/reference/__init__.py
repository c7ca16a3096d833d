"""Decoding as one would write it down: one row at a time, plain loops, slow and obvious.

Nothing here calls the package's loop, schedulers, policies or caches. `rules.py` says what to commit, `windows.py`
where, `caches.py` what is recomputed, `network.py` computes a transformer from its weights, and `decoding.py` puts them
together.
"""
