"""Runs a command and prints its wall time and the peak of its anonymous memory (RssAnon), sampled each 2 ms.

    python benches/measure.py COMMAND [ARG ...]
"""
import subprocess
import sys
import time

start, peak = time.monotonic(), 0
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
while process.poll() is None:
    try:
        with open(f"/proc/{process.pid}/status") as f:
            peak = max([peak] + [int(line.split()[1]) for line in f if line.startswith("RssAnon")])
    except FileNotFoundError:
        pass
    time.sleep(0.002)
print(f"{time.monotonic() - start:.2f} s, RssAnon at most {peak / 1024:.0f} MiB, exit {process.returncode}")
sys.exit(process.returncode)
