"""The history of a run's progress: a bounded series, so that a report can draw a run of any length."""

from datetime import datetime

MOST_POINTS = 240
"""One point for about four pixels of a drawn line: 10 kB of JSON, rewritten every few seconds."""


class History:
    """Points (UTC time, images done). Every second one is dropped whenever there are too many; the first one is always kept.

    So points are spread evenly over the run: a run of a week has one for each 42 to 84 minutes.

    Args:
        spacing: at first, the least seconds between two points.
    """

    def __init__(self, spacing: float, most: int = MOST_POINTS) -> None:
        self._spacing = spacing
        self._most = most
        self._points: list[tuple[datetime, int]] = []
        self._last: tuple[datetime, int] | None = None

    def add(self, now: datetime, done: int) -> None:
        """Add the images done at `now`. If the clock was set back, the point is left out."""
        if self._last and now < self._last[0]:
            return
        self._last = (now, done)
        if self._points and (now - self._points[-1][0]).total_seconds() < self._spacing:
            return
        self._points.append(self._last)
        while len(self._points) >= self._most:
            self._points = self._points[::2]
            self._spacing *= 2

    def points(self) -> tuple[tuple[datetime, int], ...]:
        """At most `most` points, the newest last."""
        newest = [self._last] if self._last and self._last != self._points[-1] else []
        return (*self._points, *newest)
