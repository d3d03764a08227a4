"""Differential privacy for PyTorch: clipping, noise, sampling, accounting, ledger, report, audit.

The ground floor of the house: it knows tensors and modules, and nothing of the model that is trained with it.
"""
