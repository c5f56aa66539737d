"""Translate unpaired 3D volumes between two modalities and segment both, with six networks trained together.

The names of `__init__.pyi` are loaded when one is first used: `import cssgan` by itself imports no PyTorch.
"""
import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
