"""The suites that every attack, defense, model, data set and sampler passes, ours and those of other packages.

A test file of two lines puts a class of yours under its suite ::

    import my_module  # registers it
    from superft.testing.attacks import AttackSuite

    class TestMine(AttackSuite):
        name = "mine"

Likewise ``DefenseSuite``, ``ModelSuite``, ``DataSuite`` and ``SamplerSuite``, each in the module of that name. Without
a file of your own, `superft.testing.options` runs them ::

    pytest --pyargs superft.testing --attack mine --plugin my_module

This is the only place of the package that imports pytest (the extra ``superft[testing]``).
"""
