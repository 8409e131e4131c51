"""The wheel that `make wheel` builds runs on distributions older than the machine that built it."""

import os
import platform
import re
import zipfile
from pathlib import Path

import pytest
from support import missing

OLDEST_GLIBC = (2, 28)

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or platform.machine() not in ("x86_64", "aarch64"),
    reason="the wheel is built for an older glibc on x86_64 and aarch64 only",
)


@pytest.fixture(scope="module")
def wheel() -> Path:
    path = os.environ.get("TANTOR_WHEEL")
    if not path:
        missing("TANTOR_WHEEL, the path of a wheel that `make wheel` built,")
    return Path(path)


@pytest.fixture(scope="module")
def library(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read("tantor/_tantor.abi3.so")


def test_pip_installs_the_wheel_where_glibc_is_2_28(wheel: Path) -> None:
    tags = [(int(major), int(minor)) for major, minor in re.findall(r"manylinux_(\d+)_(\d+)_", wheel.name)]

    assert tags, f"{wheel.name} names no version of glibc"
    assert min(tags) <= OLDEST_GLIBC, f"{wheel.name} wants glibc {min(tags)}"


def test_the_library_needs_no_symbol_newer_than_glibc_2_28(library: bytes) -> None:
    # the dynamic string table holds the versions of symbols as text
    versions = {(int(major), int(minor)) for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)", library)}

    assert versions
    assert max(versions) <= OLDEST_GLIBC


def test_the_library_uses_the_unwinder_that_pthread_exit_uses(library: bytes) -> None:
    assert b"\0libgcc_s.so.1\0" in library
