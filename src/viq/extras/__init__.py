"""Beside the house: parts that need optional libraries or serve another project's formats."""
