"""The fields of the page, in the order of `Settings`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from ..cli.request.model import Weights
from ..cli.request.option import declared
from ..cli.request.sampling import PROGRAMS
from .settings import LABELS, LORAS, Settings
from .work import Desk

OWN = "the model's own"
AS_LEFT = "="
"""The value of a field of the right picture that is as on the left."""
MOST_STEPS = 60  # of the slider; a restored picture may have more
SCHEDULES = "linear", "cosine", "interval"


def samplers() -> list[tuple[str, str]]:
    """(shown, value) of every sampler, the recommended one first."""
    from ..schedulers.registry import list_samplers

    names = [info.name for info in list_samplers() if info.name != "auto"]
    return [("auto (recommended)", "auto"), (OWN, ""), *_alike(names)]


def grids() -> list[tuple[str, str]]:
    """(shown, value) of every grid."""
    from ..schedulers.grids import list_grids

    return [("the sampler's own", ""), *_alike(grid.name for grid in list_grids())]


def presets() -> list[tuple[str, str]]:
    """(shown, value) of every preset of the U-Net."""
    values = next(each.option.values for each in declared(Weights) if each.name == "unet")
    return [(OWN, ""), *_alike(values)]


def _alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Choices that are shown as they are."""
    return [(name, name) for name in names]


def form(desk: Desk) -> dict[str, Any]:
    """Draw the fields where the layout is. Returns name -> component, in the order of `Settings`."""
    import gradio as gr

    plain, made = Settings(model=desk.models.names[0]), dict[str, Any]()

    def put(name: str, kind: Any, **options: Any) -> None:
        label = LABELS.get(name, name)
        made[name] = kind(value=getattr(plain, name), **{"label": label, "elem_id": f"sd-{name}"} | options)

    with gr.Row():
        put("sampler", gr.Dropdown, choices=samplers(), allow_custom_value=True, min_width=140)
        put("grid", gr.Dropdown, choices=grids(), allow_custom_value=True, min_width=140)
    with gr.Row():
        put("steps", gr.Slider, minimum=1, maximum=MOST_STEPS, step=1, min_width=180)
        put("guidance", gr.Textbox, placeholder=OWN, max_lines=1, min_width=130)
    with gr.Row(equal_height=True):
        put("unet", gr.Dropdown, choices=presets(), min_width=140)
        put("seed", gr.Textbox, max_lines=1, min_width=90)
        dice = gr.Button("↻", elem_id="sd-dice", size="sm", min_width=48, scale=0)
    dice.click(None, None, made["seed"], js="() => String(Math.floor(Math.random() * 2 ** 32))", queue=False)
    with gr.Accordion("Model and LoRAs", open=len(desk.models.names) > 1 or bool(desk.loras.names)):
        put("model", gr.Dropdown, choices=desk.models.names)
        choices = [("none", ""), *_alike(desk.loras.names)]
        for n in range(1, LORAS + 1):
            with gr.Row(visible=bool(desk.loras.names)):
                put(f"lora_{n}", gr.Dropdown, choices=choices, label=f"LoRA {n}", min_width=160)
                put(f"strength_{n}", gr.Number, step=0.05, label="Strength", min_width=80)
        if not desk.loras.names:
            gr.HTML('<p class="sd-none">To use LoRAs, start the page with --lora FILE_OR_FOLDER.</p>')
    with gr.Accordion("More", open=False):
        put("negative", gr.Textbox, lines=1, max_lines=4)
        with gr.Row():
            put("size", gr.Textbox, placeholder=f"{OWN}, or 64x96", max_lines=1, min_width=120)
            put("guidance_schedule", gr.Dropdown, choices=[("constant", ""), *_alike(SCHEDULES)],
                allow_custom_value=True, min_width=120)  # fmt: skip
        put("unet_options", gr.Textbox, lines=1, max_lines=6, placeholder="pag_scale=3, one a line")
        with gr.Row():
            put("like", gr.Dropdown, choices=[("this package", ""), *_alike(PROGRAMS)], min_width=120)
            put("clip_skip", gr.Number, precision=0, min_width=80)
            put("plain_prompt", gr.Checkbox, label="Brackets mean nothing", min_width=120)
    return made


def ordered(made: dict[str, Any]) -> list[Any]:
    """The components in the order of the fields of `Settings`."""
    return [made[field.name] for field in fields(Settings)]


def other_form(desk: Desk) -> list[Any]:
    """The fields of the right picture; see `sd_ext.ui.handlers.other`. Each may say "as on the left"."""
    import gradio as gr

    left = ("as on the left", AS_LEFT)
    with gr.Row():
        sampler = gr.Dropdown([left, *samplers()], value="euler", label="Sampler", allow_custom_value=True,
                              elem_id="sd-other-sampler", min_width=140)  # fmt: skip
        grid = gr.Dropdown([left, *grids()], value=AS_LEFT, label="Grid", allow_custom_value=True, min_width=140)
        steps = gr.Textbox("", label="Steps", placeholder="as on the left", max_lines=1, min_width=100,
                           elem_id="sd-other-steps")  # fmt: skip
        guidance = gr.Textbox("", label="Guidance", placeholder="as on the left", max_lines=1, min_width=100)
    with gr.Row():
        unet = gr.Dropdown([left, *presets()], value=AS_LEFT, label="U-Net", min_width=140)
        choices = [left, *_alike(desk.models.names)]
        model = gr.Dropdown(choices, value=AS_LEFT, label="Model", min_width=140)
        loras = gr.Dropdown([left, ("none", "")], value=AS_LEFT, label="LoRAs", min_width=120)
        prompt = gr.Textbox("", label="Prompt", placeholder="as on the left", max_lines=2, min_width=160)
    return [prompt, model, sampler, grid, steps, guidance, unet, loras]
