"""What ships with superft, by name: victims and shared results of these are kept under settings alone.

Their code changes only together with `victims.SCHEMA`. Anything else, a plug-in as well as a file that somebody put
into one of our folders, may change from one run to the next, so its source is part of the key. A method of ours that is
not named here yet works like that too, until it is released.
"""

from __future__ import annotations

RELEASED: dict[str, frozenset[str]] = {
    "attack": frozenset(
        (
            *("adap_blend", "badencoder", "badnets", "blended", "clean", "clean_encoder", "clean_wanet", "grond"),
            *("handcrafted", "imc", "inputaware", "latent", "lf", "sbl", "sig", "wanet"),
        )
    ),
    "defense": frozenset(
        (
            *("abl", "ac", "anp", "awm", "clp", "d3", "fp", "fst", "ft", "ft_sam", "ibau", "nad", "nc", "nft"),
            *("none", "pam", "rnp", "sau", "scratch", "spectral", "super_ft"),
        )
    ),
    "model": frozenset(
        (
            *("airbench_cnn", "convnext_tiny", "densenet121", "encoder_resnet18", "mobilenet_v2", "preact_resnet18"),
            *("resnet18", "resnet34", "vgg19_bn", "vit_small"),
        )
    ),
    "dataset": frozenset(("cifar10", "cifar100", "digits", "gtsrb", "stl10", "svhn", "tiny_imagenet")),
    "sampler": frozenset(("gp", "nsga2", "qmc", "random", "tpe")),
    "tracking tool": frozenset(("mlflow", "tensorboard", "wandb")),
}
