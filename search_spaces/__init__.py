"""What may be tuned, one file per defense: SPACE (Optuna distributions) and PAPER (the published point, trial 0).

A file may also hold ``to_settings(params)`` and ``to_params(settings)`` where the searched parameters are not the
settings themselves, and ``VARIANTS``: further spaces by name.
"""
