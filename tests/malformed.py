"""Every reader of files that others may have written, each with a good file, and what happens when that is spoiled.

python -m tests.malformed COUNT SEED        prints what went wrong as JSON, a line a case; nothing is good
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import logging
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from sd_ext.errors import SdExtError

from .mutations import JSON, RAW, TENSORS, TEXT, TOML, Spoil

MEMORY = 500 * 2**20  # bytes beside what the process has when a file is read
SECONDS = 20.0  # of a processor, for one file; the clock stops only what waits for ever
WAIT = 30 * SECONDS


class Hang(BaseException):
    """A file took too long; nothing that catches errors catches this."""


@dataclass(frozen=True)
class Reader:
    """One way in.

    Args:
        name: shown.
        write: puts a good file, and what belongs to it, into an empty folder.
        file: the one that is spoiled, within the folder.
        read: reads it as the package does; raises `SdExtError` for what is not as it should be.
        how: the ways it is spoiled.
        errors: what `read` may raise.
    """

    name: str
    write: Callable[[Path], object]
    file: str
    read: Callable[[Path], object]
    how: tuple[Spoil, ...] = JSON
    errors: tuple[type[Exception], ...] = (SdExtError,)


@dataclass(frozen=True)
class Failure:
    """What went wrong, and what leads to it again: `spoiled(reader, seed)`."""

    reader: str
    seed: str
    what: str


def spoiled(reader: Reader, good: bytes, seed: str) -> bytes:
    draw = random.Random(seed)
    for _ in range(draw.choice([1, 1, 1, 2])):
        good = draw.choice(reader.how)(good, draw) if good else draw.randbytes(20)
    return good


def try_out(count: int, seed: int, names: tuple[str, ...] = ()) -> tuple[list[Failure], dict[str, int]]:
    """Read `count` spoiled files, of each reader as many.

    Returns:
        What went wrong; and for each reader how many files it refused.
    """
    failures: list[Failure] = []
    refused: dict[str, int] = {}
    chosen = [reader for reader in readers() if not names or reader.name in names]
    with tempfile.TemporaryDirectory() as work, quiet():
        folders = {}
        for reader in chosen:
            folders[reader.name] = Path(work) / reader.name
            folders[reader.name].mkdir()
            reader.write(folders[reader.name])
            reader.read(folders[reader.name])  # the good one, without limits: what is imported and cached stays
            refused[reader.name] = 0
        good = {reader.name: (folders[reader.name] / reader.file).read_bytes() for reader in chosen}
        for number in range(count):
            reader = chosen[number % len(chosen)]
            path, each = folders[reader.name] / reader.file, f"{seed} {reader.name} {number}"
            path.write_bytes(spoiled(reader, good[reader.name], each))
            found, what = outcome(reader, folders[reader.name])
            refused[reader.name] += found
            if what:
                failures.append(Failure(reader.name, each, what))
            path.write_bytes(good[reader.name])
    return failures, refused


def outcome(reader: Reader, folder: Path) -> tuple[bool, str]:
    """(whether the file was refused, what was wrong with that)."""
    start = time.monotonic()
    try:
        with at_most(MEMORY, SECONDS):
            reader.read(folder)
    except reader.errors as error:
        text = str(error)
        fine = (
            text and "\n" not in text and len(text) < 2200 and (text.isprintable() or not isinstance(error, SdExtError))
        )
        return True, "" if fine else f"a message that is no line: {text[:200]!r}"
    except Hang:
        return False, f"took longer than {time.monotonic() - start:.0f} s"
    except Exception:
        return False, traceback.format_exc()
    return False, ""


@contextlib.contextmanager
def at_most(memory: int, seconds: float) -> Iterator[None]:
    """Within the block, so much more memory and processor time; what goes beyond is `MemoryError` and `Hang`."""
    status = dict(
        line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Vm")
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)

    def stop(*_: object) -> None:
        raise Hang

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, WAIT)}
    before = {number: signal.signal(number, stop) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    resource.setrlimit(resource.RLIMIT_DATA, (int(status["VmData"].split()[0]) * 1024 + memory, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What is said of left-out lines and the like is not shown."""
    unheard = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(unheard), contextlib.redirect_stderr(unheard):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


# ---- the readers -----------------------------------------------------------------------------------------------------


