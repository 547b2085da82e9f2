"""Words: pseudo-words from a syllable grammar, and the plain English that phrases are made of."""

from .dice import Dice


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CLUSTERS = _words("br dr fl gr kr pr sk sv tr vr zh")
ONSETS = (*CLUSTERS, *"bdfghjklmnprstvz")
VOWELS = tuple("aeiou")
CODAS = _words("d k l lm m n nd r rn s sk th v x")

NOUNS = _words(
    "anchor anvil apron arch barrel basket bell bench bird blanket bottle bowl branch bridge broom "
    "bucket candle canvas carpet cellar chair chimney clock cloth comb cradle crown cup curtain "
    "door drum feather fence field fire flute fork garden gate glove hammer harbour harvest hill "
    "kettle key kitchen ladder lamp lantern leaf letter lock loom map market meadow mill mirror "
    "needle net oar orchard oven pebble pepper pillow pipe plate plough pocket pond quilt rain "
    "ribbon river road roof rope saddle salt shadow sheep shelf ship shoe shore silver sledge "
    "smoke spoon stair stone straw table tail thimble thread tower tree tunnel vessel wagon wall "
    "wheel whistle willow window wing wood"
)
ADJECTIVES = _words(
    "ancient bare bitter blue bright broken brown calm cold copper crooked deep distant dry dusty "
    "early empty fallen frozen gentle golden green grey heavy hidden hollow iron large late light "
    "little lonely long lost narrow new old open pale patient plain quiet red rough round rusty "
    "scarlet second sharp short silent slow small smooth soft steep strange sudden tall thin third "
    "warm weary wet white wide wooden yellow"
)
VERBS = _words(
    "borrowed brought bought carried cleaned counted covered described dropped fetched found "
    "followed forgot gathered guarded held inspected kept lifted lost measured mended moved "
    "noticed packed painted polished praised pulled pushed remembered repaired sold sought "
    "sketched stored studied touched turned used wanted watched weighed wrapped"
)
WORKERS = _words(
    "baker boatman captain carpenter child clerk cook doctor driver farmer fisherman gardener "
    "guest guide joiner judge keeper mason merchant miller neighbour painter pilot porter potter "
    "sailor servant shepherd singer smith soldier stranger tailor teacher traveller watchman "
    "weaver widow"
)
MONTHS = _words(
    "January February March April May June July August September October November December"
)


def pseudo_word(dice: Dice, syllables: int) -> str:
    """One lower-case word of that many syllables; only the last one is closed.

    Words of one syllable open with a cluster, or too many would be words of English.
    """
    onsets = CLUSTERS if syllables == 1 else ONSETS
    open_part = "".join(dice.pick(onsets) + dice.pick(VOWELS) for _ in range(syllables))
    return open_part + dice.pick(CODAS)


def new_word(dice: Dice, syllables: int, taken: set[str]) -> str:
    """A capitalised pseudo-word that is not in `taken`; it is added there."""
    while True:
        word = pseudo_word(dice, syllables).capitalize()
        if word not in taken:
            taken.add(word)
            return word


def new_words(dice: Dice, count: int) -> list[str]:
    """`count` different lower-case pseudo-words of one or two syllables."""
    words: dict[str, None] = {}
    while len(words) < count:
        words[pseudo_word(dice, 1 + dice.below(2))] = None
    return list(words)
