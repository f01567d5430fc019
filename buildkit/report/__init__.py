"""Writes reports on measurements, comparisons, timed builds and checks: terminal, Markdown, HTML, JUnit, SARIF."""
