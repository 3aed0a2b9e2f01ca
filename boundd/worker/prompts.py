"""Reads prompt files, and holds the default prompts: everyday scenes in the style of image captions."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from boundd.worker.errors import BadDataError

MAX_PROMPT_CHARACTERS: Final = 10_000
MAX_FILE_BYTES: Final = 64 << 20

_MARKS: Final[Mapping[bytes, str]] = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_LINE_END: Final = re.compile(r"\r\n|\n|\r")
"""Line ends of text files. Other line separators of Unicode (U+2028, form feed…) are part of a prompt."""


def read_prompt_file(path: Path) -> list[str]:
    """The prompts of a file, one per line, without white space around them. Blank lines are skipped.

    The encoding is UTF-8, or the one of the byte-order mark.

    Raises:
        BadDataError: when it can't be read or holds no prompts; names the line if there is one to name.
    """
    try:
        if path.exists() and not path.is_file():
            raise BadDataError(f"--prompts {path}: is no file; give a text file of one prompt a line")
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadDataError(
            f"--prompts {path}: {error.strerror or error}; give a text file of one prompt a line"
        ) from error
    if len(raw) > MAX_FILE_BYTES:
        raise BadDataError(
            f"--prompts {path}: is over {MAX_FILE_BYTES >> 20} MiB; give a text file of one prompt a line"
        )
    lines = _LINE_END.split(_decoded(raw, path))
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise BadDataError(f"--prompts {path}, line {number}: a NUL, as in no text; save it as UTF-8")
        if len(line.strip()) > MAX_PROMPT_CHARACTERS:
            raise BadDataError(
                f"--prompts {path}, line {number}: {len(line):,} characters, and a prompt has at most"
                f" {MAX_PROMPT_CHARACTERS:,}; write one prompt a line"
            )
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise BadDataError(f"--prompts {path}: holds no prompts; write one a line")
    return prompts


def _decoded(raw: bytes, path: Path) -> str:
    mark = next((mark for mark in _MARKS if raw.startswith(mark)), b"")
    encoding = _MARKS.get(mark, "utf-8")
    try:
        return raw[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = 1 + len(_LINE_END.findall(raw[: error.start].decode(encoding, "replace")))
        raise BadDataError(f"--prompts {path}, line {line}: is not {encoding.upper()}; save it as UTF-8") from error


PROMPTS = (
    "A brown dog asleep on a grey sofa beside a window.",
    "Two children fly a red kite on a windy beach.",
    "A plate of spaghetti with tomato sauce and basil.",
    "An old steam locomotive crosses a stone viaduct.",
    "A cyclist waits at a traffic light in the rain.",
    "A bowl of green apples on a wooden kitchen table.",
    "A black cat looks out from under a parked car.",
    "Snow covers the roofs of a small mountain village.",
    "A street market with baskets of oranges and lemons.",
    "A surfer carries a white board towards the waves.",
    "A desk with an open laptop, a lamp and a mug of coffee.",
    "A herd of elephants walks past an acacia at sunset.",
    "A red double-decker bus turns a corner in a city.",
    "A woman in a yellow coat reads a newspaper on a bench.",
    "A lighthouse on a cliff above a stormy sea.",
    "A slice of chocolate cake with a strawberry on top.",
    "Three sailing boats moored in a quiet harbour.",
    "A baseball player swings at a ball in a full stadium.",
    "A narrow street with flower pots on the window sills.",
    "A horse grazes in a meadow in front of a red barn.",
    "A glass vase of tulips in front of a blue wall.",
    "A skier jumps over a bump on a sunny slope.",
    "A bathroom with white tiles, a round mirror and a plant.",
    "A flock of sheep blocks a country road.",
    "A man repairs a bicycle in a cluttered workshop.",
    "A pizza with olives comes out of a brick oven.",
    "A parrot with green and blue feathers on a branch.",
    "An airliner lands on a wet runway at dusk.",
    "A library with tall shelves and a wooden ladder.",
    "A toddler in rubber boots jumps into a puddle.",
    "A wooden bridge over a stream in an autumn forest.",
    "A street musician plays the violin near a fountain.",
    "A tennis racket and two balls on a clay court.",
    "A teddy bear sits on a made bed among pillows.",
    "A farmer drives a green tractor through a field.",
    "A hot-air balloon floats over vineyards at dawn.",
    "A chef slices vegetables on a steel counter.",
    "A giraffe bends down to drink at a water hole.",
    "A neon sign glows above the door of a small diner.",
    "A row of colourful beach huts under a cloudy sky.",
    "A cup of tea and a croissant on a café table.",
    "A fire engine with its ladder raised beside a house.",
    "A skateboarder slides along a metal rail.",
    "An owl sits on a fence post in the snow.",
    "A living room with a piano and a patterned rug.",
    "A fisherman mends a net on a stone quay.",
    "A waterfall drops into a turquoise pool.",
    "A zebra and her foal stand in tall grass.",
    "A clock tower rises over a busy square.",
    "A basket of fresh bread on a checked cloth.",
    "A motorcycle leans against a graffiti wall.",
    "A girl blows out the candles of a birthday cake.",
    "A polar bear walks along the edge of the ice.",
    "An empty train platform at night under yellow lamps.",
    "A squirrel holds a nut on a mossy log.",
    "A greenhouse full of ferns and orchids.",
    "A kitchen with copper pans above the stove.",
    "A football team celebrates a goal on muddy grass.",
    "A sailor's knot in thick rope on a wooden deck.",
    "A suitcase lies open on the floor of a hotel room.",
    "A kingfisher dives into a clear river.",
    "A windmill in a field of red poppies.",
    "A pair of worn leather boots beside a door.",
    "A comet above a desert with tall cacti.",
)
