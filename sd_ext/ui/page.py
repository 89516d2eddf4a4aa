"""The layout of the page, and which button does what."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..plain_files import read_text
from .form import form, ordered, other_form
from .handlers import Handlers
from .plot import AXES, EXAMPLES
from .words import as_buttons, words_for

HERE = Path(__file__).parent
TITLE = "sd_ext"
FIRST = "a red car"
ONE_AT_A_TIME = {"concurrency_id": "draw", "concurrency_limit": 1, "show_progress": "minimal"}
AT_ONCE = {"queue": False, "show_progress": "hidden"}


def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as Gradio calls it: the visitor's session is its first argument."""
    import gradio as gr

    def called(request: Any, *values: Any) -> Any:
        return function(request.session_hash or "", *values)

    def called_again(request: Any, *values: Any) -> Any:
        yield from function(request.session_hash or "", *values)

    chosen = called_again if inspect.isgeneratorfunction(function) else called
    chosen.__annotations__ = {"request": gr.Request}
    return chosen


def build(handlers: Handlers) -> Any:
    """The page, as a `gradio.Blocks` that has not been launched."""
    import gradio as gr

    desk = handlers.desk
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.HTML(
            "<h1>sd_ext</h1><p>Draw with any sampler, grid and U-Net; every picture remembers how it was made.</p>",
            elem_id="sd-head",
        )
        history, chosen = gr.State([]), gr.State(-1)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=380):
                prompt = gr.Textbox(FIRST, label="Prompt", lines=2, max_lines=6, elem_id="sd-prompt",
                                    submit_btn=False)  # fmt: skip
                with gr.Accordion("Words that the model knows", open=True):
                    words = gr.HTML(as_buttons(words_for(desk.models.source(desk.models.names[0]))), elem_id="sd-known")
                fields = form(desk)
                with gr.Accordion("Settings from a picture", open=False, elem_id="sd-restore"):
                    dropped = gr.File(label="Drop a PNG, JPEG or WebP of sd_ext, AUTOMATIC1111 or ComfyUI",
                                      file_types=[".png", ".jpg", ".jpeg", ".webp"], height=110,
                                      elem_id="sd-dropped")  # fmt: skip
                    restored = gr.HTML("", elem_classes="sd-status", elem_id="sd-restored")
            with gr.Column(scale=7, min_width=420), gr.Tabs():
                with gr.Tab("Draw", id="draw"):
                    draw = _draw_tab(gr)
                with gr.Tab("Side by side", id="two"):
                    pair = _pair_tab(gr, desk)
                with gr.Tab("X/Y plot", id="plot"):
                    plot = _plot_tab(gr)
                with gr.Tab("History", id="history"):
                    shown = gr.Gallery(label="Your pictures", columns=5, height=460, object_fit="contain",
                                       elem_classes="sd-shot", elem_id="sd-history", format="png",
                                       interactive=False, buttons=["download", "fullscreen"])  # fmt: skip
                    take = gr.Button("Take the settings of the chosen picture", elem_id="sd-take")
                    taken = gr.HTML("", elem_classes="sd-status", elem_id="sd-taken")

        form_fields = ordered({"prompt": prompt, **fields})
        on = with_session
        drawn = [draw["picture"], draw["status"], draw["command"], draw["python"], history, shown]
        drawing = gr.on(
            [draw["button"].click, prompt.submit], on(handlers.draw), [history, *form_fields], drawn,
            show_progress_on=draw["status"], api_visibility="private", **ONE_AT_A_TIME,
        )  # fmt: skip
        both = [*pair["pictures"], *pair["under"], pair["slider"], pair["status"], history, shown]
        pairing = pair["button"].click(
            on(handlers.draw_two), [history, *form_fields, *pair["other"]], both,
            show_progress_on=pair["status"], api_visibility="private", **ONE_AT_A_TIME,
        )  # fmt: skip
        axes = [plot["across"], plot["values"], plot["down"], plot["more"], plot["reference"]]
        plotting = plot["button"].click(
            on(handlers.draw_plot), [*axes, *form_fields], [plot["sheet"], plot["page"], plot["status"]],
            show_progress_on=plot["status"], api_visibility="private", **ONE_AT_A_TIME,
        )  # fmt: skip
        for tab, running in ((draw, drawing), (pair, pairing), (plot, plotting)):
            tab["stop"].click(
                on(handlers.stop), None, tab["status"], cancels=[running], api_visibility="private", **AT_ONCE
            )
        for axis, values in ((plot["across"], plot["values"]), (plot["down"], plot["more"])):
            axis.input(on(handlers.example), axis, values, api_visibility="private", **AT_ONCE)
        take_all = [*form_fields]
        dropped.upload(
            on(handlers.restore), [dropped, *take_all], [*take_all, restored], api_visibility="private", **AT_ONCE
        )
        shown.select(_which, None, chosen, api_visibility="private", **AT_ONCE)
        take.click(
            on(handlers.restore_from_history), [history, chosen, *take_all], [*take_all, taken],
            api_visibility="private", **AT_ONCE,
        )  # fmt: skip
        fields["model"].change(on(handlers.words), fields["model"], words, api_visibility="private", **AT_ONCE)
        offers = [fields["model"], *(fields[f"lora_{n}"] for n in (1, 2, 3)), words]
        page.load(on(handlers.opened), fields["model"], offers, api_visibility="private", **AT_ONCE)
        page.unload(_unloading(handlers))
    return page


