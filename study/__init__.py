"""A spec in, a front out. Knows Ray and Optuna; knows no attack or defense by name."""
