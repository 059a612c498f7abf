"""Demo: what the codes keep of a picture, to look at."""
