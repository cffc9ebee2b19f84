"""The traffic counter on an HLO module that is small enough to count by hand."""

import importlib.util
import pathlib
import sys

import pytest

PATH = pathlib.Path(__file__).parents[2] / "benchmarks" / "hlo_traffic.py"

HLO = """\
HloModule jit_step, is_scheduled=true

%fused_slice (p0: bf16[8,4], p1: f32[2]) -> bf16[8,2] {
  %p0 = bf16[8,4]{1,0} parameter(0)
  %sum = bf16[8,4]{1,0} add(%p0, %p0)
  %slice = bf16[8,2]{1,0} slice(%sum), slice={[0:8], [0:2]}
  %p1 = f32[2]{0} parameter(1)
  ROOT %multiply = bf16[8,2]{1,0} multiply(%slice, %p1)
}

%fused_update (q0: bf16[8,4], q1: bf16[8,1]) -> bf16[8,4] {
  %q0 = bf16[8,4]{1,0} parameter(0)
  %q1 = bf16[8,1]{1,0} parameter(1)
  %zero = s32[] constant(0)
  ROOT %update = bf16[8,4]{1,0} dynamic-update-slice(%q0, %q1, %zero, %zero)
}

ENTRY %main (x: bf16[8,4], gain: f32[2]) -> bf16[8,4] {
  %x = bf16[8,4]{1,0} parameter(0)
  %gain = f32[2]{0} parameter(1)
  %fusion.1 = bf16[8,2]{1,0} fusion(%x, %gain), kind=kLoop, calls=%fused_slice
  %kernel.2 = (bf16[8,1]{1,0}, f32[4]{0}) custom-call(%fusion.1), custom_call_target="triton", \
metadata={op_name="jit(step)/SCOPE/pallas_call"}
  %new = bf16[8,1]{1,0} get-tuple-element(%kernel.2), index=0
  ROOT %fusion.2 = bf16[8,4]{1,0} fusion(%x, %new), kind=kLoop, calls=%fused_update, \
metadata={op_name="jit(step)/SCOPE/update"}
}
""".replace("SCOPE", "1x1_forward_moves_123_bytes_200_cached_5_steps_7_operations")


@pytest.fixture(scope="module")
def hlo_traffic():
    spec = importlib.util.spec_from_file_location("hlo_traffic", PATH)
    module = sys.modules["hlo_traffic"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_elements_that_kernels_touch_are_counted(hlo_traffic):
    traffic = hlo_traffic.count(HLO)
    sliced = 8 * 2 * 2 + 2 * 4 + 8 * 2 * 2  # only the slice of the operand is read
    updated = 2 * 8 * 1 * 2  # only the update is read and written
    # A kernel's declaration counts only for the kernel, not for other instructions in its scope.
    assert dict(traffic.kinds) == {"fusion": sliced + updated, "triton": 123}
    assert traffic.total == sliced + updated + 123
    assert len(traffic.kernels) == 3
    assert "3 kernels" in traffic.summary()


def test_the_time_of_a_kernel_is_its_scarcest_resource(hlo_traffic):
    traffic = hlo_traffic.count(HLO)
    gpu = hlo_traffic.targets.GPUS["h200"]
    loops = {"1x1_forward": 1e6}
    found = traffic.seconds(gpu, loops)
    assert found.keys() == {"1x1 forward", "other"}
    row = found["1x1 forward"]
    assert row["memory"] == pytest.approx(123 / (0.9 * 4.8e12))
    assert row["issue"] == pytest.approx(5 * 1e6 / (4 * 132) / 1.83e9)
    assert row["l2"] == pytest.approx(200 / 5.5e12)
    assert row["matrix"] == pytest.approx(7 / 989e12)
    assert row["time"] == row["issue"]
    assert found["other"]["time"] == pytest.approx(2 * hlo_traffic.LAUNCH)


def test_sizes_of_shapes(hlo_traffic):
    assert hlo_traffic.array_bytes("(bf16[2,3]{1,0}, f32[], pred[5]{0}, u8[0]{0})") == 12 + 4 + 5


def test_check_names_what_grew(hlo_traffic):
    stored = {"moved_bytes": 1000, "temporary_bytes": 100}
    assert hlo_traffic.check(stored, {"moved_bytes": 1030, "temporary_bytes": 90}) == []
    assert hlo_traffic.check(stored, {"moved_bytes": 1031, "temporary_bytes": 100}) == [
        "moved_bytes grew from 1000 to 1031"
    ]
