"""Names the image, the layer and the path in every error of reading."""

import pytest

from buildkit.errors import BuildkitError
from buildkit.image import errors


def test_layer_error_names_layer_and_path() -> None:
    assert str(errors.CorruptLayer("it is bad", layer="x")) == "x: it is bad"
    assert str(errors.UnsafePath("it is bad", layer="x", path="a\nb")) == "x: 'a\\nb': it is bad"


def test_ambiguous_image_lists_the_choices() -> None:
    error = errors.AmbiguousImage("x", ["a:1", "b:2"])
    assert str(error) == "x: it holds several images; choose one with --tag or --platform: a:1, b:2"


def test_digest_mismatch_names_both_digests() -> None:
    error = errors.DigestMismatch("x", "a layer", wanted="sha256:1", found="sha256:2")
    assert str(error) == "x: a layer should have digest sha256:1 and has sha256:2"


@pytest.mark.parametrize("name", errors.__all__)
def test_error_has_the_exit_code_of_the_environment(name: str) -> None:
    error = getattr(errors, name)
    assert issubclass(error, BuildkitError)
    assert error.exit_code == 3
