"""Hooks of mkdocs: the README is the first page, and links to files outside docs/ lead to the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Any, config: Any) -> Any:
    """Add the README as index.md."""
    from mkdocs.structure.files import File

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=re.sub(r"\]\(docs/", "](", text)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Turn a link to a file that is no page of the site into its address in the repository."""
    folder = (ROOT / "docs" / page.file.src_uri).parent
    here = ROOT if page.file.src_uri == "index.md" else folder

    def whole(match: re.Match[str]) -> str:
        target = match[1]
        path, _, _ = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return match[0]
        if files.get_file_from_path((folder / path).resolve().relative_to(ROOT / "docs").as_posix()
                                    if (folder / path).resolve().is_relative_to(ROOT / "docs") else path):
            return match[0]
        return f"]({config.repo_url}/blob/main/{(here / path).resolve().relative_to(ROOT).as_posix()})"

    return re.sub(r"\]\(([^)\s]+)\)", whole, markdown)
