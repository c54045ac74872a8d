"""The toy task of the shipped suites, under the name that our own tests know it by."""

from superft.testing.toy import AFFORDABLE, ENCODER, SHAPES, toy_dataset, toy_spec

__all__ = ["AFFORDABLE", "ENCODER", "SHAPES", "toy_dataset", "toy_spec"]
