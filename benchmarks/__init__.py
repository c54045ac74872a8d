"""Speed, apart from tests: each benchmark measures both sides in one run and appends a JSON row to results/."""
