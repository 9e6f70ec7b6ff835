"""What an overlay comes to: kustomize, as kubectl has it, and the objects that it prints."""

import os
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
OVERLAYS = tuple(sorted(path.name for path in (FOLDER / "overlays").iterdir()))
COMPONENTS = tuple(sorted(path.name for path in (FOLDER / "components").iterdir()))
_TIMEOUT_S = 60
# libyaml where PyYAML has it: CustomResourceDefinitions are megabytes.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(text: str) -> list[Any]:
    """The documents of a YAML text."""
    return [document for document in yaml.load_all(text, Loader=_LOADER) if document]


def render(overlay: str, *components: str) -> list[dict[str, Any]]:
    """The objects of an overlay with further components. Raises RuntimeError with what kustomize says."""
    folder = FOLDER / "overlays" / overlay
    if not components:
        return _kustomize(folder)
    with tempfile.TemporaryDirectory() as name:
        # kustomize wants relative paths, and follows links before it counts the dots.
        here = Path(name).resolve()
        text = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(folder.resolve(), here)],
            "components": [os.path.relpath((FOLDER / "components" / each).resolve(), here) for each in components],
        }
        (here / "kustomization.yaml").write_text(yaml.safe_dump(text))
        return _kustomize(here)


def _kustomize(folder: Path) -> list[dict[str, Any]]:
    kubectl = Path(sysconfig.get_path("scripts")) / "kubectl"
    if not kubectl.exists():
        raise RuntimeError("kubectl is missing: make setup installs it")
    done = subprocess.run(
        [kubectl, "kustomize", folder], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode or done.stderr:
        raise RuntimeError(f"kubectl kustomize {folder}: {done.stderr.strip()}")
    return load(done.stdout)
