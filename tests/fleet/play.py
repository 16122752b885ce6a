"""`make fleet` and `make fleet-down`: a fleet to play with, in the background, everything below one folder.

    play.py up      starts it, if it does not run, and says what runs where
    play.py down    stops it and removes the folder

AEGIS_FLEET_DATA names the folder (fleet-data), AEGIS_FLEET_NATS the server (debian or current).
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
FOLDER = pathlib.Path(os.environ.get("AEGIS_FLEET_DATA") or REPOSITORY / "fleet-data").resolve()
# Says who supervises; without it the folder is not ours to remove.
STATE, READY = FOLDER / "supervisor.json", FOLDER / "ready.txt"
STARTS_WITHIN_S, ENDS_WITHIN_S = 300, 120


def started_at(pid):
    """When a process began, in the kernel's ticks; None where there is none. A number that was given again began later."""
    try:
        fields = stat(pid)
        return None if fields[0] == "Z" else int(fields[19])
    except (OSError, IndexError):
        return None


def stat(pid):
    """The fields of /proc/PID/stat behind the name: state, parent, group, session, ..."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def supervisor():
    """What stands in the folder of a fleet, and whether its supervisor lives."""
    try:
        state = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return None, False
    return state, started_at(state["pid"]) == state["started_at"]


def refuse(text):
    sys.exit(f"fleet: {text}")


def up():
    state, lives = supervisor()
    if lives and READY.exists():
        print(READY.read_text(), end="")
        return
    if lives:
        refuse(f"it is being started; look at {FOLDER}/supervisor.log")
    if state:
        refuse(f"the one in {FOLDER} died; its logs are there. Run `make fleet-down`, then `make fleet`")
    if FOLDER.exists() and any(FOLDER.iterdir()):
        refuse(f"{FOLDER} is there and no fleet's; name another folder in AEGIS_FLEET_DATA, or remove it")
    start()


def start():
    FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
    print(f"fleet: starting in {FOLDER}: three servers of NATS, Postgres, control, two edges, a load", flush=True)
    with (FOLDER / "supervisor.log").open("wb") as log:
        command = [sys.executable, str(pathlib.Path(__file__).with_name("supervise.py")), str(FOLDER)]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests/e2e"), "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(command, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    # Whole at once: the supervisor waits for it to be there, and reads it.
    partial = STATE.with_suffix(".begun")
    partial.write_text(json.dumps({"pid": process.pid, "started_at": started_at(process.pid), "folders": []}))
    partial.rename(STATE)
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not READY.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            said = (FOLDER / "supervisor.log").read_text()[-4000:]
            refuse(f"it did not start:\n{said}\nLogs are in {FOLDER}. Run `make fleet-down` before the next try.")
        time.sleep(0.2)
    print(READY.read_text(), end="")


def down():
    state, lives = supervisor()
    if state is None:
        if FOLDER.exists():
            refuse(f"{FOLDER} is no fleet's; nothing was stopped or removed")
        print("fleet: nothing runs")
        return
    if lives:
        os.kill(state["pid"], signal.SIGTERM)
        deadline = time.monotonic() + ENDS_WITHIN_S
        while started_at(state["pid"]) == state["started_at"]:
            if time.monotonic() > deadline:
                os.kill(state["pid"], signal.SIGKILL)
            time.sleep(0.1)
    for pid in left_over(state["pid"]):
        os.kill(pid, signal.SIGKILL)
    for folder in (*state["folders"], FOLDER):
        shutil.rmtree(folder, ignore_errors=True)
    print(f"fleet: stopped, {FOLDER} removed")


def left_over(session):
    """Processes of a supervisor that died: those of its session that name the folder."""
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                if int(stat(entry.name)[3]) == session and (str(FOLDER) in command or "aegis-postgres-" in command):
                    yield int(entry.name)
            except (OSError, IndexError):
                continue


if __name__ == "__main__":
    actions = {"up": up, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        sys.exit("usage: play.py up|down")
    actions[sys.argv[1]]()
