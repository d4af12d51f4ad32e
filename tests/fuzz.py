"""JSON values of all kinds, and a check that each is accepted or refused with a message."""

from hypothesis import strategies as st

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([10**400, -1, 0, 1, 128, 129, "self:", "1e9", "\x00", ""])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=10,
)


def is_accepted(function, *args) -> bool:
    """Whether `function` accepts the arguments; a refusal needs a message."""
    refusal = None
    try:
        function(*args)
    except ValueError as error:
        refusal = str(error)
    assert refusal != ""
    return refusal is None
