"""What is on the wire: anything but a frame is refused, and what is refused leaves nothing behind."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowray.mesh import frames
from flowray.mesh.frames import BadFrame, Bye, Frame, Hello, Limits

COUNTS = st.integers(0, 1 << 62)
HELLOS = st.builds(
    Hello,
    st.integers(-(1 << 63), (1 << 63) - 1),
    *[st.text(max_size=200)] * 3,
    *[st.text(max_size=64)] * 2,
    st.integers(1, 1 << 62),
    *[COUNTS] * 3,
    st.text(max_size=100),
)
FRAMES = st.builds(
    Frame, COUNTS, COUNTS, COUNTS, st.integers(1, 1 << 62), st.lists(st.binary(max_size=50), max_size=20)
)
ANY = st.one_of(HELLOS, FRAMES, st.builds(Bye, st.text()))
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(), st.text(), st.binary()),
    lambda inner: st.one_of(st.lists(inner, max_size=12), st.dictionaries(st.text(), inner, max_size=5)),
)


def decoded(data: bytes) -> object | None:
    """A frame, or None if it is refused; any other outcome is a failure."""
    try:
        frame = frames.decode(data)
    except BadFrame as error:
        assert str(error)
        return None
    assert isinstance(frame, Hello | Frame | Bye)
    if isinstance(frame, Frame):
        assert frame.first >= 1 and min(frame.received, frame.limit_items, frame.limit_bytes) >= 0
        assert all(type(message) is bytes for message in frame.messages)
    return frame


@given(ANY)
def test_what_is_written_is_read(frame):
    assert frames.decode(frames.encode(frame)) == frame


@given(st.binary(max_size=300))
@example(b"")
@example(b"\x91" * 100_000)  # arrays in arrays
@example(b"\x96\x01\x00\x00\x00\x01\xdd\xff\xff\xff\xff")  # a frame that claims four billion messages
@example(b"\x96\x01\x00\x00\x00\x01\x91\xc6\xff\xff\xff\xff")  # and one with a message of four gigabytes
@example(b"\xc1")
def test_random_bytes_are_refused_or_a_frame(data):
    decoded(data)


@settings(max_examples=40)
@given(PLAIN)
def test_plain_data_is_refused_or_a_frame(data):
    decoded(msgspec.msgpack.encode(data))


@settings(max_examples=200)
@given(ANY, st.data())
def test_damaged_frames_are_refused_or_other_frames(frame, data):
    whole = bytearray(frames.encode(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole)))
        match data.draw(st.sampled_from(["flip", "insert", "cut", "truncate"])):
            case "flip" if at < len(whole):
                whole[at] ^= data.draw(st.integers(1, 255))
            case "insert":
                whole[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            case "cut":
                del whole[at : at + data.draw(st.integers(1, 9))]
            case "truncate":
                del whole[at:]
    decoded(bytes(whole))


@given(ANY, st.data())
def test_truncated_frames_are_refused(frame, data):
    whole = frames.encode(frame)
    assert decoded(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


@pytest.mark.parametrize(
    "values",
    [
        [1, -1, 0, 0, 1, []],
        [1, 0, -1, 0, 1, []],
        [1, 0, 0, -1, 1, []],
        [1, 0, 0, 0, 0, []],
        [1, 0, 0, 0, 1 << 63, []],
        [1, 0, 0, 0, 1, ["text"]],
        [1, 0, 0, 0, 1.5, []],
        [3, 0, 0, 0, 1, []],
        [0, 1, "r" * 201, "a", "b", "e", "", 1, 0, 0, 0],
        [0, 1, "r", "a", "b", "e" * 65, "", 1, 0, 0, 0],
        [0, 1, "r", "a", "b", "e", "", 0, 0, 0, 0],
    ],
)
def test_values_out_of_their_range_are_refused(values):
    with pytest.raises(BadFrame, match="not a frame"):
        frames.decode(msgspec.msgpack.encode(values))


@given(st.text(max_size=5_000))
def test_a_farewell_is_short_whatever_it_quotes(reason):
    said = frames.decode(frames.farewell(reason))
    assert isinstance(said, Bye) and said.reason == reason[: frames.REASON_CHARACTERS]


@given(HELLOS)
def test_a_greeting_fits_into_the_smallest_frame_and_shows_no_token(hello):
    tiny = Limits(window_items=1, window_bytes=1, frame_bytes=1, message_bytes=1)
    assert len(frames.encode(hello)) <= tiny.wire_bytes
    longest = msgspec.structs.replace(hello, token="\U0001f511" * 1_000 + "t" * 3_000)
    assert len(frames.encode(longest)) <= tiny.wire_bytes
    assert "\U0001f511" not in repr(longest)


@pytest.mark.parametrize("field", ["window_items", "window_bytes", "frame_bytes", "message_bytes"])
def test_limits_must_let_something_through(field):
    with pytest.raises(ValueError, match=r"must be at least"):
        Limits(**{field: 0})


def test_a_window_holds_the_largest_message():
    with pytest.raises(ValueError, match="window_bytes"):
        Limits(window_bytes=10, message_bytes=11)
