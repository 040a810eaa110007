from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.errors import PayloadError
from flowray.values import APART_BYTES, Encoded, decode_value, encode_parts, encode_value, require_plain

LARGE = 3 * APART_BYTES


def joined(encoded: Encoded) -> bytearray:
    data = bytearray(b"".join(encoded.parts))
    assert len(data) == encoded.size_bytes
    return data


def sent(value: Any) -> tuple[Any, Encoded]:
    encoded = encode_parts(value, "payload")
    return decode_value(encoded.codec, joined(encoded)), encoded


def test_large_bytes_are_their_own_payload() -> None:
    value = b"x" * APART_BYTES
    again, encoded = sent(value)
    assert encoded.codec == "bytes"
    assert encoded.parts[0] is value
    assert type(again) is bytes
    assert again == value
    assert encode_value(value[1:], "payload")[0] == "msgpack"
    assert encode_value(value, "payload") == ("bytes", value)


def test_the_buffers_of_arrays_are_neither_copied_on_the_way_out_nor_on_the_way_in() -> None:
    array = np.arange(LARGE, dtype=np.uint8)
    encoded = encode_parts({"a": (array, array.reshape(3, -1).T)}, "payload")
    assert encoded.codec == "pickle-buffers"
    apart = [part for part in encoded.parts if isinstance(part, memoryview)]
    assert [np.shares_memory(np.frombuffer(part, np.uint8), array) for part in apart] == [True] * len(apart)
    data = joined(encoded)
    first, second = decode_value(encoded.codec, data)["a"]
    assert (first == array).all()
    assert (second == array.reshape(3, -1).T).all()
    assert np.shares_memory(first, np.frombuffer(data, np.uint8))
    assert first.ctypes.data % 64 == np.frombuffer(data, np.uint8).ctypes.data % 64
    first[:] = 7


def test_an_array_may_be_changed_whatever_its_size() -> None:
    for size in (10, APART_BYTES - 1, APART_BYTES, LARGE):
        array = np.zeros(size, np.uint8)
        codec, data = encode_value(array, "payload")
        again = decode_value(codec, data)  # from bytes, which cannot be written to
        again += 1
        assert again.sum() == size


def test_small_buffers_stay_within_the_pickle() -> None:
    _, encoded = sent([np.zeros(100), np.zeros(200)])
    assert (encoded.codec, len(encoded.parts)) == ("pickle", 1)


def test_arrow_tables_come_back() -> None:
    table = pa.table({"n": np.arange(LARGE), "s": ["x"] * LARGE})
    again, encoded = sent(table)
    assert again.equals(table)
    assert encoded.codec == "pickle-buffers"


@pytest.mark.slow
def test_tensors_come_back_and_large_ones_without_a_copy() -> None:
    torch = pytest.importorskip("torch")
    large = torch.arange(LARGE, dtype=torch.float32)
    again, encoded = sent({"t": large, "same": large, "small": torch.ones(3)})
    assert encoded.codec == "pickle-buffers"
    assert type(again["t"]) is torch.Tensor
    assert torch.equal(again["t"], large)
    assert again["same"] is again["t"]
    again["t"] += 1
    part = next(part for part in encoded.parts if isinstance(part, memoryview))
    assert np.frombuffer(part, np.uint8).ctypes.data == large.data_ptr()
    for other in (
        large.requires_grad_(),
        torch.ones(LARGE, dtype=torch.bfloat16),
        torch.ones(LARGE, 2)[:, 0],
        torch.nn.Parameter(torch.ones(LARGE)),
        torch.eye(300).to_sparse(),
        torch.ones(LARGE, dtype=torch.complex64).conj(),
    ):
        back, _ = sent(other)
        assert type(back) is type(other)
        assert back.requires_grad == other.requires_grad
        assert back.dtype == other.dtype
        assert torch.equal(back.to_dense(), other.to_dense())


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
                    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_any_value_comes_back_the_same(value: Any) -> None:
    again, _ = sent(value)
    assert again == value
    assert type(again) is type(value)


# ── what comes from outside ──────────────────────────────────────────────────────────────────────────────────────────


def test_outside_values_that_only_a_pickle_holds_are_refused() -> None:
    for value in ((1, 2), {1}, {1: "x"}, np.zeros(3), object(), [[(1,)]], 1 << 70, "\ud800"):
        with pytest.raises(PayloadError, match=r"payload: a .* that is not plain data"):
            encode_parts(value, "payload", None)
    assert encode_parts({"a": [1, b"x" * LARGE]}, "payload", None).codec == "msgpack"
    assert encode_parts(b"x" * LARGE, "payload", None).codec == "bytes"


def test_only_plain_codecs_are_taken_from_outside() -> None:
    for codec in ("msgpack", "bytes"):
        require_plain(codec, "payload")
    for codec in ("pickle", "pickle-buffers", "", "msgpack ", "x" * 10_000):
        with pytest.raises(PayloadError, match=r"payload: has codec .{1,70}; from outside") as raised:
            require_plain(codec, "payload")
        assert raised.value.field == "payload"


def test_plain_codecs_run_no_code() -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("unpickled",))

    bad = pickle.dumps(Trap())
    assert decode_value("bytes", bad) == bad
    with pytest.raises(Exception, match=r"MessagePack|msgpack|trailing"):
        decode_value("msgpack", bad)


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(PayloadError, match="'json' is not one of"):
        decode_value("json", b"{}")


@given(st.data())
def test_damaged_buffers_are_refused(data: st.DataObject) -> None:
    encoded = encode_parts(np.zeros(APART_BYTES, np.uint8), "payload")
    whole = joined(encoded)
    with pytest.raises(PayloadError, match="not what the codec pickle-buffers makes"):
        decode_value(encoded.codec, whole[: data.draw(st.integers(0, len(whole) - 1))])
    at = data.draw(st.sampled_from([7, 6, 5, 15, 14, 13, 23, 22, 21]))  # high bytes of the count and the sizes
    whole[at] = data.draw(st.integers(1, 255))
    with pytest.raises(PayloadError, match="not what the codec pickle-buffers makes"):
        decode_value(encoded.codec, whole)


def test_values_need_no_array_library() -> None:
    code = "import sys, flowray.values as v; v.encode_value(b'x' * 99999, 'p'); v.encode_value((1,), 'p')\n"
    code += "print([m for m in ('numpy', 'torch', 'ray', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
