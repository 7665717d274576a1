"""Three parsers on many streams: what we take as a request, the others take as the same one."""

from __future__ import annotations

import itertools
import multiprocessing

import pytest

from tests import streams

SHARE = 25_000
"""Streams of each of the four processes."""


def disagreements(seed: int) -> list[str]:
    some = itertools.islice(streams.Streams(seed), SHARE)
    return [found for stream in some if (found := streams.disagreement(stream))]


@pytest.mark.walk
@pytest.mark.timeout(900)
def test_100_000_streams() -> None:
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        found = processes.map(disagreements, range(100, 104))
    assert [each for some in found for each in some] == []
