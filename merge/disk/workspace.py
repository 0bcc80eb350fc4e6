"""A temporary folder that lives as long as the record that holds it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import final


@final
class Workspace:
    """A new folder under the system's temporary folder, removed when the last reference to this object goes.

    Attributes:
        folder: its path.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="merge-models-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
