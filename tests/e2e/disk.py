"""Disks that are full or cannot be written: a tmpfs of a given size, where this machine lets us mount one."""

import contextlib
import os
import subprocess


def mount(folder, *options):
    """Mounts a tmpfs; false where this machine does not let us."""
    folder.mkdir(parents=True, exist_ok=True)
    return os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True).returncode == 0


def unmount(folder):
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def fill(folder):
    """Takes every block that is left, in a file that is returned."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 4096, 512):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    return filler
