"""What may be tuned, one file per defense: SPACE (Optuna distributions) and PAPER (the published point, trial 0).

PAPER is the point for CIFAR-10, complete: every setting of the defense, as its source states it, or as we take it where
the source is silent (docs/deviations.md). PAPER_FOR says for which other data sets the source states a point: name ->
what is different there, ``{}`` where nothing is. On all others the published point is CIFAR-10's, and is called so.

A file may also hold ``to_settings(params)`` and ``to_params(settings)`` where the searched parameters are not the
settings themselves, and ``VARIANTS``: further spaces by name.

Lengths are optimiser steps, and every space reaches as many as super-FT's longest schedule, `steps.LONGEST`; a method
that trains a new model on the whole training set counts epochs, see `trainables.defenses.base`.
"""
