"""Examples by index, from rows or synthetic; a tenth held out."""
