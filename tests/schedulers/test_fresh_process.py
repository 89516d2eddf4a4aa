"""What `import sd_ext` alone gives, seen from a process that has imported nothing else of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import sd_ext

DOCS = Path(__file__).resolve().parents[2] / "docs"

SCRIPT = """
import json, pickle, sys
sys.path.insert(0, sys.argv[1])
import sd_ext
told = {}

from diffusers import DDPMPipeline, DiffusionPipeline, UNet2DConditionModel, UNet2DModel
loaded = DiffusionPipeline.from_pretrained(sys.argv[1] + "/ours").scheduler
told["loaded"] = [type(loaded).__module__, type(loaded).__name__, loaded.config["grid"]]

def below(cls):
    return {cls}.union(*map(below, cls.__subclasses__()))

sd_ext.CachedUNet2DConditionModel
recorded = {cls for base in (sd_ext.TableScheduler, UNet2DConditionModel) for cls in below(base)}
recorded = {cls for cls in recorded if cls.__module__ == "sd_ext"}
samplers = {cls for cls in below(sd_ext.TableScheduler) if cls._table is not sd_ext.TableScheduler._table}
told["recorded"] = len(recorded)
told["lost"] = sorted(cls.__name__ for cls in recorded if getattr(sd_ext, cls.__name__, None) is not cls)
told["elsewhere"] = sorted(cls.__name__ for cls in samplers - recorded)
told["unlisted"] = sorted(cls.__name__ for cls in samplers - {info.cls for info in sd_ext.list_samplers()})

scheduler = sd_ext.make_scheduler("ralston karras")
scheduler.set_timesteps(6)
told["plugin"] = [type(scheduler).__module__, len(scheduler.timesteps), sd_ext.list_samplers()[-1].name]
told["plugin pickles"] = type(pickle.loads(pickle.dumps(scheduler))) is type(scheduler)
unet = UNet2DModel.from_pretrained(sys.argv[1] + "/ours/unet")
DDPMPipeline(unet, scheduler).save_pretrained(sys.argv[1] + "/theirs")
loaded = DiffusionPipeline.from_pretrained(sys.argv[1] + "/theirs").scheduler
told["plugin loads"] = type(loaded) is type(scheduler) and loaded.config["grid"] == "karras"
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory, fresh) -> dict:
    """What the script found, with a saved pipeline of ours and a plugin as pip leaves it in its folder."""
    from diffusers import DDPMPipeline, UNet2DModel

    folder = tmp_path_factory.mktemp("fresh")
    blocks = {"block_out_channels": (4,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(sample_size=8, norm_num_groups=2, layers_per_block=1, attention_head_dim=2, **blocks)
    DDPMPipeline(unet, sd_ext.make_scheduler("euler a karras")).save_pretrained(folder / "ours")

    page = (DOCS / "plugins.md").read_text()
    (code,) = re.findall(r"^```python\n(# ralston.py.*?)^```", page, re.M | re.S)
    (toml,) = re.findall(r"^```toml\n.*?\n(.*?)^```", page, re.M | re.S)
    (folder / "ralston.py").write_text(code)
    info = folder / "ralston-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ralston\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sd_ext.samplers]\n" + toml.replace('"', ""))

    done = fresh(SCRIPT, folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_sd_ext_alone_loads_a_saved_pipeline(told):
    assert told["loaded"] == ["sd_ext", "EulerAncestralDiscreteScheduler", "karras"]


def test_every_class_that_pipelines_record_as_ours_is_found(told):
    """A class that was forgotten in its family's `__all__` would make the pipelines saved with it unloadable."""
    assert told["recorded"] > 30
    assert told["lost"] == told["elsewhere"] == []
    assert told["unlisted"] == ["CalibratedScheduler"]  # most models have none


def test_an_installed_plugin_is_one_name_away_and_its_pipelines_load(told):
    assert told["plugin"] == ["ralston", 6, "ralston"]
    assert told["plugin pickles"] and told["plugin loads"]
