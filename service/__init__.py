"""TruthGraph: the fact-verification API that the image carries; `python -m service` is its command line."""
