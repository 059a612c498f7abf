"""The normal form in which answers to TextVQA and SimpleVQA are compared.

That of the evaluation server of VQA (EvalAI), step by step as lmms-eval 0.7.3 has it. Two of the
steps are not what their authors meant, and stay: at most 32 full stops are removed, and
contractions with capitals never match, as the text is lower-cased before.
"""

from __future__ import annotations

import re

# "written without or with a wrong apostrophe" and what it becomes.
_PAIRS = """
    aint ain't, arent aren't, cant can't, couldve could've, couldnt couldn't,
    couldn'tve couldn't've, couldnt've couldn't've, didnt didn't, doesnt doesn't, dont don't,
    hadnt hadn't, hadnt've hadn't've, hadn'tve hadn't've, hasnt hasn't, havent haven't,
    hed he'd, hed've he'd've, he'dve he'd've, hes he's, howd how'd, howll how'll, hows how's,
    Id've I'd've, I'dve I'd've, Im I'm, Ive I've, isnt isn't, itd it'd, itd've it'd've,
    it'dve it'd've, itll it'll, let's let's, maam ma'am, mightnt mightn't,
    mightnt've mightn't've, mightn'tve mightn't've, mightve might've, mustnt mustn't,
    mustve must've, neednt needn't, notve not've, oclock o'clock, oughtnt oughtn't,
    ow's'at 'ow's'at, 'ows'at 'ow's'at, 'ow'sat 'ow's'at, shant shan't, shed've she'd've,
    she'dve she'd've, she's she's, shouldve should've, shouldnt shouldn't,
    shouldnt've shouldn't've, shouldn'tve shouldn't've, somebody'd somebodyd,
    somebodyd've somebody'd've, somebody'dve somebody'd've, somebodyll somebody'll,
    somebodys somebody's, someoned someone'd, someoned've someone'd've,
    someone'dve someone'd've, someonell someone'll, someones someone's, somethingd something'd,
    somethingd've something'd've, something'dve something'd've, somethingll something'll,
    thats that's, thered there'd, thered've there'd've, there'dve there'd've, therere there're,
    theres there's, theyd they'd, theyd've they'd've, they'dve they'd've, theyll they'll,
    theyre they're, theyve they've, twas 'twas, wasnt wasn't, wed've we'd've, we'dve we'd've,
    weve we've, werent weren't, whatll what'll, whatre what're, whats what's, whatve what've,
    whens when's, whered where'd, wheres where's, whereve where've, whod who'd,
    whod've who'd've, who'dve who'd've, wholl who'll, whos who's, whove who've, whyll why'll,
    whyre why're, whys why's, wont won't, wouldve would've, wouldnt wouldn't,
    wouldnt've wouldn't've, wouldn'tve wouldn't've, yall y'all, yall'll y'all'll,
    y'allll y'all'll, yall'd've y'all'd've, y'alld've y'all'd've, y'all'dve y'all'd've,
    youd you'd, youd've you'd've, you'dve you'd've, youll you'll, youre you're, youve you've
"""
_CONTRACTIONS = {wrong: right for wrong, right in map(str.split, _PAIRS.split(","))}
_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_WORDS.split())}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = r""";/[]"{}()=+\_-><@`,?!"""
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS = 32  # removed at most: a flag of `re` once passed as a count


def normal_form(text: str) -> str:
    """The text in lower case without punctuation and articles, numbers up to ten as digits."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return " ".join(map(_mended, _kept(_without_punctuation(text))))


def _without_punctuation(text: str) -> str:
    """Each mark goes where it stands beside a space anywhere in the text, else becomes a space."""
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    found = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside_space or has_number else " ")
    return _FULL_STOP.sub("", found, count=_FULL_STOPS)


def _kept(text: str) -> list[str]:
    """Words but articles, numbers as digits."""
    words = (_NUMBERS.get(word, word) for word in text.split())
    return [word for word in words if word not in _ARTICLES]


def _mended(word: str) -> str:
    return _CONTRACTIONS.get(word, word)
