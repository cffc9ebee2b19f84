"""Measures a server under concurrent requests: requests per second, p50 and p99 latency.

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


def client(
    address: str, body: bytes, until: float, seconds: list[float], statuses: list[int]
) -> None:
    """Sends requests one after the other over one connection.

    Args:
      address: host and port.
      body: of the requests.
      until: when to stop, by time.monotonic().
      seconds: gets the latency of each request.
      statuses: gets the HTTP status of each response.
    """
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
    """Returns the results of a load test, for JSON.

    Args:
      url: of the server.
      body: of the requests.
      clients: number of clients that send requests at the same time.
      duration: seconds.
    """
    address = urllib.parse.urlsplit(url).netloc
    seconds: list[float] = []
    statuses: list[int] = []
    began = time.monotonic()
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
    parser.add_argument("url", help="of the server, such as http://127.0.0.1:8000")
    parser.add_argument("image", help="image file to send")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[1, 16, 64], help="numbers of clients to test"
    )
    parser.add_argument("--seconds", type=float, default=10, help="duration of each test")
    args = parser.parse_args()
    content = pathlib.Path(args.image).read_bytes()
    try:
        with urllib.request.urlopen(f"{args.url}/health", timeout=10):
            pass
    except OSError as error:
        sys.exit(f"error: no server answers at {args.url} ({error}); start server.py first.")
    for count in args.clients:
        print(json.dumps(measure(args.url, content, count, args.seconds)))
