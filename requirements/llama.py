"""Installs llama-cpp-python, which compiles llama.cpp for this machine, and shows how far it is.

pip says nothing of what it compiles unless it says everything.
"""

import os
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

STEP = re.compile(r"^\s*\[(\d+)/(\d+)\]")
EVERY_SECONDS = 5.0
LEAST = "-DLLAVA_BUILD=OFF"
"""Without what reads images: 140 files to compile in place of 193."""
NEEDS = "a C++ compiler (Debian: apt-get install g++; macOS: xcode-select --install)"


def main() -> int:
    constraints = Path("constraints.txt").read_text("utf-8").splitlines()
    pin = next(line for line in constraints if line.startswith("llama_cpp_python=="))
    try:
        if version("llama_cpp_python") == pin.partition("==")[2]:
            return 0
    except PackageNotFoundError:
        pass
    print(
        "compiling llama.cpp for this machine, once: three to ten minutes on two cores.\n"
        "A ready wheel saves that where there is one for your platform: llama-cpp-python's README "
        "gives\nan index of them; run: PIP_EXTRA_INDEX_URL=ADDRESS make demo",
        flush=True,
    )
    log = Path(sys.prefix) / "llama-build.log"
    command = [sys.executable, "-m", "pip", "install", "-v", "--disable-pip-version-check"]
    pip = subprocess.Popen(  # noqa: S603
        [*command, "--prefer-binary", "-c", "constraints.txt", pin],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={"CMAKE_ARGS": LEAST, **os.environ},
    )  # fmt: skip
    said = began = time.monotonic()
    with log.open("w", encoding="utf-8") as kept:
        for line in pip.stdout or ():
            kept.write(line)
            step = STEP.match(line)
            if step and time.monotonic() - said > EVERY_SECONDS:
                said = time.monotonic()
                print(f"  {step[1]} of {step[2]} files, {said - began:.0f} s", flush=True)
    if pip.wait() == 0:
        print(f"  done in {time.monotonic() - began:.0f} s", flush=True)
        return 0
    print("".join(log.read_text("utf-8").splitlines(keepends=True)[-15:]))
    print(f"llama.cpp did not compile; it needs {NEEDS}; all that was said: {log}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
