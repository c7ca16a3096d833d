"""The number of a text: a table of what a reader would take, and of what two readers would take differently."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learn2pd.data.tasks.final_number import FinalNumberTask, last_number

READ = {
    # a minus behind a number or a word is no sign
    "It takes 10-15 days.": 15,
    "10 - 15": 15,
    "10 -15 days": 15,
    "10\u201315 days": 15,
    "10 \u2013 15 days": 15,
    "So 20-5=15, pages 297-348": 348,
    "5 -3 = 2": 2,
    "x-5": 5,
    "(3)-5": 5,
    "50%-60%": 60,
    "total--15": 15,
    "- 5 pears": 5,
    # every other minus is one
    "-7": -7,
    "That is -7.": -7,
    "The change is \u22125": -5,
    "The change is \uff0d5": -5,
    "from 3 to\n-5": -5,
    "f(-3)": -3,
    "x=-3": -3,
    "x = - 3": -3,
    "answer:-5": -5,
    "-$5": -5,
    "$-5": -5,
    "2, 3 and -4": -4,
    "+5": 5,
    # lists and groups
    "x is 1,2,3": 3,
    "x is 1, 2, 3": 3,
    "1.5,2.5": 2.5,
    "12,5": 5,
    "2020,2021": 2021,
    "1,234,5": 5,
    "$1,234.50": 1234.5,
    "1,234,567": 1234567,
    "-1,234": -1234,
    "1 234": 1234,
    "1\u00a0234\u202f567": 1234567,
    "1_234": 1234,
    r"1{,}234": 1234,
    r"1\,234": 1234,
    "In 2023 100 people": 100,
    "It costs 72, altogether.": 72,
    # fractions
    "1/2": 0.5,
    "-1/2": -0.5,
    "3 1/2": 3.5,
    "-3 1/2": -3.5,
    "3½": 3.5,
    "⅔": 2 / 3,
    r"\frac{1}{2}": 0.5,
    r"3\tfrac{1}{2}": 3.5,
    r"-\dfrac{3}{4}": -0.75,
    "between 3/4 and 1/2": 0.5,
    "4/2": 2,
    # units, decimals, powers of ten
    "50%": 50,
    "12.5 %": 12.5,
    "€5": 5,
    "5€": 5,
    "USD5": 5,
    "Rs.500": 500,
    "5kg": 5,
    "the 5th": 5,
    "100.": 100,
    "4.0": 4,
    ".75": 0.75,
    "costs .75": 0.75,
    "1.5e3": 1500,
    "1E-2": 0.01,
    "1.5 × 10^3": 1500,
    r"1.5 \times 10^{-2}": 0.015,
    "007": 7,
    # marks win over later numbers
    r"\boxed{42} as in step 3": 42,
    r"\boxed{7}, no: \boxed{8} by rule 9": 8,
    r"\boxed{\frac{1}{4}} of 9": 0.25,
    r"\boxed{\text{about } 1{,}000\$} and 7": 1000,
    "#### 42\nstep 3": 42,
    "#### $70,000 as in 2": 70000,
    "#### -3.5": -3.5,
    r"#### 5" + "\n" + r"\boxed{6} 7": 6,
    r"\boxed{6}" + "\n#### 5\n7": 5,
    "#### Step 3: add\nso 42": 42,
    "#### 1. First\nso 42": 42,
    # digits inside words
    "20 percent less CO2": 20,
    "x1 is 5": 5,
    # mixed numbers, also behind a mark
    "#### 3 1/2": 3.5,
    "#### 3½": 3.5,
    r"#### 3\frac{1}{2}": 3.5,
    "#### 3 1/2 of 8": 3.5,
    "#### 3 and 1/2": 3,
    "1,000 1/2": 1000.5,
    "1 000 1/2": 1000.5,
    # fractions with blanks and signs inside
    r"\boxed{\frac{-1}{2}}": -0.5,
    r"\frac{1}{-2}": -0.5,
    r"\frac{ 1 }{ 2 }": 0.5,
    r"\frac12": 0.5,
    r"\dfrac 1 {2}": 0.5,
    "1 / 2": 0.5,
    # groups of LaTeX, Switzerland and East Asia
    r"\boxed{11,\!050}": 11050,
    "1'234": 1234,
    "1\u2019234\u2019567.5": 1234567.5,
    r"1\ 234": 1234,
    "1~234": 1234,
    r"1\;234": 1234,
    "1\uff0c234": 1234,
    "3 plus 2 is \uff15": 5,
    "\uff0d\uff11\uff0e\uff15": -1.5,
    # a minus with a blank behind it, behind a mark
    "#### - 5": -5,
    "#### - $5": -5,
    r"\boxed{- 5}": -5,
    # degrees and powers of units
    r"\boxed{90^\circ}": 90,
    r"\boxed{90^{\circ}}": 90,
    "25 cm^2": 25,
    "The area is 25 cm^2.": 25,
    r"\boxed{25\text{ cm}^2}": 25,
    r"\boxed{25\,\mathrm{m}^{3}}": 25,
    "10 m/s^2": 10,
    # exact
    "9007199254740993": 9007199254740993,
}
UNREADABLE = [
    "",
    "none",
    "-",
    "...",
    "1.234,5",
    "1 234,5",
    "1.2.3",
    "1,23,456",
    "12/25/2023",
    "10:30",
    "2^3",
    "10^{6}",
    "5²",
    "1/0",
    "v2.5.1",
    "H2O",
    "9" * 301,
    "1e999",
    "1e" + "9" * 5000,
    "9" * 5000,
    "\u0663",
    r"\boxed{x}",
    r"\boxed{x^2}",
    r"\boxed{3x^2}",
    "5 100/200",
    "1'234,5",
    "\uff11\uff10\uff1a\uff13\uff10",
    r"\boxed{}",
    "the answer is 5 or 1.234,5",
]


@pytest.mark.parametrize("text", READ)
def test_the_number_a_reader_takes(text):
    assert last_number(text) == READ[text]


@pytest.mark.parametrize("text", UNREADABLE, ids=lambda text: text[:20])
def test_what_may_be_read_in_two_ways_or_not_at_all_is_no_number(text):
    assert last_number(text) is None
    assert FinalNumberTask().facts("How many?", text) == {}
    assert not FinalNumberTask().check({"number": 5}, text).correct


LONG = [
    "a",
    "_",
    "a_",
    "1",
    "1,",
    "1/",
    "1 000 ",
    "-",
    "\\boxed{",
    "####",
    "#### ",
    "½",
    "\\frac",
    "\\text{",
    "{",
    " ",
    "1 ",
    "^",
]


@pytest.mark.parametrize("piece", LONG)
def test_a_long_text_takes_no_longer_than_its_characters(piece):
    """Quadratic work on so many characters would take minutes."""
    last_number(piece * (100_000 // len(piece)))


def test_large_whole_numbers_that_differ_by_one_are_different():
    task = FinalNumberTask()
    facts = task.facts("How many?", "9007199254740993")
    assert json.loads(json.dumps(facts)) == facts
    assert task.check(facts, "9,007,199,254,740,993").correct
    assert not task.check(facts, "9007199254740992").correct


@pytest.mark.parametrize(
    ("reference", "answer"),
    [("#### 0.5", "1/2"), ("1000", r"\boxed{1,000.00}"), ("-5", "it is \u22125."), ("3", "1, 2, 3")],
)
def test_two_ways_to_write_a_number_are_one(reference, answer):
    task = FinalNumberTask()
    assert task.check(task.facts("", reference), answer).correct


@given(text=st.text(alphabet="0123456789.,-/ ^:#${}\\eE\n+boxed½²\u2212\u00a0%", max_size=40) | st.text(max_size=40))
def test_reading_never_raises_and_gives_json(text):
    number = last_number(text)
    assert number is None or json.loads(json.dumps(number)) == number
