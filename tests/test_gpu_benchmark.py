"""The benchmark of a GPU runs on a CPU at tiny size, with the code that a GPU would run."""

from __future__ import annotations

import pytest

from benchmarks.gpu import main


def test_every_shape_and_cache_is_measured(capsys):
    main(["size=tiny", "batches=2", "canvases=32", "prompt_length=8", "steps=1", "dtype=float32"])
    _, titles, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:2] for row in rows] == [
        ["llada", "none"],
        ["llada", "dual"],
        ["sdar", "none"],
        ["sdar", "exact"],
    ]
    for row in rows:
        values = dict(zip(titles.split(), row.split(), strict=True))
        shares = [float(values[name].rstrip("%")) for name in ("forward", "score", "policy", "rest")]
        assert sum(shares) == pytest.approx(100, abs=0.5)
        assert float(values["ms/step"]) > 0


@pytest.mark.parametrize(
    ("argument", "says"), [("size=full", "need a GPU"), ("attention=fast", "expected auto, flash")]
)
def test_what_cannot_be_measured_is_said_in_one_line(argument, says):
    with pytest.raises(SystemExit, match=says):
        main(["size=tiny", argument])
