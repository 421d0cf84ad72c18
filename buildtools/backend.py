"""The build backend: setuptools', and an answer to the question which torch to build against.

ATen has no stable ABI, so the kernels are compiled against the torch that they will run with. If
`build-system.requires` named torch, pip would download another one (gigabytes) for its isolated
build. So the build uses the torch of the environment that is installed into, and asks for one only
where there is none.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import checks

checks.check_python()

from setuptools import build_meta  # noqa: E402  (setuptools may be too new for an old Python)

build_sdist = build_meta.build_sdist
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable

Settings = dict[str, Any] | None


def target_path() -> list[str]:
    """sys.path of the environment that is installed into.

    pip runs an isolated build with that environment's interpreter, and hides its packages by way
    of PYTHONPATH. (uv and `build` make an environment of their own: no way leads from there to the
    target.)
    """
    isolation = ("PYTHONPATH", "PYTHONNOUSERSITE")
    env = {key: value for key, value in os.environ.items() if key not in isolation}
    command = [sys.executable, "-P", "-c", "import json, sys; print(json.dumps(sys.path))"]
    output = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])  # a .pth file may have printed something before


def find_torch(path: list[str]) -> importlib.metadata.Distribution | None:
    """The first torch on a path, not imported."""
    return next(iter(importlib.metadata.distributions(name="torch", path=path)), None)


def expose_torch() -> None:
    """Let this build import the target's torch; last on the path, so that its own tools win."""
    if find_torch(sys.path) is None:
        sys.path.extend(entry for entry in target_path() if entry not in sys.path)


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    checks.check_headers()
    checks.check_compiler()
    torch = find_torch(sys.path + target_path())
    if torch is None:
        return [checks.torch_requirement()]
    checks.check_torch(torch.version, str(torch.locate_file("")))
    return []


get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    expose_torch()
    # setuptools packs whatever lies there, modules too that the source tree no longer has.
    for stale in Path("build").glob("lib*"):
        shutil.rmtree(stale)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    expose_torch()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
