"""Packages: integer tensors, and all the engine must know of them, as files (docs/FORMAT.md)."""

from host.package.config import PackageConfig
from host.package.facts import (
    FileEntry,
    ModelFacts,
    Scale,
    TensorEntry,
    check_facts,
)
from host.package.layout import DType
from host.package.reader import Package
from host.package.writer import PackageWriter, is_only_package

__all__ = [
    "DType",
    "FileEntry",
    "ModelFacts",
    "Package",
    "PackageConfig",
    "PackageWriter",
    "Scale",
    "TensorEntry",
    "check_facts",
    "is_only_package",
]
