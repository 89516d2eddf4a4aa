"""Graphs of ComfyUI: which words, numbers and sizes they mean, and that what is not taken is named."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd_ext.cli.pictures import read_told
from sd_ext.errors import InputError

PICTURE = Image.radial_gradient("L").resize((64, 96)).convert("RGB")

GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 7, "steps": 20, "cfg": 8.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
        "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ["11", 0], "clip": ["10", 1]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
    "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "fur.safetensors", "model": ["4", 0], "clip": ["4", 1]}},
    "11": {"class_type": "PrimitiveString", "inputs": {"value": "a dog"}},
}  # fmt: skip


def comfy(tmp_path, graph) -> object:
    chunks = PngInfo()
    chunks.add_text("prompt", graph if isinstance(graph, str) else json.dumps(graph))
    chunks.add_text("workflow", "{}")
    PICTURE.save(tmp_path / "a.png", pnginfo=chunks)
    return read_told(tmp_path / "a.png")


def test_pictures_of_comfyui(tmp_path):
    told = comfy(tmp_path, GRAPH)
    assert told.program == "ComfyUI"
    assert told.settings == {
        "prompt": "a cat", "negative": "a dog", "seed": 7, "steps": 20, "guidance": 8.0, "sampler": "dpmpp_2m",
        "grid": "karras", "size": "512x640", "like": "comfyui",
    }  # fmt: skip
    assert set(told.dropped) == {"model sd15.safetensors", "LoRA fur.safetensors"}
    exif = Image.Exif()
    exif[0x010F] = "prompt:" + json.dumps(GRAPH)  # as ComfyUI writes it into WebP
    PICTURE.save(tmp_path / "a.webp", exif=exif)
    assert read_told(tmp_path / "a.webp") == told


def test_the_last_of_two_samplers_is_told(tmp_path):
    second = {
        "class_type": "KSampler",
        "inputs": {**GRAPH["3"]["inputs"], "seed": 8, "denoise": 0.5, "latent_image": ["3", 0]},
    }
    told = comfy(tmp_path, {**GRAPH, "12": second})
    assert told.settings["seed"] == 8
    assert {"denoise 0.5", "1 further samplers"} <= set(told.dropped)


@pytest.mark.parametrize("graph", ["[1]", "{", "3", '{"3": 4}', '{"3": {"class_type": 1, "inputs": {}}}'])
def test_what_is_no_graph_is_refused(tmp_path, graph):
    with pytest.raises(InputError, match=r"a\.png"):
        comfy(tmp_path, graph)


def test_graphs_that_go_in_circles_end(tmp_path):
    graph = {"1": {"class_type": "KSampler", "inputs": {"positive": ["2", 0], "steps": ["1", 0]}},
             "2": {"class_type": "X", "inputs": {"text": ["1", 0]}}}  # fmt: skip
    assert comfy(tmp_path, graph).settings == {}


def node(kind, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def words(text) -> dict:
    return node("CLIPTextEncode", text=text, clip=["4", 1])


def changed(tmp_path, sampler=(), **nodes):
    """What is told of the graph with other inputs of its sampler and further nodes, whose names begin with `n`."""
    graph = deepcopy(GRAPH)
    graph["3"]["inputs"] |= dict(sampler)
    return comfy(tmp_path, graph | {name.removeprefix("n"): each for name, each in nodes.items()})


@pytest.mark.parametrize(
    "kind", ["ControlNetApplyAdvanced", "ControlNetApplySD3", "InpaintModelConditioning", "Unheard"]
)
def test_a_node_with_both_sides_passes_each_on(tmp_path, kind):
    both = node(kind, positive=["6", 0], negative=["7", 0], control_net=["21", 0])
    net = node("ControlNetLoader", control_net_name="depth")
    told = changed(tmp_path, {"positive": ["20", 0], "negative": ["20", 1]}, n20=both, n21=net)
    assert (told.settings["prompt"], told.settings["negative"]) == ("a cat", "a dog")
    assert {f"node {kind}", "node ControlNetLoader"} <= set(told.dropped)
    again = node(kind, positive=["20", 1], negative=["20", 0])
    told = changed(tmp_path, {"positive": ["22", 0], "negative": ["22", 1]}, n20=both, n21=net, n22=again)
    assert (told.settings["prompt"], told.settings["negative"]) == ("a dog", "a cat")


def test_a_loader_with_both_texts_gives_each_its_side(tmp_path):
    loader = node("Efficient Loader", ckpt_name="m", positive=["6", 0], negative="a fish", empty_latent_width=64,
                  empty_latent_height=96)  # fmt: skip
    links = {"positive": ["20", 1], "negative": ["20", 2], "latent_image": ["20", 3]}
    told = changed(tmp_path, links, n20=loader)
    assert (told.settings["prompt"], told.settings["negative"], told.settings["size"]) == ("a cat", "a fish", "64x96")
    pipe = node("ToBasicPipe", model=["4", 0], positive=["6", 0], negative=["7", 0])
    links = {"positive": ["21", 3], "negative": ["21", 4]}
    told = changed(tmp_path, links, n20=pipe, n21=node("FromBasicPipe", basic_pipe=["20", 0]))
    assert (told.settings["prompt"], told.settings["negative"]) == ("a cat", "a dog")


def test_a_conditioning_without_meaning_is_no_words(tmp_path):
    told = changed(tmp_path, {"negative": ["20", 0]}, n20=node("ConditioningZeroOut", conditioning=["6", 0]))
    assert told.settings["prompt"] == "a cat" and "negative" not in told.settings


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("ConditioningCombine", ("conditioning_1", "conditioning_2")),
        ("ConditioningConcat", ("conditioning_to", "conditioning_from")),
        ("ConditioningAverage", ("conditioning_to", "conditioning_from")),
    ],
)
def test_the_further_of_two_texts_is_said(tmp_path, kind, names):
    for order in (1, -1):
        links = dict(list(zip(names, (["6", 0], ["21", 0]), strict=True))[::order])
        if kind == "ConditioningCombine" and order < 0:
            continue  # which has no first one
        told = changed(tmp_path, {"positive": ["20", 0]}, n20=node(kind, **links), n21=words("on a mat"))
        assert told.settings["prompt"] == "a cat"
        assert f"positive text 'on a mat' ({kind})" in told.dropped


@pytest.mark.parametrize("text", [
    node("StringConcatenate", string_a="a red", string_b=["31", 0], delimiter=", "),
    node("JoinStringMulti", inputcount=2, string_1="a red", string_2=["31", 0], delimiter=", "),
    node("Text Concatenate", text_b=["31", 0], text_a="a red ", delimiter=", ", clean_whitespace="true"),
    node("ShowText|pysssss", text=["32", 0], text_0="stale"),
    node("Text Multiline", text=["32", 0]),
    node("Reroute", **{"": ["32", 0]}),
])  # fmt: skip
def test_linked_texts_are_followed(tmp_path, text):
    further = {"n31": node("PrimitiveString", value="apple"), "n32": node("String Literal", string="a red, apple")}
    told = changed(tmp_path, {"positive": ["20", 0]}, n20=words(["30", 0]), n30=text, **further)
    assert told.settings["prompt"] == "a red, apple"
    assert not [each for each in told.dropped if "text" in each]


@pytest.mark.parametrize("text", [
    node("StringReplace", string="a cat", find="cat", replace="dog"),
    node("StringSubstring", string="a cat", start=0, end=3),
    node("StringConcatenate", string_a="a", string_b=["31", 0], delimiter=" "),
    node("LoadText", file="words.txt"),
])  # fmt: skip
def test_texts_that_a_node_makes_are_said(tmp_path, text):
    told = changed(
        tmp_path, {"positive": ["20", 0]}, n20=words(["30", 0]), n30=text, n31=node("LLM", model="m", seed=1)
    )
    assert "prompt" not in told.settings
    assert f"positive text of {text['class_type']}" in told.dropped


def test_texts_that_encoders_get_apart_are_said(tmp_path):
    two = node("CLIPTextEncodeSDXL", width=4096, height=4096, text_g="a cat", text_l="fine", clip=["4", 1])
    told = changed(tmp_path, {"positive": ["20", 0]}, n20=two)
    assert (told.settings["prompt"], told.settings["size"]) == ("a cat", "512x640")
    assert {"positive text_l 'fine'", "width/height of CLIPTextEncodeSDXL"} <= set(told.dropped)


def test_linked_numbers_are_followed(tmp_path):
    sources = {
        "n20": node("PrimitiveInt", value=30, control_after_generate="fixed"), "n21": node("INTConstant", value=99),
        "n22": node("PrimitiveFloat", value=4.5), "n23": node("Reroute", **{"": ["20", 0]}),
        "n24": node("Sampler Selector", sampler_name="euler"),
        "n25": node("EmptyLatentImage", width=["26", 0], height=64), "n26": node("Int Literal", int=128),
    }  # fmt: skip
    links = {
        "steps": ["23", 0],
        "seed": ["21", 0],
        "cfg": ["22", 0],
        "sampler_name": ["24", 0],
        "latent_image": ["25", 0],
    }
    told = changed(tmp_path, links, **sources)
    expected = {"steps": 30, "seed": 99, "guidance": 4.5, "sampler": "euler", "size": "128x64"}
    assert told.settings.items() >= expected.items()
    assert set(told.dropped) == {"model sd15.safetensors", "LoRA fur.safetensors"}


def test_numbers_that_a_node_makes_are_said_and_not_taken_from_elsewhere(tmp_path):
    links = {"steps": ["20", 0], "seed": ["21", 0], "denoise": ["22", 0], "sampler_name": ["23", 0]}
    second = node("KSampler", **{**GRAPH["3"]["inputs"], "latent_image": ["3", 0], **links})
    sources = {"n20": node("MathExpression", expression="a*2", a=10), "n21": node("Dice", low=1, high=6),
               "n22": node("PrimitiveFloat", value=0.5), "n23": node("Choice", a="euler", b="ddim")}  # fmt: skip
    told = changed(tmp_path, n12=second, **sources)
    assert not {"steps", "seed", "sampler", "grid", "like"} & set(told.settings)
    said = {"steps of MathExpression", "seed of Dice", "denoise 0.5", "sampler_name of Choice", "scheduler karras"}
    assert said | {"1 further samplers"} <= set(told.dropped)


def test_a_sampler_in_parts(tmp_path):
    graph = {
        "1": node("SamplerCustomAdvanced", noise=["2", 0], guider=["3", 0], sampler=["4", 0], sigmas=["5", 0],
                  latent_image=["6", 0]),
        "2": node("RandomNoise", noise_seed=2**64 - 1), "3": node("CFGGuider", model=["7", 0], positive=["8", 0],
                                                                   negative=["9", 0], cfg=3.5),
        "4": node("KSamplerSelect", sampler_name="uni_pc"),
        "5": node("BasicScheduler", model=["7", 0], scheduler="beta", steps=12, denoise=1),
        "6": node("EmptySD3LatentImage", width=64, height=96, batch_size=2), "7": node("UNETLoader", unet_name="net"),
        "8": words("a cat"), "9": words("a dog"),
    }  # fmt: skip
    told = comfy(tmp_path, graph)
    assert told.settings == {
        "prompt": "a cat", "negative": "a dog", "seed": 2**64 - 1, "steps": 12, "guidance": 3.5, "sampler": "uni_pc",
        "grid": "beta", "like": "comfyui", "size": "64x96",
    }  # fmt: skip
    assert told.dropped == ["model net", "batch_size 2"]
    graph["5"] = node("SplitSigmas", sigmas=["10", 0], step=3)
    graph["10"] = node("KarrasScheduler", steps=12, sigma_max=14.6, sigma_min=0.03, rho=7)
    graph["3"] = node("BasicGuider", model=["7", 0], conditioning=["8", 0])
    told = comfy(tmp_path, graph)
    assert told.settings["prompt"] == "a cat" and "grid" not in told.settings
    assert {"sigmas of KarrasScheduler", "node SplitSigmas", "node BasicGuider"} <= set(told.dropped)


def test_the_size_is_that_of_the_latent(tmp_path):
    by = node("LatentUpscaleBy", samples=["5", 0], scale_by=2)
    told = changed(tmp_path, {"latent_image": ["20", 0]}, n20=by)
    assert "size" not in told.settings and "size, which LatentUpscaleBy makes" in told.dropped
    photo = node("VAEEncode", pixels=["21", 0], vae=["4", 2])
    told = changed(tmp_path, {"latent_image": ["20", 0]}, n20=photo, n21=node("LoadImage", image="a.png"))
    assert "size" not in told.settings and {"size, which LoadImage makes", "node LoadImage"} <= set(told.dropped)
    scaled = node("ImageScale", image=["22", 0], width=320, height=64)
    told = changed(tmp_path, {"latent_image": ["20", 0]}, n20=photo, n21=scaled, n22=node("LoadImage", image="a"))
    assert told.settings["size"] == "320x64"


def test_nodes_of_which_nothing_is_taken_are_named(tmp_path):
    lora = node("LoraLoader", lora_name="b", strength_model=0.7, model=["21", 0], clip=["4", 1])
    skip = node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["4", 1])
    told = changed(tmp_path, {"model": ["20", 0], "positive": ["22", 0], "start_at_step": 1, "end_at_step": 10_000},
                   n20=lora, n21=node("FreeU_V2", model=["4", 0], b1=1.3),
                   n22=node("CLIPTextEncode", text="x", clip=["23", 0]), n23=skip)  # fmt: skip
    assert {"LoRA b 0.7", "node FreeU_V2", "start_at_step 1"} <= set(told.dropped)
    assert told.settings["clip_skip"] == 2
    assert not [each for each in told.dropped if "end_at_step" in each]


def test_steps_are_those_of_comfyui(tmp_path):
    """Every sampler and scheduler takes ComfyUI's steps, of which tests/schedulers/test_programs.py has the numbers."""
    import sd_ext
    from sd_ext.schedulers.programs import get_program

    program = get_program("comfyui")
    assert len(program.grids) == 9
    for place, name in enumerate(name for name, entry in program.samplers.items() if "refused" not in entry):
        grid = list(program.grids)[place % len(program.grids)]
        settings = changed(
            tmp_path, {"sampler_name": name.replace(" ", "_"), "scheduler": grid.replace(" ", "_")}
        ).settings
        made = sd_ext.make_scheduler(settings["sampler"], grid=settings["grid"], like=settings["like"])
        assert made.config["grid"] == program.grids[grid]["grid"]
        if name in ("dpm 2", "dpm 2 ancestral", "uni pc", "uni pc bh2"):
            assert made.config["discard_penultimate_sigma"]
        else:
            assert not made.config.get("discard_penultimate_sigma")


def test_hostile_graphs_end_soon(tmp_path):
    """Texts that double at every link, conditionings that do, and long ways."""
    graph = deepcopy(GRAPH)
    for i in range(100, 2000):
        graph[str(i)] = node("StringConcatenate", string_a=[str(i + 1), 0], string_b=[str(i + 1), 0], delimiter="x")
        graph[f"c{i}"] = node("ConditioningCombine", conditioning_1=[f"c{i + 1}", 0], conditioning_2=[f"c{i + 1}", 0])
        graph[f"r{i}"] = node("Reroute", **{"": [f"r{i + 1}", 0]})
    graph["6"]["inputs"]["text"] = ["100", 0]
    graph["3"]["inputs"] |= {"negative": ["c100", 0], "steps": ["r100", 0], "latent_image": ["r100", 0]}
    told = comfy(tmp_path, graph)
    assert not {"prompt", "negative", "steps", "size"} & set(told.settings)
    assert "steps of Reroute" in told.dropped
