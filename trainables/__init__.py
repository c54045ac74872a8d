"""One trial: attack, defend, measure. Needs PyTorch only; ``tune.py`` alone knows Ray."""
