"""Jobs on stores of codes: check, describe, compare, merge, export, look at, find duplicates."""
