"""The largest seed: a file of its own, so that commands know it without importing a spec."""

# Columns of a ledger are whole numbers of 64 bits.
LARGEST_SEED = 2**63 - 1
