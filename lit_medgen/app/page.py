"""The page: what an image is made from on the left, the image on the right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from lit_medgen.app.answers import KEPT_S, Answers, Look, Session, whole
from lit_medgen.app.desk import Desk, Wishes
from lit_medgen.app.maps import colours, encoded, first_class
from lit_medgen.app.views import OWN, WHOLE, windows
from lit_medgen.app.wish_inputs import WishInputs
from lit_medgen.errors import InputError

MAX_AT_ONCE = 16
"""Images of one press of the button."""
MAX_SEED = 2**53 - 1
"""Browsers have no larger whole numbers."""
PLANES = ("axial", "coronal", "sagittal")
AXES = ("left to right", "back to front", "bottom to top")
HERE = Path(__file__).parent
UNAUDITED = (
    "Nobody has looked for copies of training people among these images, as `sample` does: before you give some away, "
    "make them with `sample`, and read its audit."
)
"""What the page says below the files, which it does not audit."""


def refusing(work: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose refusals the visitor reads; they are not logged, as they may be of what was uploaded."""

    @wraps(work)
    def answer(*arguments: Any) -> Any:
        try:
            return work(*arguments)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return answer


class Page:
    """The page of a model.

    Args:
        desk: makes what the visitor wishes.
        name: of the model, as the title says it.
    """

    def __init__(self, desk: Desk, name: str) -> None:
        self.desk, self.spec, self.name, self.answers = desk, desk.spec, name, Answers(desk)
        self.dim = len(self.spec.size)

    def blocks(self) -> gr.Blocks:
        """All of it, with what happens when something is pressed or turned."""
        start = self.answers.start()
        with gr.Blocks(title=self.name, analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as blocks:
            gr.Markdown(self._heading())
            self.session = gr.State(start)
            with gr.Row():
                if start.label_map:
                    with gr.Column(scale=5):
                        self._map_inputs(start)
                with gr.Column(scale=3):
                    if self.answers.takes_source:
                        self._source_input()
                    self._wishes()
                with gr.Column(scale=5 if self.dim == 2 else 9):
                    self._image()
            self._connect(takes_map=start.label_map is not None)
        return blocks

    def _heading(self) -> str:
        size, mm = (" x ".join(f"{value:.3g}" for value in each) for each in (self.spec.size, self.spec.spacing_mm))
        kind = type(self.desk.model).__name__
        of = "voxels" if self.dim == 3 else "pixels"
        said = f"{kind}, images of {size} {of} of {mm} mm. Not for diagnosis. Nothing leaves this machine."
        return f"### {self.name}\n{said}"

    # What there is.

    def _map_inputs(self, start: Session) -> None:
        """Ways to start a map, and the map to paint on."""
        label_map, num_maps = start.label_map, self.desk.num_maps
        assert label_map is not None
        with gr.Row():
            empty = gr.Button("Empty body", size="sm")
            file = gr.UploadButton("Open a map (PNG, NIfTI)", size="sm", file_types=[".png", ".nii", ".gz"])
        with gr.Row(visible=num_maps > 0, equal_height=True):
            of_data = gr.Button("Map of a test person, number", size="sm", scale=3)
            number = gr.Number(0, precision=0, minimum=0, maximum=max(0, num_maps - 1), container=False, min_width=60)
        self.painter = gr.HTML(
            value=encoded(label_map.plane(start.index)),
            html_template=(HERE / "painter.html").read_text(),
            css_template=(HERE / "painter.css").read_text(),
            js_on_load=(HERE / "painter.js").read_text(),
            names=list(self.spec.classes),
            colours=colours(len(self.spec.classes)),
            spacing_mm=list(self.spec.spacing_mm[:2]),
            first_class=first_class(self.spec.classes),
        )
        num, answers = label_map.num_slices, self.answers
        self.slice = gr.Slider(0, max(1, num - 1), start.index, step=1, label="axial slice", visible=num > 1)
        outputs = [self.session, self.painter, self.slice]
        empty.click(self._with_map(answers.empty), self.session, outputs, api_name="empty_body")
        of_data.click(self._with_map(answers.map_of_data), [self.session, number], outputs, api_name="map_of_data")
        file.upload(self._with_map(answers.opened), [self.session, file], outputs, api_name="open_map")
        self.slice.release(self._with_map(answers.turned), outputs, outputs, api_visibility="private")

    def _with_map(self, work: Callable[..., Session]) -> Callable[..., Any]:
        """The function, with the slice of its session's map for the browser."""

        def answer(*arguments: Any) -> tuple[Session, str, int]:
            session = work(*arguments)
            assert session.label_map is not None
            return session, encoded(session.label_map.plane(session.index)), session.index

        return refusing(answer)

    def _source_input(self) -> None:
        file = gr.UploadButton("Open the source image")
        said = gr.Markdown("No source yet: an image like those that the model was trained on.")

        def answer(session: Session, path: str) -> tuple[Session, str]:
            return self.answers.sourced(session, path), "The source is here: press Make."

        file.upload(refusing(answer), [self.session, file], [self.session, said], api_name="open_source")

    def _wishes(self) -> None:
        """Attributes, seed, steps, scales of guidance and the button."""
        model, most = self.desk.model, self.desk.max_steps or 1
        self.attributes = WishInputs(model, self.spec)
        self.seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=MAX_SEED)
        self.num = gr.Slider(1, MAX_AT_ONCE, 1, step=1, label="images (this seed and those after it)")
        own = model.num_sampling_steps or 1
        self.steps = gr.Slider(1, max(2, most), own, step=1, label="steps of sampling", visible=most > 1)
        self.scales = {
            name: gr.Slider(0, max(10.0, 2 * value), value, step=0.1, label=name.replace("_", " "))
            for name, value in model.guidance_scales.items()
        }
        self.button = gr.Button("Make", variant="primary")

    def _image(self) -> None:
        """The image, how it is looked at, and its files."""
        self.said = gr.Markdown("Nothing made yet.")
        labels = PLANES if self.dim == 3 else ("slice",)
        with gr.Row():
            self.pictures = [
                gr.Image(label=label, format="png", interactive=False, buttons=["fullscreen"]) for label in labels
            ]
        lengths = zip(self.spec.size, AXES, strict=False) if self.dim == 3 else ()
        with gr.Row():
            self.at = [gr.Slider(0, length - 1, length // 2, step=1, label=label) for length, label in lengths]
        names, colour = list(self.spec.named_channels), self.spec.is_colour
        self.channel = gr.Radio(names, value=names[0], label="channel", visible=len(names) > 1 and not colour)
        low, high = self.spec.intensity_window
        label = "window, HU" if self.spec.intensity_unit == "HU" else "window"
        self.window = gr.Radio([*windows(self.spec), OWN], value=WHOLE, label=label, visible=not colour)
        with gr.Row(visible=False) as self.own:
            self.level = gr.Slider(low, high, (low + high) / 2, label="level")
            self.width = gr.Slider((high - low) / 200, high - low, high - low, label="width")
        with gr.Row():
            labels = ("PNG, as shown", "NIfTI", "DICOM" if self.dim == 2 else "DICOM (zip)")
            self.downloads = [gr.DownloadButton(label, interactive=False, size="sm", min_width=90) for label in labels]
        gr.Markdown(UNAUDITED)
        self.gallery = gr.Gallery(
            label="all of them", format="png", columns=4, height=200, allow_preview=False, visible=False, buttons=[]
        )

    # What happens.

    def _connect(self, takes_map: bool) -> None:
        """Images are made when the button is pressed; they, and their files, are shown when anything changes."""
        inputs = [self.session, self.seed, self.num, self.steps, *self.scales.values(), *self.attributes.components]
        looks: list[Any] = [self.channel, self.window, self.level, self.width, *self.at]
        said, seen = [self.session, self.said, self.gallery], [*self.pictures, self.downloads[0]]
        inputs += [self.painter] if takes_map else []
        pressed = self.button.click(self._make, inputs, said, api_name="make", concurrency_limit=1)
        chosen = self.gallery.select(self._choose, self.session, said[:2], api_visibility="private")
        for event, names in ((pressed, ("look", "files")), (chosen, ("look_again", "files_again"))):
            shown = event.success(refusing(self._look), [self.session, *looks], seen, api_name=names[0])
            shown.success(refusing(self._files), self.session, self.downloads[1:], api_name=names[1])
        gr.on(
            [look.change for look in looks],
            refusing(self._look_if_made),
            [self.session, *looks],
            seen,
            api_visibility="private",
            trigger_mode="always_last",
            show_progress="hidden",
        )
        self.window.change(lambda name: gr.Row(visible=name == OWN), self.window, self.own, api_visibility="private")

    def _make(
        self, session: Session, seed: int | None, num: int, steps: int, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Images one after the other."""
        scales, rest = values[: len(self.scales)], list(values[len(self.scales) :])
        try:
            if session.label_map is not None:
                session = session.painted(rest.pop(), self.desk)
            attributes = self.attributes.attributes(rest)
            guidance = {name: float(value) for name, value in zip(self.scales, scales, strict=True)}
            num_steps = int(steps) if (self.desk.max_steps or 1) > 1 else None
            wishes = Wishes(whole(seed, "seed"), attributes, num_steps, guidance)
            for made, text in self.answers.make(session, wishes, int(num)):
                yield made, text, gr.Gallery(self.answers.thumbnails(made), visible=num > 1)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def _choose(self, session: Session, event: gr.SelectData) -> tuple[Session, str]:
        session = self.answers.chosen(session, int(event.index))
        return session, self.answers.caption(session)

    def _look(self, session: Session, channel: str, window: str, level: float, width: float, *at: int) -> list[Any]:
        """The slices that are looked at, and a file of them."""
        number = self.spec.named_channels.index(channel)
        look = Look([int(voxel) for voxel in at], number, window, level, width)
        pictures = self.answers.pictures(session, look)
        file = self.answers.picture_file(session, pictures)
        return [*pictures, gr.DownloadButton(value=str(file), interactive=True)]

    def _look_if_made(self, session: Session, *looks: Any) -> list[Any]:
        """The same; nothing changes before there is an image."""
        return self._look(session, *looks) if session.made else [gr.skip()] * (len(self.pictures) + 1)

    def _files(self, session: Session) -> list[gr.DownloadButton]:
        return [gr.DownloadButton(value=str(path), interactive=True) for path in self.answers.files(session)]
