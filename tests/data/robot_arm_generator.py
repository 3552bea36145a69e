"""The generator of the sample data, loaded by path: the data folder is not a package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "data" / "robot_arm"


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("robot_arm_generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


gen = load_generator()
dynamics = sys.modules["arm_dynamics"]
motions = sys.modules["arm_motion"]
