"""Generated pictures against their captions."""
