"""Make what the live page draws with: a model as ONNX, its samplers as JSON, and the runtime.

    pip install onnx onnxruntime        # beside sd_ext; and npm, which fetches onnxruntime-web
    python docs/live/make.py            # the embedded model, into docs/live/made
    python -m http.server -d docs/live  # and open http://localhost:8000

Another model of Stable Diffusion's kind by `--model`. Each network is compared with PyTorch before anything is written;
the folder appears whole or not at all, and is not part of the repository. Weights that float16 holds exactly, as those
of the embedded model, are stored so and computed with in float32: half the size, the same picture.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sd_ext
from sd_ext import whole
from sd_ext.cli.drawing import default_guidance
from sd_ext.errors import InputError
from sd_ext.models import find_model
from sd_ext.models.words import Words, words_of
from sd_ext.schedulers.interchange import interchanged

HERE = Path(__file__).resolve().parent
RUNTIME, RUNTIME_FILES = "onnxruntime-web@1.30.0", ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
COUNTS = (4, 5, 6, 8, 10, 12, 15, 20, 30, 50)
"""Numbers of network calls that the page offers."""
GRIDS = ("", "karras", "beta", "ays", "lambda_uniform")
"""Grids that it offers; the first is the sampler's own."""
CLOSE = 2e-3
"""How far a network may be from PyTorch's, of outputs of about 1."""


class TextEncoder(torch.nn.Module):
    """(1, tokens) ids to (1, tokens, width)."""

    def __init__(self, encoder: Any):
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.encoder(ids)[0]


class Unet(torch.nn.Module):
    """Latents, a timestep for each and the words to the prediction."""

    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, words, return_dict=False)[0]


