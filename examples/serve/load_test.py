"""Loads a server with concurrent requests: requests a second, p50 and p99 of the latency.

python examples/serve/load_test.py http://127.0.0.1:8000 photo.jpg --clients=16 --seconds=10
"""

import argparse
import http.client
import json
import pathlib
import sys
import threading
import time
import urllib.parse
import urllib.request

import numpy as np


def client(address: str, body: bytes, until: float, seconds: list, statuses: list) -> None:
    """Sends one request after the other over one connection."""
    connection = http.client.HTTPConnection(address, timeout=60)
    while time.monotonic() < until:
        began = time.monotonic()
        connection.request("POST", "/predict", body)
        response = connection.getresponse()
        response.read()
        seconds.append(time.monotonic() - began)
        statuses.append(response.status)
    connection.close()


def measure(url: str, body: bytes, clients: int, duration: float) -> dict:
    """Returns what `clients` clients found in `duration` seconds."""
    address = urllib.parse.urlsplit(url).netloc
    seconds, statuses, began = [], [], time.monotonic()
    args = (address, body, began + duration, seconds, statuses)
    threads = [threading.Thread(target=client, args=args) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    served = sum(status == 200 for status in statuses)
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return {
        "clients": clients,
        "requests": len(statuses),
        "served": served,
        "busy": sum(status == 503 for status in statuses),
        "requests_per_second": round(served / (time.monotonic() - began), 1),
        "p50_ms": round(p50, 1),
        "p99_ms": round(p99, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("image")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    content = pathlib.Path(args.image).read_bytes()
    try:
        with urllib.request.urlopen(f"{args.url}/health", timeout=10):
            pass
    except OSError as error:
        sys.exit(f"error: no server answers at {args.url} ({error}); start server.py first.")
    for count in args.clients:
        print(json.dumps(measure(args.url, content, count, args.seconds)))
