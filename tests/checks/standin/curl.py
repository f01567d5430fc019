"""Stands in for curl: accepts `--version`, or a URL, and exits with 22 on an error status."""

import sys
import urllib.error
import urllib.request

if sys.argv[-1] != "--version":
    try:
        urllib.request.urlopen(sys.argv[-1], timeout=60).read()  # noqa: S310 - a local URL
    except urllib.error.HTTPError:
        sys.exit(22)
