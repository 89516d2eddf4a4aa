"""Loading a single file needs the memory of its weights about once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sd_ext.models import find_model
from sd_ext.models.pipeline import load_pipeline
from tests.models import original_layout as original

STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory(line):
    """Bytes of this process, as Linux tells them: "VmRSS" now, "VmHWM" at most since it was reset."""
    return 1024 * int(STATUS.read_text().partition(f"{line}:")[2].split()[0])


@pytest.mark.slow
@pytest.mark.skipif(not REFS.exists(), reason="needs Linux's record of the most memory used")
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=str)
def test_a_file_of_full_size_is_loaded_once(dtype, tmp_path):
    listed = original.shapes("sd15", tiny=False)
    path = original.write_sparse(tmp_path / "a.safetensors", listed, metadata=original.EPSILON)
    small = original.write_sparse(tmp_path / "b.safetensors", original.shapes("sd15"), metadata=original.EPSILON)
    load_pipeline(find_model(small), torch.device("cpu"), dtype)  # the libraries are imported
    REFS.write_text("5")
    before = memory("VmRSS")
    pipe = load_pipeline(find_model(path), torch.device("cpu"), dtype)
    used = memory("VmHWM") - before
    weights = sum(p.numel() * p.element_size() for name in ("unet", "vae", "text_encoder")
                  for p in getattr(pipe, name).parameters())  # fmt: skip
    print(f"{used / weights:.3f}")
    assert used <= 1.2 * weights