def _draw_tab(gr: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    with gr.Row():
        made["button"] = gr.Button("Draw", variant="primary", elem_id="sd-draw", scale=3)
        made["stop"] = gr.Button("Stop", elem_id="sd-stop", scale=1)
    made["picture"] = gr.Image(label="Picture", type="filepath", format="png", height=512, interactive=False,
                               elem_classes="sd-shot", elem_id="sd-picture",
                               buttons=["download", "fullscreen"])  # fmt: skip
    made["status"] = gr.HTML("", elem_classes="sd-status", elem_id="sd-status")
    with gr.Accordion("Copy as command, copy as Python", open=False, elem_id="sd-code"), gr.Tabs():
        with gr.Tab("Command"):
            made["command"] = gr.Code("", language="shell", show_label=False, interactive=False, wrap_lines=True,
                                      elem_classes="sd-code", elem_id="sd-command", buttons=["copy"])  # fmt: skip
        with gr.Tab("Python"):
            made["python"] = gr.Code("", language="python", show_label=False, interactive=False, wrap_lines=True,
                                     elem_classes="sd-code", elem_id="sd-python", buttons=["copy"])  # fmt: skip
    return made


def _pair_tab(gr: Any, desk: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    gr.HTML('<p class="sd-none">Left: the settings beside this. Right: from the same seed, with these changed.</p>')
    made["other"] = other_form(desk)
    with gr.Row():
        made["button"] = gr.Button("Draw both", variant="primary", elem_id="sd-draw-both", scale=3)
        made["stop"] = gr.Button("Stop", elem_id="sd-stop-both", scale=1)
    made["pictures"], made["under"] = [], []
    with gr.Row():
        for side in ("left", "right"):
            with gr.Column(min_width=180):
                made["pictures"].append(
                    gr.Image(label=side.title(), type="filepath", format="png", height=330, interactive=False,
                             elem_classes="sd-shot", elem_id=f"sd-{side}", buttons=["download"])
                )  # fmt: skip
                made["under"].append(gr.HTML("", elem_classes="sd-status", elem_id=f"sd-under-{side}"))
    made["status"] = gr.HTML("", elem_classes="sd-status", elem_id="sd-status-both")
    with gr.Accordion("One over the other", open=False):
        made["slider"] = gr.ImageSlider(label="Left and right", type="filepath", format="png", height=420,
                                        interactive=False, elem_classes="sd-shot", elem_id="sd-slider")  # fmt: skip
    return made


def _plot_tab(gr: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    names = list(AXES)
    for key, values, name, label in (("across", "values", "Steps", "Across"), ("down", "more", "Sampler", "Down")):
        with gr.Row():
            choices = names if key == "across" else [("nothing", ""), *((each, each) for each in names)]
            made[key] = gr.Dropdown(choices, value=name, label=label, scale=2, min_width=140, elem_id=f"sd-{key}")
            made[values] = gr.Textbox(EXAMPLES[name], label="Values", placeholder=EXAMPLES[name], scale=3, max_lines=8,
                                      min_width=160, elem_id=f"sd-{key}-values")  # fmt: skip
    made["reference"] = gr.Checkbox(True, label="Measure how far each is from the picture of very many calls")
    with gr.Row():
        made["button"] = gr.Button("Draw the plot", variant="primary", elem_id="sd-draw-plot", scale=3)
        made["stop"] = gr.Button("Stop", elem_id="sd-stop-plot", scale=1)
    made["status"] = gr.HTML("", elem_classes="sd-status", elem_id="sd-status-plot")
    made["sheet"] = gr.Image(label="Plot", type="filepath", format="png", interactive=False, elem_id="sd-sheet",
                             buttons=["download", "fullscreen"])  # fmt: skip
    made["page"] = gr.File(label="As a page with a slider, to keep", interactive=False, height=80, elem_id="sd-page")
    return made


def _which(event: Any) -> int:
    return int(event.index)


def _unloading(handlers: Handlers) -> Callable[..., None]:
    import gradio as gr

    def unloading(request: Any) -> None:
        handlers.left(request.session_hash or "")

    unloading.__annotations__ = {"request": gr.Request}
    _which.__annotations__ = {"event": gr.SelectData}
    return unloading


def look() -> dict[str, Any]:
    """The arguments of `launch` that make the page look as it does. No font and no script comes from elsewhere."""
    import gradio as gr

    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.blue, neutral_hue=gr.themes.colors.slate, radius_size="md", spacing_size="sm",
        font=sans, font_mono=mono,
    ).set(
        button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white", block_label_text_weight="500", block_title_text_weight="500",
    )  # fmt: skip
    css, script = read_text(HERE / "look.css"), read_text(HERE / "look.js")
    return {"theme": theme, "css": css, "js": script, "footer_links": []}
