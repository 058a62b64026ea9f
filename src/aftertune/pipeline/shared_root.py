"""Keeps the fine-tunes of a study in a place that all workers share: a mounted folder, or an address that fsspec knows.

    root = SharedRoot.of("s3://bucket/runs", "orders")
    folder = root.folder("careful")         where this machine writes it: in the mounted folder, or in the cache
    root.store("careful")                   uploads the finished fine-tune; nothing for a mounted folder
    root.fetch("careful")                   downloads it, unless this machine has the same one

A fine-tune is complete where its manifest is: it is written last and read first.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from aftertune.errors import InputError, StorageError
from aftertune.redaction import redact
from aftertune.sources.cache import cache_root, remove_path, temporary_path
from aftertune.tuning.output import MANIFEST
from aftertune.values import digest


@dataclass(frozen=True, slots=True)
class SharedRoot:
    """A root. place: the folder here that has a folder for each fine-tune; files, path: fsspec's file system and the
    place in it, None where all machines see ``place``."""

    place: Path
    files: Any = None
    path: str = ""

    @classmethod
    def of(cls, url: str, study: str) -> SharedRoot:
        """The root at a folder or an address. Raises InputError for an address that no installed library opens."""
        if "://" not in url:
            return cls(Path(url).expanduser().absolute() / study / "tunings")
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        try:
            files, path = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InputError(f"--root {redact(url)}: cannot be opened ({redact(str(error))[:200]}); give a folder that "
                             "all nodes mount, or an address whose library is installed, such as s3:// with s3fs"
                             ) from None
        if isinstance(files, LocalFileSystem):
            return cls(Path(path) / study / "tunings")
        here = cache_root() / "roots" / digest(url)[:16] / study / "tunings"
        return cls(here, files, f"{path.rstrip('/')}/{study}/tunings")

    def folder(self, name: str) -> Path:
        """The folder of a fine-tune on this machine."""
        return self.place / name

    def store(self, name: str) -> None:
        """Upload a finished fine-tune, the manifest last, unless the same one is there. Raises StorageError."""
        if self.files is None:
            return
        folder, there = self.folder(name), f"{self.path}/{name}"
        with self._errors(there):
            if self._manifest(there) == (folder / MANIFEST).read_bytes():
                return
            if self.files.exists(f"{there}/{MANIFEST}"):
                self.files.rm_file(f"{there}/{MANIFEST}")  # first, so that the rest is not taken for complete
            if self.files.exists(there):
                self.files.rm(there, recursive=True)
            paths = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p == folder / MANIFEST)
            for path in paths:
                target = f"{there}/{path.relative_to(folder).as_posix()}"
                self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
                self.files.put_file(str(path), target)

    def fetch(self, name: str) -> Path:
        """The folder of a finished fine-tune on this machine, downloaded where it is missing or another one. Raises
        StorageError."""
        folder, there = self.folder(name), f"{self.path}/{name}"
        if self.files is None:
            return folder
        with self._errors(there):
            manifest = self._manifest(there)
            if manifest is None or _has(folder, manifest):
                return folder  # not stored yet, or not finished; or the same one
            folder.parent.mkdir(parents=True, exist_ok=True)
            loaded = temporary_path(folder)  # another worker of this machine may download it, too
            try:
                self._download(there, loaded)
                (loaded / MANIFEST).write_bytes(manifest)
                if not _has(folder, manifest):
                    remove_path(folder)
                    try:
                        loaded.rename(folder)
                    except OSError:
                        if not _has(folder, manifest):
                            raise
            finally:
                remove_path(loaded)
        return folder

    def _manifest(self, there: str) -> bytes | None:
        """The manifest of a fine-tune that is stored there completely; None without one."""
        self.files.invalidate_cache()  # other machines write there too
        path = f"{there}/{MANIFEST}"
        return bytes(self.files.cat_file(path)) if self.files.exists(path) else None

    def _download(self, there: str, to: Path) -> None:
        """Download the files of a fine-tune, without its manifest, to a new folder."""
        to.mkdir()
        start = f"{str(self.files._strip_protocol(there)).rstrip('/')}/"
        for path in self.files.find(there):
            relative = PurePosixPath(str(path).removeprefix(start))
            if str(relative) == MANIFEST:
                continue
            if relative.is_absolute() or ".." in relative.parts:
                raise ValueError(f"{relative} is not in the folder of the fine-tune")
            (to / relative).parent.mkdir(parents=True, exist_ok=True)
            self.files.get_file(path, str(to / relative))

    @contextlib.contextmanager
    def _errors(self, there: str) -> Any:
        try:
            yield
        except Exception as error:  # libraries of file systems raise errors of their own
            raise StorageError(f"--root: {redact(there)} cannot be read or written ({type(error).__name__}: "
                               f"{redact(str(error))[:200]}); check the address and its permissions, then run the same "
                               "command again") from None


def _has(folder: Path, manifest: bytes) -> bool:
    """Whether a folder has this fine-tune."""
    return (folder / MANIFEST).is_file() and (folder / MANIFEST).read_bytes() == manifest
