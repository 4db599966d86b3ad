"""FTP through fsspec, which shares one connection among threads, takes closed folders for empty ones, and links for files."""

import contextlib
import ftplib
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from da2ray.storage.base import Fetched, check_length
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

    def _whole(self, fs: Any, path: str, uri: str) -> Fetched:
        # fsspec's own `info` lists the whole folder, and gives a link's size for a file that it leads to.
        size = _size(fs, path)
        data = bytes(fs.cat_file(path))
        return Fetched(data if size is None else check_length(uri, data, size), None)

    def _entries(self, fs: Any, folder: str) -> Sequence[dict[str, Any]]:
        found = super()._entries(fs, folder)
        if not found:
            try:
                fs.ftp.dir(folder or "/", lambda _: None)
            except ftplib.error_perm as error:
                if str(error).startswith("550"):
                    raise PermissionError(str(error)) from None
        for entry in found:
            # Servers without MLSD, such as vsftpd, say that it is a link, but not to what.
            if entry.get("unix.mode", "").startswith("l"):
                entry.update(_target(fs, entry))
        return found


def _target(fs: Any, link: dict[str, Any]) -> dict[str, Any]:
    """What is known of the file or the folder that a link leads to; nothing if there is none."""
    try:
        fs.ftp.cwd(link["name"])
    except ftplib.error_perm:
        with contextlib.suppress(FileNotFoundError):
            size = _size(fs, link["name"])
            return {} if size is None else {"size": size}
        return {}
    return {"type": "directory", "islink": True}


def _size(fs: Any, path: str) -> int | None:
    """The size of a file; None if the server does not tell.

    Raises:
        FileNotFoundError: it is not a file.
    """
    fs.ftp.voidcmd("TYPE I")  # servers refuse SIZE for text
    try:
        size: int | None = fs.ftp.size(path)
    except ftplib.error_perm as error:
        if str(error).startswith("550"):
            raise FileNotFoundError(path) from None
        return None
    return size
