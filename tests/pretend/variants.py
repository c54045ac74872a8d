"""Settings under which a step of an attack takes another way than by default: name -> (attack, settings)."""

from typing import Any

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "wanet, moved": ("wanet", {"augmentation": "sample"}),
    "latent, transfer": ("latent", {"form": "transfer"}),
    "sbl, anchoring, warped": ("sbl", {"variant": "anchoring", "trigger": "wanet"}),
}
