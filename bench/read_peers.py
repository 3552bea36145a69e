"""The peers' own environment, and which settings of each are its best."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from peers import PEERS
from read_turns import Child, MethodError, close_all, take_turns

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "peers" / "requirements.txt"
ENVIRONMENT = HERE / "scratch" / "peers-venv"


class Environment:
    """A venv with the pinned libraries of the peers, as far as they could be installed.

    Attributes:
        python: Its interpreter; our own where not even torch could be installed.
        missing: Package -> why it is not there.
    """

    def __init__(self, folder: Path = ENVIRONMENT) -> None:
        self.missing: dict[str, str] = {}
        self.python = str(folder / "bin" / "python")
        base, extras = read_requirements(REQUIREMENTS)
        stamp = folder / "installed.json"
        have = {"python": sys.version, "packages": list[str]()}
        if stamp.is_file() and json.loads(stamp.read_text())["python"] == sys.version:
            have = json.loads(stamp.read_text())
        else:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _run([sys.executable, "-m", "venv", str(folder)])
        for group in (base, *([one] for one in extras)):
            if set(group) <= set(have["packages"]):
                continue
            if why := self._install(group):
                if group is base:
                    self.python = sys.executable
                    self.missing = {_name(one): why for one in extras}
                    return
                self.missing[_name(group[0])] = why
            else:
                have["packages"] += group
                stamp.write_text(json.dumps(have))

    def _install(self, packages: list[str]) -> str:
        print("installing", *packages, flush=True)
        pip = [self.python, "-m", "pip", "install", "--quiet", "--constraint", str(REQUIREMENTS)]
        return _run([*pip, *packages])


def read_requirements(path: Path) -> tuple[list[str], list[str]]:
    """Return what all peers need, and what one needs, as `name==version`."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    empty = lines.index("")
    return lines[:empty], [line for line in lines[empty:] if line]


def _name(requirement: str) -> str:
    return requirement.partition("==")[0]


def _run(command: list[str]) -> str:
    """Return "" or the last line of what a command that failed said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    said = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
    return "" if done.returncode == 0 else said[0][:300]


def find_best(
    name: str, python: str, folder: Path, warm_s: float, n_rounds: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Try the settings of a peer side by side.

    Returns:
        The fastest setting, and all of them with their median windows per second.

    Raises:
        MethodError: If none of them works; what one said.
    """
    children: dict[str, Child] = {}
    tried: list[dict[str, Any]] = []
    try:
        for setting in PEERS[name].settings:
            try:
                child = Child(python, name, folder, {**setting, "warm_s": warm_s})
            except MethodError as error:
                tried.append({**setting, "failed": str(error)})
            else:
                children[json.dumps(setting)] = child
        if not children:
            raise MethodError(tried[0]["failed"])
        rates = take_turns(children, n_rounds, turn_s=0.2)
    finally:
        close_all(list(children.values()))
    medians = {key: round(float(np.median(rates[key]))) for key in children}
    tried += [{**json.loads(key), "windows_per_s": medians[key]} for key in children]
    return json.loads(max(medians, key=lambda key: medians[key])), tried


def start_peers(
    children: dict[str, Child], environment: Environment, folder: Path, warm_s: float, n_rounds: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Add each peer at its best setting to the children.

    Returns:
        What was tried by peer, and why a peer is missing.
    """
    tried: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, peer in PEERS.items():
        if peer.package in environment.missing:
            missing[name] = environment.missing[peer.package]
            continue
        print("trying settings of", name, flush=True)
        try:
            best, tried[name] = find_best(name, environment.python, folder, warm_s / 10, n_rounds)
            children[name] = Child(environment.python, name, folder, {**best, "warm_s": warm_s})
        except MethodError as error:
            missing[name] = str(error)
    return tried, missing
