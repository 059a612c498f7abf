"""The paper's six ablations at the size of one machine, and verdicts by a fixed rule."""
