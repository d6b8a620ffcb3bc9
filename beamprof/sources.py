"""What made a number, beside the version: the sources themselves."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def sources_sha256(folders: Iterable[Path]) -> str:
    """Hash of all sources under these folders: 64 hexadecimal digits.

    A version alone would let an edited checkout mix old and new numbers.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((*folder.rglob("*.py"), *folder.rglob("*.toml"))):
            digest.update(f"{folder.name}/{path.relative_to(folder)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
