"""An append-only file where nothing can be appended to: one object per append, put together again on reading.

``trials.jsonl`` at a URI is the file's beginning, ``trials.jsonl.d/000000000012345`` what was appended when it had
12,345 bytes. An object is never rewritten: it is created exclusively, so that a driver that was believed dead cannot
write over its successor's. Now and then the beginning is put anew with all that there is, and the objects that it then
holds are removed; a driver killed between the two leaves objects that lie before the beginning's end, which readers
skip. A plain file that somebody copied there is such a beginning.
"""

from __future__ import annotations

from trainables.storage.remote import Remote, RemoteError

# Objects beside the beginning after which it is put anew: a study is then opened in one list and a few parallel reads.
MOST_SEGMENTS = 256
READ_TRIES = 4


class SegmentLog:
    """One append-only file at ``remote``.

    Args:
        name: of the file.
        salvage: what to do with objects behind a gap (one was deleted by hand): True reads them too, since each line
            stands for itself; False ends at the gap, since each line builds on those before.
    """

    def __init__(self, remote: Remote, name: str, *, salvage: bool) -> None:
        self.remote, self.name, self.salvage = remote, name, salvage
        self.length, self.segments, self.sound = 0, 0, True

    def read(self) -> bytes:
        """All that was appended so far; afterwards `append` goes on there.

        Raises:
            RemoteError: the storage cannot be read.
        """
        for last in (*[False] * (READ_TRIES - 1), True):
            content, sound = self._read()
            # Another process that is putting the beginning anew looks like a gap for a moment.
            if sound or last:
                break
        self.length, self.sound = len(content), sound
        return content

    def append(self, content: bytes) -> None:
        """Put one object. After a RemoteError the same content may be given again.

        Raises:
            RemoteError: it could not be put, or another process has appended here.
        """
        name = self._segment(self.length)
        if not self.remote.create(name, content) and self.remote.read(name) != content:
            raise RemoteError(f"{self.remote.uri}/{name}: another process has appended to this study")
        self.length += len(content)
        self.segments += 1

    def rewrite(self, content: bytes) -> None:
        """Put the whole file as its own beginning, and remove all other objects."""
        self.remote.write(self.name, content)
        self.length, self.segments, self.sound = len(content), 0, True
        self.remote.delete(list(self.remote.sizes(f"{self.name}.d")))

    @property
    def crowded(self) -> bool:
        """Whether it is time for a `rewrite`."""
        return self.segments >= MOST_SEGMENTS

    def newest(self) -> str:
        """Name of the object that was written last."""
        later = list(self.remote.sizes(f"{self.name}.d"))
        return later[-1] if later else self.name

    def exists(self) -> bool:
        """Whether anything was ever written."""
        return self.remote.read(self.name) is not None or bool(self.remote.sizes(f"{self.name}.d"))

    def _segment(self, offset: int) -> str:
        return f"{self.name}.d/{offset:015d}"

    def _read(self) -> tuple[bytes, bool]:
        parts, sound = [self.remote.read(self.name) or b""], True
        length = len(parts[0])
        starts = {name: name.rpartition("/")[2] for name in self.remote.sizes(f"{self.name}.d")}
        later = [name for name, start in starts.items() if start.isdigit() and int(start) >= length]
        self.segments = len(starts)
        for name, content in zip(later, self.remote.read_all(later), strict=True):
            if content is None or int(starts[name]) != length:
                sound = False
                if content is None or not self.salvage:
                    break
            parts.append(content)
            length = int(starts[name]) + len(content)
        return b"".join(parts), sound
