"""Runs a command and prints its wall time and the peak of its anonymous memory (RssAnon), sampled each 2 ms.

    python benches/measure.py COMMAND [ARG ...]

Its function `measure` is what the other scripts time with.
"""
import os
import subprocess
import sys
import time


def measure(command, **options):
    """Wall seconds, processor seconds, peak of RssAnon in MiB and exit status of a command."""
    start, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **options)
    while True:
        # Not process.poll(): it throws away what wait4 says about processor time.
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        try:
            with open(f"/proc/{process.pid}/status") as f:
                peak = max([peak] + [int(line.split()[1]) for line in f if line.startswith("RssAnon")])
        except (FileNotFoundError, ProcessLookupError):
            pass
        time.sleep(0.002)
    seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    return seconds, usage.ru_utime + usage.ru_stime, peak / 1024, process.returncode


if __name__ == "__main__":
    seconds, _, peak, code = measure(sys.argv[1:])
    print(f"{seconds:.2f} s, RssAnon at most {peak:.0f} MiB, exit {code}")
    sys.exit(code)
