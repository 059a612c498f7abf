"""Edit distances by hand and against a plain recursion."""

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from viq.metrics.text import character_errors, edit_distance


def plain(a: str, b: str) -> int:
    @cache
    def between(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        replaced = between(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(replaced, between(i - 1, j) + 1, between(i, j - 1) + 1)

    return between(len(a), len(b))


@given(a=st.text("abc", max_size=8), b=st.text("abc", max_size=8))
def test_edit_distance_is_that_of_the_definition(a: str, b: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == plain(a, b)


def test_edit_distance_by_hand() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == 3
    assert edit_distance(["a", "b"], ["b"]) == 1


def test_case_and_white_space_do_not_count_as_errors() -> None:
    assert character_errors("TOTAL\n 12.00 ", "total  12.00") == (0, 11)
    assert character_errors("tota1 12.00", "Total 12.00") == (1, 11)
    assert character_errors("anything", "") == (8, 0)
