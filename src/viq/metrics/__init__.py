"""Figures about pictures, codes, answers and runs. numpy alone."""
