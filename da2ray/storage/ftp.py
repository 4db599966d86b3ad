"""FTP through fsspec, which neither shares its one connection among threads nor says which folders may not be listed."""

import ftplib
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from da2ray.storage.fsspec import FsspecStore

T = TypeVar("T")


class FtpStore(FsspecStore):
    """An FTP server. Calls wait for each other. After a failed one the next one connects anew, since what the server sends next
    may belong to the failed call.
    """

    def __init__(self, url: str, retry_s: float | None = None) -> None:
        """See `FsspecStore`."""
        super().__init__(url, retry_s)
        self._one_call = threading.Lock()

    def __reduce__(self) -> "tuple[type[FtpStore], tuple[str, float]]":
        return FtpStore, (self.url, self._retry_s)

    def _call(self, key: str, call: Callable[[Any, str], T]) -> T:
        with self._one_call:
            try:
                return super()._call(key, call)
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    self._made = None
                raise

    def _entries(self, fs: Any, folder: str) -> Sequence[dict[str, Any]]:
        found = super()._entries(fs, folder)
        if not found:  # fsspec lists a folder that is refused as an empty one
            try:
                next(fs.ftp.mlsd(folder or "/"), None)
            except ftplib.error_perm as error:
                if str(error).startswith("550"):
                    raise PermissionError(str(error)) from None
        return found
