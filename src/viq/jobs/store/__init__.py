"""Jobs on stores: lint, merge, export, statistics, near-duplicates."""
