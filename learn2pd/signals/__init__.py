"""Signals: tiny networks that answer a yes-or-no question at every position of a window, trained on a recording.

Three questions, one kind of network: is this proposal final (the filter, policies/filter.py), has the answer ended before this position
(the stop rule `learned`), does a step of the answer end here (the scheduler `adablock_learned`).
"""
