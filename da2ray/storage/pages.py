"""Listing an object store in parallel, with the same result as listing it page by page.

A serial listing asks for one page of 1,000 keys after another. Here several stretches of the listing are read at once. To split a
stretch, a probe asks for the page after a text. If that page has keys, it is the first one of a new stretch, and the old stretch
ends where it begins.

Nothing is assumed of the store's order. A stretch is read until its pages reach past the text, and the key there must be the
first one of the next stretch: then both are parts of one serial listing, and they meet. If they do not, the next stretch is
dropped, and the old one goes on. So a store that ignores or refuses "start after" is listed serially.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

REQUESTS: Final = 16
"""Requests in flight at most."""
AHEAD_PAGES: Final = 50
"""Pages that a stretch reads before its turn comes: 16 stretches of 50,000 keys take 80 MB."""
SERIAL_PAGES: Final = 2
"""A listing of fewer pages is not worth a probe."""
WIDE: Final = 4
"""Pages that a split is ahead of the newest page, at least."""
NEAR_END: Final = 3
"""A character with fewer of its alphabet behind it is near the end."""
UNLUCKY: Final = 3
"""A place of the keys is not probed any more after so many probes that found nothing new, until FORGET_PAGES have come."""
FORGET_PAGES: Final = 200
MISMATCHES: Final = 3
"""After so many neighbours that do not meet, the rest is listed serially."""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer to a listing.

    Attributes:
        keys: whole keys in the store's order. A page in the middle may be empty.
        rows: the same keys as rows of LIST_SCHEMA, with keys as the caller wants them.
        token: asks for the next page; None at the end.
    """

    keys: Sequence[str]
    rows: pa.RecordBatch
    token: str | None


Ask = Callable[[str | None, str | None], Page]
"""Asks for a page: the one after a key (None for the first one), or the one of a token."""


@dataclass(slots=True, eq=False)
class _Stretch:
    """A part of the listing.

    Attributes:
        after: asked for after this text; None for the first stretch.
        first: its first key.
        end: the `after` of the next stretch; None for the last one.
        ceiling: no key lies between it and `end`.
        pages: rows that were read and not yet taken.
        last: the newest page.
        span: the first and the last key of the newest page that has keys.
        met: the first key beyond `end` in its pages; None before they reach so far.
        done: nothing is left to be asked for.
    """

    after: str | None = None
    first: str | None = None
    end: str | None = None
    ceiling: str | None = None
    pages: list[pa.RecordBatch] = field(default_factory=list)
    last: Page | None = None
    span: tuple[str, str] | None = None
    met: str | None = None
    done: bool = False
    asked: "Future[Page] | None" = None
    probes: "dict[Future[Page], str]" = field(default_factory=dict)
    error: Exception | None = None

    @property
    def next_page(self) -> tuple[str | None, str | None]:
        """What asks for its next page: `after` and a token."""
        return (self.after, None) if self.last is None else (None, self.last.token)

    @property
    def top(self) -> str | None:
        """No key of this stretch lies beyond it."""
        return min((each for each in (self.end, self.ceiling) if each is not None), default=None)


