"""Everything that exists for the embedded models only: their examples, tokenizers, objectives and training.

The registry and the command line import this room, and no other part of the package does. A user of the package who
has a model of their own never needs it.
"""