class Decoder(torch.nn.Module):
    """Latents as the U-Net has them to pictures from -1 to 1."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae, self.scale, self.shift = vae, vae.config.scaling_factor, vae.config.shift_factor or 0.0

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latent / self.scale + self.shift, return_dict=False)[0]


def as_onnx(part: torch.nn.Module, inputs: dict[str, torch.Tensor], batched: bool = False) -> bytes:
    """A network as ONNX, compared with PyTorch.

    Args:
        part: the network, in float32.
        inputs: name -> an example.
        batched: whether its batch may have any size.

    Raises:
        InputError: the two differ.
    """
    import onnx
    import onnxruntime

    part.eval()
    file, free = io.BytesIO(), {name: {0: "batch"} for name in (*inputs, "out")} if batched else None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about sizes that are fixed here
        torch.onnx.export(
            part, tuple(inputs.values()), file, input_names=list(inputs), output_names=["out"], dynamo=False,
            opset_version=17, dynamic_axes=free,
        )  # fmt: skip
    made = halved(onnx.load_from_string(file.getvalue())).SerializeToString()
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    for size in (1, None) if batched else (None,):
        given = {name: value[:size] for name, value in inputs.items()}
        with torch.no_grad():
            expected = part(*given.values()).numpy()
        apart = float(np.abs(session.run(None, {n: v.numpy() for n, v in given.items()})[0] - expected).max())
        if not apart < CLOSE:
            raise InputError(f"{type(part).__name__} as ONNX is {apart:.2g} from PyTorch; nothing was written")
    return made


def halved(model: Any) -> Any:
    """Weights that float16 holds exactly, stored so: a cast to float32 stands behind each."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or values.size < 64 or np.abs(values).max() > 65504:
            continue
        half = values.astype(np.float16)
        if np.array_equal(half.astype(np.float32), values):
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def networks(pipe: Any, sides: tuple[int, int, int], tokens: int) -> Iterator[tuple[str, bytes]]:
    """(file, content) of the three networks."""
    pad = pipe.tokenizer.pad_token_id
    ids = torch.tensor([[pipe.tokenizer.bos_token_id, *[pad] * (tokens - 1)]])
    latents = torch.randn(2, *sides, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        words = pipe.text_encoder(ids)[0].expand(2, -1, -1).contiguous()
    yield "text_encoder.onnx", as_onnx(TextEncoder(pipe.text_encoder), {"ids": ids})
    asked = {"sample": latents, "timestep": torch.tensor([500.0, 20.0]), "words": words}
    yield "unet.onnx", as_onnx(Unet(pipe.unet), asked, batched=True)
    yield "decoder.onnx", as_onnx(Decoder(pipe.vae), {"latent": latents[:1]})


def every_run(scheduler: Any, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(calls, run) of a sampler, for those of `COUNTS` that it makes; none of one that ends in noise (inversion)."""
    for calls in COUNTS:
        try:
            scheduler.set_timesteps(calls)
        except InputError:
            continue  # not every sampler makes every number of calls
        made = interchanged(scheduler, sampler=name)
        if made.table.levels.sigma[-1] < made.table.levels.sigma[0]:
            yield calls, made.to_dict()


def samplers(config: Any, guidance: float) -> tuple[list[dict[str, Any]], dict[str, dict[int, Any]]]:
    """What the page lists, and the runs of each file: file -> calls -> run. Samplers that draw nothing are left out.

    Args:
        config: of the model's scheduler.
        guidance: the model's usual, for samplers that go by it.
    """
    listed, files = [], {}
    for number, info in enumerate(sd_ext.list_samplers()):
        own = {"guidance_scale": guidance} if info.name == "auto" else {}
        grids = {}
        for place, grid in enumerate(GRIDS):
            try:
                scheduler = sd_ext.make_scheduler(info.name, config, grid=grid or None, **own)
            except InputError:
                continue  # it has a grid of its own
            if runs := dict(every_run(scheduler, f"{info.name} {grid}".strip())):
                grids[grid] = f"{number}-{place}"
                files[grids[grid]] = runs
        if grids:
            told = {"name": info.name, "order": info.order, "fresh": info.stochastic, "note": info.note}
            listed.append({**told, "mild": info.cls.mild_guidance, "files": grids})
        else:
            print(f"left out, no sampler that draws: {info.name}", file=sys.stderr)
    return listed, files


def runtime(folder: Path) -> dict[str, bytes]:
    """The files of onnxruntime-web. Raises `InputError` without npm or without a network."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("npm, which fetches onnxruntime-web, is not installed")
    done = subprocess.run([npm, "pack", RUNTIME], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"npm pack {RUNTIME} failed: {' '.join(done.stderr.split())[-300:]}")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        found = {name: archive.extractfile(f"package/dist/{name}") for name in RUNTIME_FILES}
        return {f"ort/{name}": file.read() for name, file in found.items() if file}


def content(name: str, work: Path) -> Iterator[tuple[str, bytes]]:
    """(file, content) of all that the page needs of a model."""
    model = find_model(name)
    pipe = model.pipeline(torch_dtype=torch.float32)
    if (kind := type(pipe).__name__) != "StableDiffusionPipeline":
        raise InputError(f"{name}: the page draws with a StableDiffusionPipeline, not with a {kind}")
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise InputError(f"{name}: the page draws from words alone, and this U-Net takes pictures too")
    words, side, tokens = words_of(model) or Words(), pipe.unet.config.sample_size, pipe.tokenizer.model_max_length
    height, width = (side, side) if isinstance(side, int) else side
    guidance = words.guidance or default_guidance(pipe)
    sides = {"channels": pipe.unet.config.in_channels, "height": height, "width": width}
    yield from runtime(work).items()
    yield from networks(pipe, tuple(sides.values()), tokens)
    pipe.tokenizer.save_pretrained(work)
    yield "tokenizer.json", (work / "tokenizer.json").read_bytes()
    listed, files = samplers(dict(pipe.scheduler.config), guidance)
    for file, runs in files.items():
        yield f"samplers/{file}.json", json.dumps(runs, separators=(",", ":")).encode()
    about = {
        "version": sd_ext.__version__, "model": Path(name).name, "tokens": tokens, "latent": sides,
        "guidance": guidance, "counts": COUNTS, "samplers": listed, "colours": list(words.colours),
        "styles": {kind: phrases[0] for kind, phrases in words.styles.items()},
        "things": {kind: [each.names[0] for each in things] for kind, things in words.things.items()},
    }  # fmt: skip
    yield "model.json", json.dumps(about).encode()


def main() -> None:
    """Read the command line, and make the folder."""
    parser = argparse.ArgumentParser(description="Make what the live page draws with.")
    parser.add_argument("--model", default="embedded", help="pipeline folder or file; the embedded model unless told")
    parser.add_argument("--out", type=Path, default=HERE / "made", help="the folder; docs/live/made unless told")
    asked = parser.parse_args()
    if asked.out.exists() and not (asked.out / "model.json").is_file():
        raise InputError(f"{asked.out} is there and is none of this script's folders; name another")
    with tempfile.TemporaryDirectory() as work, whole.folder(asked.out, overwrite=True) as new:
        total = 0
        for name, data in content(asked.model, Path(work)):
            whole.write_bytes(new / name, data)
            total += len(data)
            print(f"{name:<40} {len(data) / 1e3:>10,.0f} kB", file=sys.stderr) if "/" not in name else None
    print(f"{asked.out}: {total / 1e6:.1f} MB; python -m http.server -d {HERE} shows the page")


if __name__ == "__main__":
    try:
        main()
    except InputError as problem:
        sys.exit(str(problem))
