"""Where in a completion its final answer stands, found with nothing but the function that reads the answer."""

from collections.abc import Callable, Sequence


def answer_span(ids: Sequence[int], decode: Callable[[Sequence[int]], str], answer: Callable[[str], str]) -> range:
    """Places of the tokens in the shortest end of a completion that has its answer, less what follows the answer.

    Whatever is cut off in front changes the answer only once the cut is in it, so a dozen readings find the place.
    Empty where nothing is read, which every shorter text has in common.
    """
    whole = answer(decode(ids))

    def same(start: int, end: int) -> bool:
        return answer(decode(ids[start:end])) == whole

    low, high = 0, len(ids)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if same(middle, len(ids)) else (low, middle - 1)
    start, (low, high) = low, (low, len(ids))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if same(start, middle) else (middle + 1, high)
    return range(start, low)
