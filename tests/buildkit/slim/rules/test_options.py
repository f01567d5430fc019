from __future__ import annotations

from buildkit.slim.rules.options import SlimOptions
from buildkit.slim.rules.stub_rules import choose_stubs


def test_changes_libraries_with_any_library_step() -> None:
    assert not SlimOptions(rules=(), strips=False).changes_libraries
    assert SlimOptions(rules=(), strips=True).changes_libraries
    assert SlimOptions(rules=(), strips=False, targets=frozenset({90})).changes_libraries
    assert SlimOptions(rules=(), strips=False, stubs=choose_stubs("stub-cufft")).changes_libraries


def test_stub_for_returns_the_rule_of_a_path() -> None:
    (rule,) = choose_stubs("stub-cufft")
    options = SlimOptions(rules=(), strips=False, stubs=(rule,))

    assert options.stub_for("lib/python3.13/site-packages/nvidia/cu13/lib/libcufft.so.12") is rule
    assert options.stub_for("nvidia/cu13/lib/libcublas.so.13") is None
