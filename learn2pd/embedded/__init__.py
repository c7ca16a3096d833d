"""Everything that exists for the embedded models only: what they learn from, their tokenizers, objectives and training.

The registry and the command line import this room and nothing else does; a user of the package with a model of their own never needs it.
"""
