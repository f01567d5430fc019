"""Measurements, comparisons and verdicts as people and tools read them: terminal, Markdown, HTML, JUnit, SARIF."""
