"""What is measured on a machine with one GPU within some minutes (`scripts/gpu_day.py`)."""
