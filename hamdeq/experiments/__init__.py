"""Experiments, each in a folder of its own, and the examples whose configurations they compare.

``python -m hamdeq.experiments`` lists the experiments.
"""
