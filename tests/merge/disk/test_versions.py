import importlib.metadata

import pytest

from merge.disk.versions import installed_version


def test_a_version_is_what_the_package_says_of_itself() -> None:
    import numpy

    assert installed_version("numpy") == numpy.__version__
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        installed_version("no-such-package")
