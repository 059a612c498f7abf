"""The errors of the project. All are one line: what, where, how to mend."""


class ViqError(ValueError):
    """Something is wrong with what the user gave. One line: what, where, how to mend."""


class Stopped(ViqError):
    """Asked to stop: what was done is saved, and the same command goes on."""


class CodesError(ViqError):
    """Codes that are damaged, inconsistent, or made by another tokenizer. One line."""