def list_pages(ask: Ask, prefix: str, requests: int = REQUESTS) -> Iterator[pa.RecordBatch]:
    """The rows of all pages, in the order of a serial listing.

    Args:
        ask: many threads may call it.
        prefix: all keys begin with it.
        requests: in flight at most. With 1 the listing is serial.
    """
    pool = ThreadPoolExecutor(requests, "list")
    try:
        yield from _Listing(ask, prefix, pool, requests).rows()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Listing:
    def __init__(self, ask: Ask, prefix: str, pool: ThreadPoolExecutor, requests: int) -> None:
        self._ask, self._prefix, self._pool, self._requests = ask, prefix, pool, requests
        self._stretches = [_Stretch()]
        self._may_split = requests > 1
        self._pages = self._mismatches = 0
        # By the length of a probe: what splits at this place of the keys have brought so far.
        self._luck: Counter[int] = Counter()

    def rows(self) -> Iterator[pa.RecordBatch]:
        while self._stretches:
            front = self._stretches[0]
            yield from front.pages
            front.pages.clear()
            if front.error:
                raise front.error
            if front.done:
                if self._meets_next():
                    self._stretches.pop(0)
                continue
            if len(self._stretches) == 1 and not front.asked and not front.probes and not self._splits:
                # In the caller's thread: Ctrl-C ends a store's retries.
                self._came(front, self._ask(*front.next_page))
                continue
            self._start()
            waiting = [future for each in self._stretches for future in (each.asked, *each.probes) if future]
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for stretch in list(self._stretches):
                if stretch.asked in finished:
                    self._page_came(stretch)
                for probe in [each for each in stretch.probes if each in finished]:
                    self._probe_came(stretch, probe, stretch.probes.pop(probe))

    @property
    def _splits(self) -> bool:
        return self._may_split and self._pages >= SERIAL_PAGES

    def _start(self) -> None:
        """Ask for the next pages, those that are needed first at first; and split stretches if requests are left over."""
        free = self._requests - sum(bool(each.asked) + len(each.probes) for each in self._stretches)
        for number, stretch in enumerate(self._stretches):
            if free <= 0:
                return
            waits = number > 0 and len(stretch.pages) >= AHEAD_PAGES
            if stretch.done or stretch.asked or stretch.error or waits:
                continue
            stretch.asked = self._pool.submit(self._ask, *stretch.next_page)
            free -= 1
        if not self._splits:
            return
        for stretch in self._stretches:
            if free <= 0:
                return
            if stretch.done or stretch.probes or stretch.error or not stretch.span:
                continue
            points = _split_points(stretch.span, stretch.top, len(self._prefix))
            points = [text for text in points if self._luck.get(len(text), 0) > -UNLUCKY]
            if len(points) > free:
                points = [points[number * len(points) // free] for number in range(free)]
            for text in points:
                stretch.probes[self._pool.submit(self._ask, text, None)] = text
                free -= 1

    def _page_came(self, stretch: _Stretch) -> None:
        future, stretch.asked = stretch.asked, None
        assert future is not None  # noqa: S101 - the caller saw it
        try:
            page = future.result()
        except Exception as error:  # noqa: BLE001 - raised when the turn of this stretch comes
            stretch.error = error
            return
        self._came(stretch, page)

    def _came(self, stretch: _Stretch, page: Page) -> None:
        self._pages += 1
        if self._pages % FORGET_PAGES == 0:
            self._luck.clear()
        self._take(stretch, page)

    def _take(self, stretch: _Stretch, page: Page) -> None:
        """Append a page to a stretch, up to the end of the stretch."""
        stretch.last = page
        if page.keys:
            stretch.first = stretch.first or page.keys[0]
            stretch.span = page.keys[0], page.keys[-1]
        end = stretch.end
        beyond = None if end is None else next((place for place, key in enumerate(page.keys) if key > end), None)
        stretch.pages.append(page.rows if beyond is None else page.rows.slice(0, beyond))
        if beyond is not None:
            stretch.met = page.keys[beyond]
        stretch.done = beyond is not None or page.token is None

    def _probe_came(self, stretch: _Stretch, future: "Future[Page]", text: str) -> None:
        """Split a stretch in front of a probe's page if the probe found keys in it."""
        try:
            page = future.result()
        except Exception:  # noqa: BLE001 - the listing itself meets an error that lasts
            self._may_split = False
            return
        if page.keys and min(page.keys) <= text:
            self._may_split = False  # "Start after" was ignored.
            return
        self._luck[len(text)] -= 1
        holder = self._holder(stretch, text)
        if holder is None or holder.done or not holder.span or holder.span[1] >= text:
            return  # The listing has come past it.
        if not page.keys and page.token is not None:
            return
        if not page.keys or (holder.end is not None and page.keys[0] > holder.end):
            holder.ceiling = text if holder.ceiling is None else min(text, holder.ceiling)
            return
        if not self._may_split:
            return
        new = _Stretch(after=text, end=holder.end, ceiling=holder.ceiling)
        holder.end, holder.ceiling = text, None
        self._stretches.insert(self._stretches.index(holder) + 1, new)
        self._luck[len(text)] += 3
        self._pages += 1
        self._take(new, page)

    def _holder(self, stretch: _Stretch, text: str) -> _Stretch | None:
        """The stretch that a text lies in: the given one, or one that was split off it since."""
        if stretch not in self._stretches:
            return None
        for each in self._stretches[self._stretches.index(stretch) :]:
            if each.end is None or text < each.end:
                return each if each.after is None or each.after < text else None
        return None

    def _meets_next(self) -> bool:
        """Whether the front stretch ended where the next one begins. If it did not, it takes the next one's place."""
        front = self._stretches[0]
        if len(self._stretches) == 1:
            return True
        following = self._stretches[1]
        if front.met is not None and front.met == following.first:
            return True
        self._mismatches += 1
        self._may_split = self._may_split and self._mismatches < MISMATCHES
        if front.met is None:  # The serial listing ends here.
            del self._stretches[1:]
            return True
        del self._stretches[1]
        page = front.last
        assert page is not None  # noqa: S101 - its keys met something
        beyond = page.keys.index(front.met)
        front.end, front.ceiling, front.met = following.end, following.ceiling, None
        rest = Page(page.keys[beyond:], page.rows.slice(beyond), page.token)
        self._take(front, rest)
        return False


def _split_points(span: tuple[str, str], top: str | None, start: int) -> list[str]:
    """Texts that may split what is left of a stretch, from the largest jump ahead to the smallest.

    Each is the newest key, cut after a character that is raised. A jump to what the next page begins with anyway would be no use:
    from 1999 the next thousand is one key away. So the character is raised by two if the one behind it is near the end of its
    alphabet. Where the first and last key of the newest page differ, it is raised by WIDE times their distance.

    Args:
        span: the first and the last key of its newest page.
        top: no key lies beyond it.
        start: the number of characters that all keys have in common.
    """
    first, last = span
    differ = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(last))
    raised = []
    for place in range(start, min(differ, len(last) - 1)):
        room = _room(last[place + 1])
        steps = 2 if room < NEAR_END else 1
        far = place < differ - 1 or room > WIDE  # The place before `differ` may jump only a few pages.
        if far and (steps == 1 or _room(last[place]) >= steps):
            raised.append(last[:place] + _raised(last[place], steps))
    if start <= differ < min(len(first), len(last)):
        steps = WIDE * max(1, ord(last[differ]) - ord(first[differ]))
        if _room(last[differ]) >= steps:
            raised.append(last[:differ] + _raised(last[differ], steps))
    return [text for text in raised if last < text and (top is None or text < top)]


def _room(char: str) -> int:
    """How many characters of the same alphabet come behind this one."""
    return next((ord(end) - ord(char) for begin, end in ("09", "az", "AZ") if begin <= char <= end), 0x10FFFF)


def _raised(char: str, by: int) -> str:
    code = min(ord(char) + by, 0x10FFFF)
    code += code == ord("/")  # obstore cuts a slash at the end
    return chr(0xE000 if 0xD800 <= code < 0xE000 else code)
