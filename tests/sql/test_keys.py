"""Key templates: the same key, or the same refusal, in Python and in SQL."""

import json
from typing import Any

import psycopg
import pytest
from db import Connection, value
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from underway import PayloadError
from underway.keys import template as keys
from underway.payload import codec


def in_sql(connection: Connection, template: str, payload: str) -> str | None:
    """The key that SQL renders; None for a refusal."""
    try:
        filled: str = value(connection, "select underway.render_key(%s, %s::json)", [template, payload])
    except psycopg.Error as error:
        if error.sqlstate != "UW003":
            raise
        return None
    return filled


def in_python(template: str, payload: str) -> str | None:
    try:
        return keys.fill(template, payload.encode())
    except PayloadError:
        return None


@pytest.mark.parametrize(
    ("template", "payload", "key"),
    [
        ("constant", "null", "constant"),
        ("constant", "[1]", "constant"),
        ("{id}", '{"id": 42}', "42"),
        ("{id}", '{"id": -42}', "-42"),
        ("{id}", '{"id": 18446744073709551615}', "18446744073709551615"),
        ("customer {id}!", '{"id": "a\\tb ü🦆 {x} %s \\\\"}', "customer a\tb ü🦆 {x} %s \\!"),
        ("{a}{b}", '{"a": true, "b": false}', "truefalse"),
        ("{a.b.c}/{a.d}", '{"a": {"b": {"c": 1}, "d": "e"}}', "1/e"),
        ("{with space}-{ü}", '{"with space": "x", "ü": "y"}', "x-y"),
        ("{id}", '{"id": 1' + 399 * "0" + "}", "1" + 399 * "0"),
        ("{id}", '{"id": "x", "id": "y"}', "y"),
        ("[{id}]", '{"id": ""}', "[]"),
    ],
)
def test_a_key_is_its_template_with_the_fields_filled_in(
    connection: Connection, template: str, payload: str, key: str
) -> None:
    assert in_python(template, payload) == key
    assert in_sql(connection, template, payload) == key


@pytest.mark.parametrize(
    ("template", "payload", "message"),
    [
        ("{id}", "{}", "the key '{id}' needs the field id, which the input does not have"),
        ("{id}", "null", "the key '{id}' needs the field id, which the input does not have"),
        ("{a.b}", '{"a": 1}', "the key '{a.b}' needs the field a.b, which the input does not have"),
        ("{a.0}", '{"a": [1]}', "the key '{a.0}' needs the field a.0, which the input does not have"),
        ("{id}", '{"id": null}', "the key '{id}' takes a string, an integer or a boolean from the field id, not null"),
        ("{id}", '{"id": 1.5}', "the key '{id}' takes a string, an integer or a boolean from the field id, not 1.5"),
        ("{id}", '{"id": 1.0}', "the key '{id}' takes a string, an integer or a boolean from the field id, not 1.0"),
        ("{id}", '{"id": [1]}', "the key '{id}' takes a string, an integer or a boolean from the field id, not [1]"),
        ("{id}", '{"id": ""}', "the key '{id}' has 0 characters here, and 1 to 400 are allowed"),
        (
            "{id}",
            '{"id": ' + 5000 * "9" + "}",
            "the key '{id}' has 5000 characters here, and 1 to 400 are allowed",
        ),
        (
            "{id}",
            json.dumps({"id": "x" * 401}),
            "the key '{id}' has 401 characters here, and 1 to 400 are allowed",
        ),
    ],
)
def test_an_input_that_gives_no_valid_key_is_refused_with_the_reason(
    connection: Connection, template: str, payload: str, message: str
) -> None:
    with pytest.raises(PayloadError) as raised:
        keys.fill(template, payload.encode())
    assert str(raised.value).replace('"', "") == message
    with pytest.raises(psycopg.Error) as refused:
        connection.execute("select underway.render_key(%s, %s::json)", [template, payload])
    assert refused.value.diag.message_primary == message
    assert refused.value.sqlstate == "UW003"


@pytest.mark.parametrize("number", ["1e3", "1E3", "10e-1", "1.0", "-0.0", "1e400", "1e131071"])
def test_a_number_with_a_point_or_an_exponent_is_not_an_integer(connection: Connection, number: str) -> None:
    assert in_python("{id}", f'{{"id": {number}}}') is None
    assert in_sql(connection, "{id}", f'{{"id": {number}}}') is None


@pytest.mark.parametrize("template", ["", "{", "}", "{}", "a{b", "{a}}", "{{a}}", "{.a}", "{a.}", "{a..b}"])
def test_an_invalid_template_is_refused_in_sql(connection: Connection, template: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        connection.execute("select underway.render_key(%s, '{}')", [template])
    assert refused.value.sqlstate == "UW002"


names = st.sampled_from(["a", "b", "ü", "a b"])
texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=5)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | texts | numbers,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
literal = texts.map(lambda text: text.replace("{", "").replace("}", ""))
fields = st.lists(names, min_size=1, max_size=3).map(lambda path: "{" + ".".join(path) + "}")
templates = st.lists(literal | fields, min_size=1, max_size=4).map("".join).filter(bool)


def test_python_and_sql_agree_about_any_template_and_input(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:

        @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
        @example(template="{a}", tree={"a": 1e22})
        @example(template="{a}", tree={"a": 1e300})
        @example(template="{a}", tree={"a": -0.0})
        @given(template=templates, tree=st.dictionaries(names, values, max_size=4) | values)
        def agree(template: str, tree: Any) -> None:
            payload = codec.encode(tree, Any).decode()
            assert in_python(template, payload) == in_sql(connection, template, payload)

        agree()
