"""superft: hyper-parameter studies of backdoor defenses."""
