"""The table of characters: every row is complete and reads as plain English."""

import re
from collections import Counter
from pathlib import Path

import pytest

import pixeldance.worlds

COLUMNS = ("id", "package", "name", "noun", "verb", "use")
NUM_CHARACTERS = 734
# Vowel letters that sound like consonants, and the reverse.
TAKES_A = ("unicorn", "uniform", "ukulele", "unit", "one")
TAKES_AN = ("hour", "honest", "heir")
NUMBERS = ("two", "three", "four", "five", "six")

Row = dict[str, str]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    path = Path(pixeldance.worlds.__file__).with_name("characters.tsv")
    return path.read_bytes().decode("ascii").splitlines()


@pytest.fixture(scope="module")
def rows(lines: list[str]) -> list[Row]:
    return [dict(zip(COLUMNS, line.split("\t"), strict=True)) for line in lines[1:]]


def right_article(word: str) -> str:
    if word.startswith(TAKES_A):
        return "a"
    return "an" if word.startswith(TAKES_AN) or word[0] in "aeiou" else "a"


def test_the_header_names_the_columns(lines: list[str]) -> None:
    assert tuple(lines[0].split("\t")) == COLUMNS


def test_every_animated_character_has_one_row(rows: list[Row]) -> None:
    assert len(rows) == NUM_CHARACTERS
    assert len({row["id"] for row in rows}) == NUM_CHARACTERS


def test_fields_are_filled_and_trimmed(rows: list[Row]) -> None:
    bad = [row for row in rows for field in row.values() if not field or field != field.strip()]
    assert bad == []


def test_ids_are_code_points_of_one_of_four_packages(rows: list[Row]) -> None:
    assert [
        row for row in rows if not re.fullmatch(r"[0-9a-f]{4,5}(-[0-9a-f]{4,5})*", row["id"])
    ] == []
    assert {row["package"] for row in rows} == {"1", "2", "3", "4"}


def test_no_character_depends_on_a_skin_tone(rows: list[Row]) -> None:
    tones = {f"{point:x}" for point in range(0x1F3FB, 0x1F400)}
    assert [row for row in rows if tones & set(row["id"].split("-"))] == []
    words = re.compile(r"\b(skin|tone|pale|tanned|dark|medium-light|medium-dark)\b")
    assert [row for row in rows if words.search(f"{row['noun']} {row['verb']}")] == []


def test_enough_characters_are_used(rows: list[Row]) -> None:
    uses = Counter(row["use"] for row in rows)
    assert set(uses) == {"yes", "no"}
    assert uses["yes"] >= 550


def test_flags_are_not_used(rows: list[Row]) -> None:
    assert [row["noun"] for row in rows if "flag" in row["name"] and row["use"] == "yes"] == []


def test_at_most_two_plain_clock_faces_are_used(rows: list[Row]) -> None:
    hours = [row for row in rows if re.search(r"o'clock|-thirty", row["name"])]
    assert len(hours) == 24
    assert sum(row["use"] == "yes" for row in hours) <= 2


def test_nouns_are_unique(rows: list[Row]) -> None:
    counts = Counter(row["noun"] for row in rows)
    assert [noun for noun, count in counts.items() if count > 1] == []


def test_nouns_begin_with_the_right_article(rows: list[Row]) -> None:
    wrong = []
    for row in rows:
        first, second = row["noun"].split()[:2]
        if first not in NUMBERS and first != "the" and first != right_article(second):
            wrong.append(row["noun"])
    assert wrong == []


def test_articles_inside_nouns_are_right(rows: list[Row]) -> None:
    pairs = [(a, b) for row in rows for a, b in re.findall(r"\b(an?) (\w+)", row["noun"])]
    assert [pair for pair in pairs if pair[0] != right_article(pair[1])] == []


def test_nouns_and_verbs_are_short_lower_case_words(rows: list[Row]) -> None:
    phrase = re.compile(r"[a-z]+(-[a-z]+)*( [a-z]+(-[a-z]+)*)*")
    texts = [row[field] for row in rows for field in ("noun", "verb")]
    assert [text for text in texts if not phrase.fullmatch(text)] == []
    assert [row["noun"] for row in rows if len(row["noun"].split()) > 6] == []
    assert [row["verb"] for row in rows if len(row["verb"].split()) > 5] == []


def test_verbs_are_third_person_singular(rows: list[Row]) -> None:
    firsts = {row["verb"].split()[0] for row in rows}
    assert [word for word in firsts if not word.endswith("s") or word.endswith("ss")] == []


def test_verbs_name_no_direction_across_the_picture(rows: list[Row]) -> None:
    words = re.compile(r"\b(left|right|away|closer|forward|backward|toward|towards|across)\b")
    assert [row["verb"] for row in rows if words.search(row["verb"])] == []
    # These words are how captions tell a motion of the whole character.
    motions = {"moves", "bounces", "rotates", "spins", "rises", "sinks", "leaps", "jumps"}
    assert [row for row in rows if row["use"] == "yes" and row["verb"] in motions] == []
