"""Data: pictures and conversations, from files or drawn here, ready for training."""
