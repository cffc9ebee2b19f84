"""Measures a server under concurrent requests: requests per second, p50 and p99 latency.

python examples/serve/load_test.py http://127.0.0.1:8000 photo.jpg --clients=16 --seconds=10
python examples/serve/load_test.py http://127.0.0.1:8000 photo.jpg --attack=slow --attackers=64

The attackers send bodies that never end (slow), text that is no image (junk), or JPEGs that take
minutes to decode (bomb).  Attack only servers of your own.
"""

import argparse
import contextlib
import http.client
import io
import json
import pathlib
import socket
import sys
import threading
import time
import urllib.parse
import urllib.request

import numpy as np
from PIL import Image


def scans() -> bytes:
    """Returns a JPEG of 230 kB with 2,000 scans, each of which changes all of its 24 megapixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (4900, 4900)).save(buffer, "JPEG", progressive=True, quality=30)
    file = buffer.getvalue()
    return file[:-2] + file[file.rfind(b"\xff\xda") : -2] * 2000 + file[-2:]


BODIES = {"slow": lambda: b"", "junk": lambda: b"x" * 1000, "bomb": scans}


def attack(address: str, body: bytes, until: float) -> None:
    """Attacks a server, see above, with one connection after another.

    Args:
      address: host and port.
      body: of the requests; b"": one that never comes.
      until: when to stop, by time.monotonic().
    """
    host, _, port = address.partition(":")
    length = len(body) or 1000
    head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 5) as made:
            made.settimeout(max(0.1, until - time.monotonic()))
            made.sendall(head.encode() + body)
            made.recv(4096)


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
        try:
            connection.request("POST", "/predict", body)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            connection.close()  # the next request opens another
            statuses.append(0)
            continue
        seconds.append(time.monotonic() - began)
        statuses.append(response.status)
    connection.close()


def measure(
    url: str, body: bytes, clients: int, duration: float, kind: str = "junk", attackers: int = 0
) -> dict:
    """Returns the results of a load test, for JSON.

    Args:
      url: of the server.
      body: of the requests.
      clients: number of clients that send requests at the same time.
      duration: seconds.
      kind: of the attackers, one of `BODIES`.
      attackers: their number.
    """
    address = urllib.parse.urlsplit(url).netloc
    seconds: list[float] = []
    statuses: list[int] = []
    attack_body = BODIES[kind]()
    began = time.monotonic()
    args = (address, body, began + duration, seconds, statuses)
    threads = [threading.Thread(target=client, args=args) for _ in range(clients)]
    threads += [
        threading.Thread(target=attack, args=(address, attack_body, began + duration), daemon=True)
        for _ in range(attackers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads[:clients]:
        thread.join()
    served = sum(status == 200 for status in statuses)
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return {
        "clients": clients,
        **({kind: attackers} if attackers else {}),
        "requests": len(statuses),
        "served": served,
        "busy": sum(status == 503 for status in statuses),
        "broken": sum(status == 0 for status in statuses),
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
    parser.add_argument("--attack", choices=tuple(BODIES), default="slow")
    parser.add_argument("--attackers", type=int, default=0, help="attacking clients at a time")
    args = parser.parse_args()
    content = pathlib.Path(args.image).read_bytes()
    try:
        with urllib.request.urlopen(f"{args.url}/health", timeout=10):
            pass
    except OSError as error:
        sys.exit(f"error: no server answers at {args.url} ({error}); start server.py first.")
    for count in args.clients:
        found = measure(args.url, content, count, args.seconds, args.attack, args.attackers)
        print(json.dumps(found), flush=True)
