from __future__ import annotations

import pytest

from learn2pd import UserError
from learn2pd.cli.main import split_decode_options


def test_options_of_decode_are_taken_out_of_the_arguments():
    options, rest = split_decode_options(["config=tiny_filter", "live=true", "prompt=a = b"])
    assert (options.live, options.prompt, rest) == (True, "a = b", ["config=tiny_filter"])


@pytest.mark.parametrize("value", ["maybe", "1", "[", "{a: "])
def test_a_switch_that_is_neither_true_nor_false_is_one_line(value):
    with pytest.raises(UserError, match="true or false") as error:
        split_decode_options([f"live={value}"])
    assert "\n" not in str(error.value)
