"""Frozen-feature evaluation: how much of a labelling an encoder's features hold, against two baselines.

`evaluate.evaluate` computes the table; `command.main` wires it to a checkpoint and a set of shards.
"""
