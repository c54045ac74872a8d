"""What prunes by masks leaves of its victim: the same claim for every such defense."""

from trainables.defenses.base import Repair
from trainables.models.channels import batch_norms
from trainables.models.classifier import Classifier


def assert_only_pruned_gammas_changed(model: Classifier, victim: Classifier, found: Repair) -> None:
    """Some gammas, not all, are zero, as many as the repair says; every other value is the victim's."""
    original, changed = victim.state_dict(), 0
    for key, tensor in model.state_dict().items():
        moved = tensor != original[key]
        assert not moved.any() or key.removesuffix(".weight") in batch_norms(model), key
        assert not tensor[moved].any()
        changed += int(moved.sum())
    assert 0 < changed == found.notes["pruned"] < found.notes["channels"]
