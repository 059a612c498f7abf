"""Tokenizers and codecs on the same pictures: `viq compare`."""
