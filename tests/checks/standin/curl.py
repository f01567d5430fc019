"""Stands in for curl: `--version`, or one address whose error status is an exit code."""

import sys
import urllib.error
import urllib.request

if sys.argv[-1] != "--version":
    try:
        urllib.request.urlopen(sys.argv[-1], timeout=5).read()  # noqa: S310 - our own address
    except urllib.error.HTTPError:
        sys.exit(22)
