"""Backdoor defenses, one file each; ``base`` holds what they share."""
