"""What the Dockerfile says of the project is what the project says."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_image_is_made_of_what_there_is() -> None:
    text = (ROOT / "Dockerfile").read_text()
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert set(re.findall(r"[\w-]+==\S+", text)) <= set(pins)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (.+) \S+$", text, flags=re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists(), name
            assert f"!{name}" in ignored, name
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(re.findall(r'"\.\[(\w+)\]"', text)) <= set(extras)


def test_nobody_is_root_in_it_and_its_health_is_asked_where_it_listens() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (user,) = re.findall(r"^USER (\S+)$", text, flags=re.MULTILINE)
    assert user not in ("0", "root")
    (port,) = re.findall(r"^EXPOSE (\d+)$", text, flags=re.MULTILINE)
    assert f'"--port", "{port}"' in text
    assert f"http://127.0.0.1:{port}/health" in text