def put(name: str, content: str | bytes) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def all_of(*writers: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [write(folder) for write in writers]


@cache
def png(text: bool = False, form: str = "png") -> bytes:
    from PIL import Image

    from sd_ext.cli.pictures import Record, encode
    from sd_ext.cli.request import Recipe

    picture = Image.new("RGB", (24, 20), "red")
    recipe = Recipe(prompt="red apple", seed=7, guidance=4.5, size="64x64", device="cpu", dtype="float32")
    return encode(picture, Record(recipe) if text else None, form)


def pictures(folder: Path) -> None:
    """Read a data set and look at its pictures."""
    from sd_ext.training.data.buckets import Buckets
    from sd_ext.training.data.look import Wanted, look_at
    from sd_ext.training.data.sources import read_items

    for item in read_items(folder, "all"):
        found = look_at(item, Wanted(Buckets((16,), 8), 1, False, "center", False, True))
        assert found.problem or found.sizes


def tar(folder: Path) -> None:
    with tarfile.open(folder / "0.tar", "w") as archive:
        for name, content in (
            ("a.png", png()),
            ("a.json", b'{"caption": "red", "n": 1}'),
            ("b.png", png()),
            ("b.txt", b"b"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def pipeline(folder: Path) -> None:
    import sd_ext

    shutil.copytree(sd_ext.pretrained_path(), folder / "model")


def trainable(folder: Path) -> Any:
    from sd_ext.training.model.trainable import find_trainable

    return find_trainable(str(folder / "model"))


def index(folder: Path) -> None:
    """For drawing, and for training."""
    from sd_ext.models import find_model

    problems = []
    for read in (lambda: find_model(folder / "model").check(), lambda: trainable(folder)):
        try:
            read()
        except SdExtError as error:
            problems.append(error)
    if problems:
        raise problems[0]


def part(name: str, folder: Path) -> None:
    import torch

    files = trainable(folder)
    with torch.device("meta"):
        files.without_weights(name)
    assert files.pixels_per_latent >= 1


def noise(folder: Path) -> None:
    from sd_ext.schedulers import NoiseSchedule

    NoiseSchedule.from_config(trainable(folder).noise())


def scheduler(folder: Path) -> None:
    import sd_ext

    for cls in (sd_ext.DDIMScheduler, sd_ext.UniPCMultistepScheduler, sd_ext.FlowMatchEulerDiscreteScheduler):
        cls.from_pretrained(folder).set_timesteps(4)


def save_scheduler(folder: Path) -> None:
    import sd_ext

    one = sd_ext.make_scheduler("dpm++ 2m karras", grid_options={"rho": 6.0}, trained_betas=[0.1, 0.2, 0.3, 0.4, 0.5])
    one.save_pretrained(folder)


def unet_options(folder: Path) -> None:
    """The options of a U-Net's config, on a network in memory."""
    import sd_ext
    from sd_ext.unets.variant import OPTIONS

    cls = sd_ext.VariantUNet2DConditionModel
    config = cls.load_config(folder)
    cls.from_unet(tiny_unet(), **{name: config[name] for name in OPTIONS if name in config})


@cache
def tiny_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8, norm_num_groups=4,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def save_unet_options(folder: Path) -> None:
    import sd_ext

    one = sd_ext.VariantUNet2DConditionModel.from_unet(
        tiny_unet(), cache_interval=2, token_merge_ratio=[0.5], freeu_s1=0.9, freeu_s2=0.2, freeu_b1=1.2, freeu_b2=1.4,
        pag_scale=1.0, highres_factor="auto", attention_gate=3,
    )  # fmt: skip
    one.save_config(folder)


def exported(folder: Path) -> None:
    from sd_ext.reading import read_json
    from sd_ext.schedulers.exported import ExportedScheduler

    made = ExportedScheduler.from_config(read_json(folder / "scheduler_config.json", dict[str, Any]))
    made.set_timesteps(2)


def export_scheduler(folder: Path) -> None:
    import sd_ext
    from sd_ext.schedulers.export import export

    export(sd_ext.make_scheduler("dpm++ 2m"), folder, [1, 2])


def table(folder: Path) -> None:
    from sd_ext.plain_files import read_text
    from sd_ext.schedulers import Table

    str(Table.from_json(read_text(folder / "table.json")))


def save_table(folder: Path) -> None:
    import sd_ext

    one = sd_ext.make_scheduler("unipc")
    one.set_timesteps(4)
    (folder / "table.json").write_text(one.table().to_json())


def save_lora(format: str, name: str, folder: Path) -> None:
    import torch

    import sd_ext.lora
    from sd_ext.lora import Adapter, Lora, ModuleName

    block = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    sides = {f"{block}.to_q": (8, 8), f"{block}.to_k": (8, 768), "mid_block.resnets.0.conv1": None}
    adapters = {}
    for path, sizes in sides.items():
        tensors = {"down": torch.ones(2, sizes[1]), "up": torch.ones(sizes[0], 2)} if sizes else {
            "down": torch.ones(2, 4, 3, 3), "up": torch.ones(4, 2, 1, 1)
        }  # fmt: skip
        adapters[ModuleName("unet", path)] = Adapter("lora", tensors, 2.0 if sizes else 1.0)
    sd_ext.lora.save_lora(Lora(adapters, base="sd15"), folder / name, format)


def save_peft(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = "base_model.model.mid_block.attentions.0.proj_in"
    tensors = {f"{path}.lora_A.weight": torch.ones(2, 8), f"{path}.lora_B.weight": torch.ones(8, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": True, "alpha_pattern": {"proj_in": 3.0}}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def lora(folder: Path, name: str = "") -> None:
    from sd_ext.lora import read_lora

    read_lora(folder / name)


def weights(folder: Path) -> None:
    from sd_ext.models import find_model

    for tensor in list(find_model(folder / "model").tensors("unet").values())[::40]:
        tensor.read()


def save_single_file(folder: Path) -> None:
    """The U-Net alone, in one byte a weight."""
    from tests.models import original_layout as original

    unet = original.unet(32, (1, 1), 1, (1, 0), 1, 768, False)
    listed = {f"model.diffusion_model.{key}": shape for key, shape in unet}
    original.write_sparse(folder / "a.safetensors", listed, "F8_E4M3", {"modelspec.title": "é"})


def single_file(folder: Path) -> None:
    from sd_ext.models import describe, find_model

    describe(folder / "a.safetensors")
    model = find_model(folder / "a.safetensors")
    model.noise()
    for tensor in list(model.tensors("unet").values())[::40]:
        tensor.read()


def pieces(folder: Path) -> None:
    from sd_ext.models.weights import stored_tensors, weight_files

    list(stored_tensors(weight_files(folder)))


def save_pieces(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, name in enumerate(names):
        save_file({f"a{number}": torch.ones(2)}, folder / name)
    listed = {"metadata": {"total_size": 16}, "weight_map": {f"a{n}": name for n, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))


def tokenizer(folder: Path) -> None:
    trainable(folder).load("tokenizer")


def state(folder: Path) -> None:
    from sd_ext.training.run import checkpoint

    checkpoint.load(folder / "step-00000001")


def save_state(folder: Path) -> None:
    import torch

    from sd_ext.training.run import checkpoint

    optimizer = {"class": "torch.optim.adamw.AdamW", "state": {}, "groups": [{"params": ["a"], "lr": 0.1}]}
    values = {"step": 1, "optimizer": optimizer, "loss_scale": None, "torch": "2", "history": None}
    checkpoint.write_folder(folder / "step-00000001", {"model.safetensors": {"a": torch.ones(3)}}, values)


def record(folder: Path) -> None:
    from sd_ext.training.run.folder import compare

    compare(folder, {"run": "lora", "seed": 0})


def history(folder: Path) -> None:
    from sd_ext.training.run.history import read_history

    assert all(isinstance(entry["step"], int) for entry in read_history(folder / "history.jsonl"))


def sums(folder: Path) -> None:
    from sd_ext.training.run.result import check

    check(folder / "model")


def cached(folder: Path) -> None:
    from sd_ext.training.encoding.cache import Cache

    Cache(folder).read("abcd")


def save_cached(folder: Path) -> None:
    import torch

    from sd_ext.training.encoding.cache import Cache

    Cache(folder).write("abcd", {"moments": torch.ones(2, 3)})


def finished(folder: Path) -> None:
    from sd_ext.hub import read_finished

    read_finished(folder)


FACTS = {
    "name": "brush", "base_model": "a/b", "family": "sd15", "steps": 3, "pictures": 2, "prompts": ["one", "two"],
    "seeds": [1, 2], "guidance": 1.5, "settings": {"rank": 4, "targets": ["a"]}, "validation": [[0, 0.5], [3, 0.25]],
    "tokens": [], "sd_ext": "0.1.0", "instance_prompt": "",
}  # fmt: skip


def card(folder: Path) -> None:
    from sd_ext.hub.base import look_up

    look_up(str(folder))


def prompts(name: str, folder: Path) -> None:
    from sd_ext.cli.lines import read_prompts

    assert all("prompt" in options for _, options in read_prompts(str(folder / name)))


def save_embedding(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"clip_l": torch.ones(2, 4), "clip_g": torch.ones(2, 8)}, folder / "a.safetensors")


def embedding(folder: Path) -> None:
    from sd_ext.prompts.words import read_embedding

    assert all(found.vectors.dim() == 2 for found in read_embedding(folder / "a.safetensors"))


LINES = """{"prompt": "red apple", "steps": 3, "lora": ["a:0.5"], "plain_prompt": true}
{"prompt": "(blue:1.2) heart", "guidance": 2.5, "size": "64x64", "num": 2}
"""
ROWS = 'prompt,steps,guidance,plain_prompt,lora\n"red, round",3,2.5,yes,a:0.5; b\nblue,,,,\n'


def recipe_of_a_picture(folder: Path) -> None:
    from sd_ext.cli.pictures import read_record

    (path,) = folder.iterdir()
    assert read_record(path).recipe.prompt


def settings_of_a_picture(folder: Path) -> None:
    from sd_ext.cli.pictures import read_told

    assert read_told(folder / "a.png").program


def graph_of_comfyui(folder: Path) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    node = {"class_type": "KSampler", "inputs": {"seed": 7, "steps": 20, "positive": ["6", 0], "model": ["4", 0]}}
    graph = {"3": node, "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
             "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}}}  # fmt: skip
    chunks = PngInfo()
    chunks.add_text("prompt", json.dumps(graph))
    Image.new("RGB", (8, 8)).save(folder / "a.png", pnginfo=chunks)


def published_picture(folder: Path) -> None:
    from sd_ext.hub.stage import _copy_picture

    _copy_picture(folder / "a.png", folder / "b.png")


SETTINGS = """# of a LoRA
[lora]
data = "pictures"
resolution = [64, 128]
learning_rate = 1e-4
flip = true
steps = 30
optimizer = "adamw"
optimizer_options = ["eps=1e-6"]
targets = ["attention", "resnet"]
"""


def settings(folder: Path) -> None:
    from sd_ext.training.lora.config import LoraConfig
    from sd_ext.training.settings.command import parse

    parse(LoraConfig, [str(folder / "a.toml")], "")


def recipe(folder: Path) -> None:
    from sd_ext.training.from_scratch import plan

    plan(folder / "out", folder / "cpu.toml")


def save_recipe(folder: Path) -> None:
    from sd_ext.training.from_scratch import find_recipe

    shutil.copyfile(find_recipe("cpu"), folder / "cpu.toml")


@cache
def readers() -> tuple[Reader, ...]:
    good = put("a.png", png())
    rows = (
        '{"file_name": "a.png", "text": "red", "repeats": 2, "split": "train"}\n{"file_name": "a.png", "text": null}\n'
    )
    one = json.dumps({"run": "lora", "seed": 0, "targets": ["a"]}, indent=1)
    log = "".join(json.dumps({"step": step, "loss": 1 / (step + 1)}) + "\n" for step in range(20))
    readme = "---\nlicense: other\nlicense_name: l\nlicense_link: LICENSE\ntags:\n- a\n---\n# A model\n"
    kohya, new = "a_kohya.safetensors", "pytorch_lora_weights.safetensors"
    finished_run = all_of(
        put("training.json", json.dumps(FACTS)), partial(save_lora, "kohya", "brush_kohya.safetensors")
    )
    return (
        Reader("metadata.jsonl", all_of(good, put("metadata.jsonl", rows)), "metadata.jsonl", pictures),
        Reader("metadata.csv", all_of(good, put("metadata.csv", 'file_name,text,repeats\na.png,"r, é",2\na.png,,\n')),
               "metadata.csv", pictures, TEXT),
        Reader("caption", all_of(good, put("a.txt", "a red square, é\n")), "a.txt", pictures, TEXT),
        Reader("picture", all_of(good, put("a.txt", "red")), "a.png", pictures, RAW),
        Reader("mask", all_of(good, put("a.mask.png", png())), "a.mask.png", pictures, RAW),
        Reader("shard", tar, "0.tar", pictures, RAW),
        Reader("model_index.json", pipeline, "model/model_index.json", index),
        Reader("unet config", pipeline, "model/unet/config.json", partial(part, "unet")),
        Reader("vae config", pipeline, "model/vae/config.json", partial(part, "vae")),
        Reader("text encoder config", pipeline, "model/text_encoder/config.json", partial(part, "text_encoder")),
        Reader("tokenizer config", pipeline, "model/tokenizer/tokenizer_config.json", tokenizer),
        Reader("vocabulary", pipeline, "model/tokenizer/tokenizer.json", tokenizer),
        Reader("noise", pipeline, "model/scheduler/scheduler_config.json", noise),
        Reader("scheduler config", save_scheduler, "scheduler_config.json", scheduler),
        Reader("unet options", save_unet_options, "config.json", unet_options),
        Reader("exported tables", export_scheduler, "scheduler_config.json", exported, JSON, (SdExtError, ValueError)),
        Reader("table", save_table, "table.json", table),
        Reader("kohya", partial(save_lora, "kohya", kohya), kohya, partial(lora, name=kohya), TENSORS),
        Reader("diffusers", partial(save_lora, "diffusers", new), new, lora, TENSORS),
        Reader("peft settings", save_peft, "adapter_config.json", lora),
        Reader("weights", pipeline, "model/unet/diffusion_pytorch_model.safetensors", weights, TENSORS),
        Reader("single file", save_single_file, "a.safetensors", single_file, TENSORS),
        Reader("index of pieces", save_pieces, "model.safetensors.index.json", pieces),
        Reader("checkpoint state", save_state, "step-00000001/state.json", state),
        Reader("checkpoint tensors", save_state, "step-00000001/model.safetensors", state, TENSORS),
        Reader("run.json", put("run.json", one), "run.json", record),
        Reader("history.jsonl", put("history.jsonl", log), "history.jsonl", history),
        Reader("model.sha256", put("model.sha256", f"{'0' * 64}  model/a\n"), "model.sha256", sums, TEXT),
        Reader("cache entry", save_cached, "ab/abcd.safetensors", cached, TENSORS),
        Reader("training.json", finished_run, "training.json", finished),
        Reader("model card", put("README.md", readme), "README.md", card, TEXT),
        Reader("text of a picture", put("a.png", png(True)), "a.png", recipe_of_a_picture, RAW),
        Reader("text of a JPEG", put("a.jpg", png(True, "jpeg")), "a.jpg", recipe_of_a_picture, RAW),
        Reader("text of a WebP", put("a.webp", png(True, "webp")), "a.webp", recipe_of_a_picture, RAW),
        Reader("ComfyUI's text", graph_of_comfyui, "a.png", settings_of_a_picture, RAW),
        Reader("prompts, JSON", put("a.jsonl", LINES), "a.jsonl", partial(prompts, "a.jsonl")),
        Reader("prompts, CSV", put("a.csv", ROWS), "a.csv", partial(prompts, "a.csv"), TEXT),
        Reader("embedding", save_embedding, "a.safetensors", embedding, TENSORS),
        Reader("published picture", put("a.png", png(True)), "a.png", published_picture, RAW),
        Reader("settings", put("a.toml", SETTINGS), "a.toml", settings, TOML),
        Reader("recipe", save_recipe, "cpu.toml", recipe, TOML),
    )  # fmt: skip


if __name__ == "__main__":
    faulthandler.enable()
    failed, counts = try_out(int(sys.argv[1]), int(sys.argv[2]), tuple(sys.argv[3:]))
    for failure in failed:
        print(json.dumps(vars(failure)))
    print(json.dumps(counts), file=sys.stderr)
    sys.exit(bool(failed))
