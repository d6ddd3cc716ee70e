"""The interface of the old ``sru`` package, computed by this package's kernels.

Code written for ``sru`` runs with one line changed, ``import sru_asr.compat as sru``, or with none
after ``sru_asr.compat.install()``, which answers for ``import sru`` from then on. `SRU` and
`SRUCell` are those of version 2.6, the last release (`sru_asr.compat.sru2`); `SRUpp` and
`SRUppCell` those of 3.0-dev, whose `SRU` and `SRUCell` are other ones (`sru_asr.compat.sru3`).

Lei et al., "Simple Recurrent Units for Highly Parallelizable Recurrence", EMNLP 2018; Lei, "When
Attention Meets Fast Recurrence", EMNLP 2021; https://github.com/asappresearch/sru
"""

import sys
from types import ModuleType

from sru_asr.compat import sru2, sru3
from sru_asr.compat.sru2 import SRU, SRUCell, __version__
from sru_asr.compat.sru3 import SRUpp, SRUppCell

__all__ = ["SRU", "SRUCell", "SRUpp", "SRUppCell", "__version__", "install"]

_INTERFACES = {"2.6": sru2, "3.0-dev": sru3}


def install(version: str = "2.6") -> ModuleType:
    """Answer for ``import sru`` in this process, in place of the old package.

    Parameters
    ----------
    version : {"2.6", "3.0-dev"}
        Whose interface.

    Returns
    -------
    module
        What ``import sru`` gives from now on, with its submodules ``modules`` and ``version``.

    Raises
    ------
    ValueError
        When there is no such interface.
    RuntimeError
        When the old package, or this one's other interface, has been imported as ``sru`` already.

    Examples
    --------
    >>> import sru_asr.compat
    >>> sru_asr.compat.install()  # doctest: +SKIP
    >>> import sru                # doctest: +SKIP
    """
    if version not in _INTERFACES:
        raise ValueError(f"version must be one of {', '.join(_INTERFACES)}, got {version!r}")
    modules = _INTERFACES[version]
    there = sys.modules.get("sru")
    if there is not None:
        if getattr(there, "modules", None) is modules:
            return there
        raise RuntimeError(
            f"sru has been imported already, {there!r} of version {there.__version__}: call "
            f"sru_asr.compat.install({version!r}) before anything imports sru"
        )
    package, its_version = ModuleType("sru", modules.__doc__), ModuleType("sru.version")
    vars(its_version)["__version__"] = modules.__version__
    # A package, by its path, whose submodules are those below and no others.
    vars(package).update(__path__=[], __all__=modules.__all__, modules=modules, version=its_version)
    vars(package).update({name: getattr(modules, name) for name in modules.__all__})
    sys.modules.update({"sru": package, "sru.modules": modules, "sru.version": its_version})
    return package
