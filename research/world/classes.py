"""The demo world: six kinds of avatars, what can vary in each, and how often; every frequency is written here.

Rarity is a matter of antennas, glasses, expressions, clothes, textures and dyed hair. Skin tones and hairstyles are drawn
uniformly and are no attributes; beards and head coverings are left out. Natural hair colours are equally frequent.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple


class Attribute(NamedTuple):
    """What can be rare: its name, the option of the style that draws it, and its values.

    shares: frequencies of the values, of sum 1. drawn: what the option is set to for each value, None for no such part.
    """

    name: str
    option: str
    values: tuple[str, ...]
    drawn: tuple[str | None, ...]
    shares: tuple[float, ...]


class Kind(NamedTuple):
    """A class of pictures. uniform: options whose values are equally frequent and no attributes; fixed: the other options.

    margin: white around the drawing, as a share of its side.
    """

    name: str
    style: str
    margin: float
    attributes: tuple[Attribute, ...]
    uniform: dict[str, list[str] | list[int]]
    fixed: dict[str, Any]


class Design(NamedTuple):
    """Who drew a style, and its licence."""

    title: str
    designer: str
    homepage: str
    source: str
    licence: str
    terms: str


def attribute(text: str) -> Attribute:
    """Read "name option: value 60, value=drawn 30, none 10": percentages; `drawn` is the value where it is left out."""
    head, _, body = text.partition(":")
    name, option = head.split()
    words, percent = zip(*(part.split() for part in body.split(",")), strict=True)
    values = [word.partition("=") for word in words]
    drawn = tuple(None if value == "none" else drawn or value for value, _, drawn in values)
    return Attribute(name, option, tuple(v[0] for v in values), drawn, tuple(float(p) / 100 for p in percent))


def _attributes(text: str) -> tuple[Attribute, ...]:
    return tuple(attribute(line) for line in text.strip().splitlines())


KINDS = (
    Kind(
        "robot",
        "bottts",
        0.03,
        _attributes(
            """
            top top: antenna 60, bulb=bulb01 25, horns 10, radar 4, pyramid 1
            eyes eyes: round 45, bulging 25, visor=eva 15, screen=frame1 9, hearts 4, crosses=dizzy 2
            mouth mouth: smile=smile01 50, teeth=grill03 27, bite 14, signal=diagram 7, tongue=smile02 2
            sides sides: round 60, boxes=squareAssymetric 25, cables=cables02 12, none 3
            texture texture: none 72, dirt=dirty01 21, camouflage=camo01 7
            colour baseColor: blue=1e88e5 41, green=43a047 27, orange=fb8c00 18, grey=757575 10, pink=d81b60 4
            """
        ),
        {"face": ["round01", "square01", "square03", "square04"]},
        {},
    ),
    Kind(
        "pixel face",
        "pixel-art",
        0.0,
        _attributes(
            """
            glasses glasses: none 72, clear=light05 20, dark=dark07 8
            mouth mouth: smile=happy09 52, flat=sad05 27, open=happy01 15, teeth=happy12 6
            clothes clothing: plain=variant05 62, striped=variant13 27, checked=variant06 11
            clothes_colour clothingColor: blue=428bca 50, red=d11141 27, green=00b159 15, yellow=ffc425 6, navy=03396c 2
            hair_colour hairColor: black=28150a 30, brown=83623b 30, blond=cab188 30, blue=009bbd 7, green=91cb15 3
            """
        ),
        {
            "hair": ["short04", "short16", "short10", "long07", "long16", "long03"],
            "skinColor": ["ffdbac", "f5cfa0", "eac393", "e0b687", "cb9e6e", "b68655", "a26d3d", "8d5524"],
        },
        {"eyes": ["variant01"], "eyesColor": ["5b7c8b"], "glassesColor": ["191919"], "mouthColor": ["de0f0d"]}
        | dict.fromkeys(("accessoriesProbability", "beardProbability", "hatProbability"), 0),
    ),
    Kind(
        "bust",
        "personas",
        0.03,
        _attributes(
            """
            eyes eyes: open 54, happy 27, glasses 15, sunglasses 4
            mouth mouth: smile 50, frown 25, surprise 15, laugh=bigSmile 7, pacifier 3
            clothes body: round=rounded 60, square=squared 30, narrow=small 10
            clothes_colour clothingColor: blue=456dff 48, red=e24553 27, green=6dbb58 15, yellow=f3b63a 8, violet=7555ca 2
            hair_colour hairColor: black=201820 30, brown=7a4a2a 30, blond=f2b265 30, pink=e16381 7, green=3eac2c 3
            """
        ),
        {
            "hair": ["shortCombover", "long", "curlyHighTop", "bobCut", "curly", "extraLong"],
            "skinColor": ["eeb4a4", "e7a391", "e5a07e", "d78774", "b16a5b", "92594b", "623d36"],
        },
        {"nose": ["smallRound"], "facialHairProbability": 0},
    ),
    Kind(
        "big smile",
        "big-smile",
        0.0,
        _attributes(
            """
            accessory accessories: none 60, glasses 24, red_nose=clownNose 10, crown=sailormoonCrown 4, cat_ears=catEars 2
            eyes eyes: open=normal 62, closed=sleepy 27, stars=starstruck 11
            mouth mouth: open=openedSmile 52, teeth=teethSmile 27, flat=unimpressed 15, sad=openSad 6
            hair_colour hairColor: black=220f00 30, brown=71472d 30, blond=e9b729 30, violet=605de4 7, teal=238d80 3
            """
        ),
        {
            "hair": ["shortHair", "wavyBob", "bowlCutHair", "straightHair", "bangs", "curlyShortHair"],
            "skinColor": ["ffe4c0", "f5d7b1", "efcc9f", "e2ba87", "c99c62", "a47539", "8c5a2b", "643d19"],
        },
        {"face": ["base"]},
    ),
    Kind(
        "comic head",
        "adventurer",
        0.05,
        _attributes(
            """
            glasses glasses: none 72, square=variant02 20, round=variant04 8
            eyes eyes: open=variant26 52, wink=variant22 27, closed=variant20 15, dazed=variant08 6
            mouth mouth: open=variant26 48, flat=variant10 27, teeth=variant23 15, tongue=variant16 7, scream=variant24 3
            brows eyebrows: plain=variant10 82, heavy=variant01 18
            hair_colour hairColor: black=0e0e0e 29, brown=6a4e35 29, blond=e5d7a3 29, blue=85c2c6 9, green=3eac2c 4
            """
        ),
        {
            "hair": ["short16", "short03", "short10", "long17", "long19", "long13"],
            "skinColor": ["f2d3b1", "ecad80", "9e5622", "763900"],
        },
        {"base": ["default"], "earringsProbability": 0, "featuresProbability": 0},
    ),
    Kind(
        "emoji",
        "fun-emoji",
        0.07,
        _attributes(
            """
            eyes eyes: open=plain 40, closed 23, wink 14, glasses 10, hearts=love 7, stars 3, shades 2, tear=tearDrop 1
            mouth mouth: smile=lilSmile 40, flat=plain 25, laugh=smileLol 15, sad 11, tongue=tongueOut 6, shout 3
            colour backgroundColor: yellow=fcbc34 50, green=71cf62 26, blue=059ff2 15, violet=d84be5 7, red=ff5c5c 2
            """
        ),
        {"rotate": [350, 355, 0, 5, 10], "translateX": [-3, 0, 3], "translateY": [-3, 0, 3]},
        {"radius": 50},
    ),
)

DESIGNS = {
    style: Design(**found)
    for style, found in json.loads(Path(__file__).with_name("designs.json").read_text()).items()
}


def attribution() -> str:
    """Designer and licence of every style, in one line: for the header of weights trained on these pictures."""
    parts = [f'"{d.title}" ({d.source}) by {d.designer}, {d.licence} ({d.terms})' for d in DESIGNS.values()]
    return f"Drawn by DiceBear 9.4.3 (MIT code) from parts of {'; '.join(parts)}; recombined and recoloured"
