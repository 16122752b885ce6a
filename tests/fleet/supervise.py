"""Runs a fleet below a folder until it is told to stop, with a bounded load, and writes down what runs where. Started by `play.py`."""

import json
import os
import pathlib
import random
import signal
import sys
import threading
import time

from fleet import Fleet
from load import CALLERS, Load
from shown import shown, variables
from told import Told

# Calls a second at each edge, and for how long.
RATE, LOAD_S = 4, 3600


def note_folders(folder, fleet):
    """What lies outside the folder, for whoever must tidy up behind a supervisor that died."""
    state = folder / "supervisor.json"
    # Whoever started this process writes the file at once.
    while not state.exists():
        time.sleep(0.05)
    known = json.loads(state.read_text())
    known["folders"] = [str(fleet.postgres.folder), str(fleet.postgres.url_file.parent)]
    replace(state, json.dumps(known))


def replace(path, text, mode=0o600):
    partial = path.with_suffix(".partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)
    partial.rename(path)


def main(folder):
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    fleet = Fleet(os.environ.get("AEGIS_FLEET_NATS", "current"), folder)
    try:
        note_folders(folder, fleet)
        told = Told()
        load = Load(fleet, told, random.SystemRandom().randrange(1 << 32), CALLERS / RATE)
        until = time.time() + LOAD_S
        agent = fleet.tenant.register_agent()
        replace(folder / "env.sh", variables(fleet, agent))
        replace(folder / "ready.txt", shown(fleet, folder, RATE, until))
        stop.wait(LOAD_S)
        load.stop()
        print(f"the load has ended: {told}", flush=True)
        for wrong in (*told.wrong, *told.unanswered):
            print(wrong, flush=True)
        stop.wait()
    finally:
        fleet.close()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
