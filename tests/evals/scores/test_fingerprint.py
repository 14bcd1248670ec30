"""Fingerprints: what they contain, what they ignore, and the message if two differ."""

import pytest
from heterosis.evals.scores.fingerprint import (
    differing,
    digest,
    fingerprint_of,
    parts_of,
    refuse_incomparable,
    tokenizer_digest,
)

from ..tiny_models import tiny_tokenizer

ONE = fingerprint_of({"items": "ab", "dtype": "float32", "max_length": 192})
OTHER = fingerprint_of({"items": "ab", "dtype": "bfloat16", "torch": "2.9+cpu"})


def test_parts_are_written_in_order_and_read_back():
    assert ONE == "dtype=float32 items=ab max_length=192"
    assert parts_of(ONE) == {"dtype": "float32", "items": "ab", "max_length": "192"}
    assert parts_of("") == {}


def test_what_differs_is_named():
    assert differing(ONE, OTHER) == {
        "dtype": ("float32", "bfloat16"),
        "max_length": ("192", "-"),
        "torch": ("-", "2.9+cpu"),
    }
    assert differing(ONE, ONE) == {}


def test_incomparable_scores_are_refused_with_what_differs():
    refuse_incomparable(ONE, ONE)
    refuse_incomparable("", "")
    with pytest.raises(ValueError, match=r"rungs cannot be compared.*dtype \(float32 and bfloat16"):
        refuse_incomparable(ONE, OTHER, "rungs")
    with pytest.raises(ValueError, match=r"one has no fingerprint.*score both again"):
        refuse_incomparable(ONE, "")


@pytest.mark.parametrize("parts", [{"a b": "1"}, {"a": "1 2"}, {"a": "x=y"}, {"a": ""}])
def test_parts_that_could_not_be_read_back_are_refused(parts):
    with pytest.raises(ValueError, match=r"need a name in a-z, 0-9 or _, and a value without"):
        fingerprint_of(parts)


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest([1, 2]) != digest([2, 1])


def test_a_tokenizers_digest_sees_its_rules_and_not_its_last_call():
    plain, padded, other = tiny_tokenizer(), tiny_tokenizer(), tiny_tokenizer()
    padded(["red", "green blue"], padding=True, truncation=True, max_length=3)
    padded.chat_template = "{{ messages }}"
    other.add_tokens(["winter-"])
    assert tokenizer_digest(plain) == tokenizer_digest(padded)
    assert tokenizer_digest(plain) != tokenizer_digest(other)
