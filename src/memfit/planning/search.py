"""The largest micro-batch that fits: pure arithmetic over a prediction that costs seconds, so it is asked seldom."""

from __future__ import annotations

from collections.abc import Callable

from memfit.records import Estimate


def sizes(batch_size: int) -> tuple[int, ...]:
    """The micro-batch sizes worth trying, largest first: near-equal parts, each about a quarter smaller than the one before.

    Example:
        >>> sizes(256)
        (128, 86, 64, 43, 32, 22, 16, 11, 8, 6, 4, 3, 2, 1)
    """
    tried: list[int] = []
    parts = 2
    while parts < batch_size:
        size = -(-batch_size // parts)
        if not tried or size < tried[-1]:
            tried.append(size)
        parts = parts * 3 // 2 if parts & (parts - 1) == 0 else _next_power_of_two(parts)
    if batch_size > 1 and (not tried or tried[-1] > 1):
        tried.append(1)
    return tuple(tried)


def _next_power_of_two(number: int) -> int:
    return 1 << number.bit_length()


def largest_micro_batch(
    batch_size: int,
    predict: Callable[[int], Estimate],
    ceiling: int,
    *,
    whole: Estimate,
    candidates: tuple[int, ...] | None = None,
) -> tuple[int | None, Estimate]:
    """The largest size whose predicted peak is within the ceiling.

    The peak grows with the size, close to a straight line; the search asks where the line through what it knows says that
    the ceiling lies, and closes in from both sides.

    Args:
        batch_size: Samples of a full batch.
        predict: The predicted peak for a micro-batch size; dear.
        ceiling: Bytes that the peak may reach, its margin included.
        whole: The prediction for the whole batch, which is above the ceiling.
        candidates: The sizes to choose from, largest first; ``sizes(batch_size)`` where left out.

    Returns:
        The size and its prediction; where not even the smallest fits, None and the prediction for the smallest (for the
        whole batch where there are no candidates).
    """
    candidates = sizes(batch_size) if candidates is None else candidates
    if not candidates:
        return None, whole
    fits: tuple[int, Estimate] | None = None
    above = [(batch_size, whole)]
    low, high = 0, len(candidates) - 1  # candidates[:low] are known not to fit, candidates[high + 1:] known to fit
    while low <= high:
        index = _guess(candidates[low : high + 1], ceiling, above=above, fits=fits)
        if index is None:
            break
        size = candidates[low + index]
        estimate = predict(size)
        if estimate.upper <= ceiling:
            fits = (size, estimate)
            high = low + index - 1
        else:
            above.append((size, estimate))
            low = low + index + 1
    return fits if fits is not None else (None, above[-1][1])


def _guess(
    candidates: tuple[int, ...],
    ceiling: int,
    *,
    above: list[tuple[int, Estimate]],
    fits: tuple[int, Estimate] | None,
) -> int | None:
    """The index to ask next; None where the line between a size that fits and one that does not says that none is left."""
    size, estimate = above[-1]
    if fits is not None:
        other, other_bytes = fits[0], fits[1].upper
    elif len(above) > 1:
        other, other_bytes = above[-2][0], above[-2][1].upper
    else:
        other, other_bytes = 0, estimate.upper // 8  # nothing is known yet of what does not grow with the size
    slope = max(1.0, (estimate.upper - other_bytes) / (size - other))
    target = size - (estimate.upper - ceiling) / slope
    for index, candidate in enumerate(candidates):
        if candidate <= target:
            return index
    return len(candidates) - 1 if fits is None else None
