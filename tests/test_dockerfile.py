"""What the Dockerfile copies is enough to score and to serve, without a network and on a read-only file system.

No container is built: the copied files, this Python and namespaces of Linux take its place.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
ALONE = ["unshare", "--map-root-user", "--mount", "--net"]
# The service is asked as HEALTHCHECK asks it, and then for the score of a sample.
ASK = """
ip link set lo up
"$PYTHON" -m service --host 0.0.0.0 &
for attempt in $(seq 200); do "$PYTHON" -c "$HEALTH" 2>/dev/null && break; sleep 0.2; done
"$PYTHON" - <<'END'
import urllib.request
image = open("samples/astronaut.png", "rb").read()
head = b'--x\\r\\nContent-Disposition: form-data; name="images"; filename="a.png"\\r\\n\\r\\n'
request = urllib.request.Request("http://127.0.0.1:8000/score", head + image + b"\\r\\n--x--\\r\\n")
request.add_header("Content-Type", "multipart/form-data; boundary=x")
print(urllib.request.urlopen(request, timeout=30).read().decode())
END
kill $!
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder /app of the image."""
    folder = tmp_path_factory.mktemp("image") / "app"
    folder.mkdir()
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, flags=re.MULTILINE):
        *sources, target = line.split()
        for name in sources:
            assert name in let_in, f".dockerignore keeps {name} out"
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / target, ignore=shutil.ignore_patterns("__pycache__", "cache"))
            else:
                shutil.copy(source, folder / target)
    return folder


def alone(image: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in the folder of the image, which cannot be written to, without a network."""
    if subprocess.run([*ALONE, "true"], capture_output=True).returncode:
        pytest.skip("this system allows no namespaces of its own")
    (health,) = re.findall(r'^HEALTHCHECK .*CMD \["python", "-c",\s+("[^\n]+")\]$', DOCKERFILE, flags=re.MULTILINE)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHON": sys.executable, "HEALTH": json.loads(health),
                   "PYTHONDONTWRITEBYTECODE": "1", "APP": str(image)}
    read_only = 'mount --bind "$APP" "$APP" && mount -o remount,bind,ro "$APP" && cd "$APP" && ! touch x 2>/dev/null\n'
    command = [*ALONE, "sh", "-c", f"set -e\n{read_only}{script}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_it_scores(image: Path) -> None:
    done = alone(image, '"$PYTHON" inference.py samples')
    assert done.returncode == 0, done.stderr
    assert "6 ok" in done.stderr


def test_it_serves(image: Path) -> None:
    if not shutil.which("ip", path="/usr/sbin:/usr/bin:/sbin:/bin"):
        pytest.skip("ip (iproute2) is not installed")
    done = alone(image, ASK)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout.splitlines()[-1])["results"]
    assert result["status"] == "ok"
    assert 0 < result["quality"] < 1
