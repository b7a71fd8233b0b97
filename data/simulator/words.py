"""Names and titles: words that tell the cluster of a video or product, in the creator's language."""

from functools import cache

from data.hashing import salt_of

#: name | category | nouns of the cluster. Further clusters get made-up words.
_CLUSTERS = (
    "streetwear|fashion|hoodie cargos denim beanie bomber tee",
    "makeup|beauty|lipstick blush eyeliner palette concealer gloss",
    "sneakers|fashion|trainers runners high-tops laces soles collab",
    "gadgets|tech|charger earbuds drone tracker webcam powerbank",
    "home-decor|home|lamp vase cushion mirror rug shelf",
    "skincare|beauty|serum sunscreen cleanser toner moisturiser mask",
    "fitness|sport|dumbbell leggings mat kettlebell shaker bands",
    "street-food|food|noodles dumplings tacos ramen skewers bao",
    "gaming|tech|controller keyboard headset console speedrun monitor",
    "pets|home|leash kibble catnip harness litter puppy",
    "kitchen|home|skillet blender knife airfryer kettle whisk",
    "travel|outdoor|backpack carry-on hostel itinerary passport beach",
    "haircare|beauty|shampoo curls dryer conditioner braid fade",
    "running|sport|marathon tempo vest gels insoles splits",
    "books|culture|novel paperback bookshelf romance thriller review",
    "vintage|fashion|thrift corduroy leather brooch flares blazer",
    "baking|food|sourdough brownie icing cupcake croissant dough",
    "camping|outdoor|tent stove hammock lantern axe thermos",
    "toys|family|puzzle plush blocks railway slime figurine",
    "music|culture|guitar vinyl synth drumkit chorus pedal",
    "baby|family|stroller onesie bottle crib teether carrier",
    "jewellery|fashion|necklace ring bracelet earrings pearl charm",
    "cars|outdoor|detailing exhaust dashcam wheels wax garage",
    "crafts|culture|yarn crochet resin embroidery clay stencil",
)
_FILLERS = (
    "my", "new", "best", "honest", "daily", "easy", "viral", "tiny", "perfect", "first", "weekend", "secret",
    "big", "ultimate", "real",
)  # fmt: skip
_FORMATS = (
    "haul", "review", "unboxing", "routine", "tips", "test", "diary", "finds", "hack", "story", "challenge",
    "guide",
)  # fmt: skip
_TAGS = ("", "-tok", "-haul", "-tips", "-review", "-inspo")
_STYLES = ("classic", "pro", "mini", "urban", "soft", "nordic", "retro", "daily", "prime", "lite")
_SYLLABLES = {
    "en": ("ba", "lor", "mi", "ten", "sha", "ver", "ko", "ril", "da", "mon", "pe", "stra"),
    "de": ("sch", "ung", "ber", "lich", "ein", "hau", "fel", "gro", "kla", "zen", "wer", "tum"),
    "ja": ("カ", "ミ", "ト", "レ", "サ", "ノ", "ユ", "キ", "ハ", "マ", "ル", "ソ"),
    "pt": ("ção", "lha", "mo", "ri", "pa", "nho", "des", "ver", "ca", "ti", "lin", "bra"),
    "fr": ("eau", "ier", "mou", "ra", "le", "quin", "dou", "che", "vi", "par", "tte", "blan"),
}


def cluster_name(cluster: int) -> str:
    """Name of a cluster, such as ``streetwear``."""
    return _CLUSTERS[cluster].split("|")[0] if cluster < len(_CLUSTERS) else f"niche-{cluster}"


def category(cluster: int) -> str:
    """The coarse category of a cluster, such as ``fashion``; several clusters share one."""
    return _CLUSTERS[cluster].split("|")[1] if cluster < len(_CLUSTERS) else f"other-{cluster % 5}"


def tag(code: int) -> str:
    """The tag ``cluster * 8 + number`` of a video."""
    return cluster_name(code // 8) + _TAGS[code % 8]


def brand(row: int) -> str:
    """Name of a brand; distinct for distinct rows."""
    return f"{_made_up('brand', row, 'en').capitalize()} {row}"


def product_noun(cluster: int, style: int) -> str:
    """What the product is, such as ``hoodie``."""
    nouns = _nouns(cluster)
    return nouns[style % len(nouns)]


def product_title(cluster: int, style: int, brand_row: int) -> str:
    """Title of a product: brand, style and noun."""
    return f"{brand(brand_row)} {_STYLES[(style >> 8) % len(_STYLES)]} {product_noun(cluster, style)}"


def video_title(language: str, cluster: int, style: int, noun: str | None) -> str:
    """Title of a video in its language; it names the product where it shows one."""
    nouns = _nouns(cluster)
    words = [
        _FILLERS[style % len(_FILLERS)],
        noun or nouns[(style >> 6) % len(nouns)],
        nouns[(style >> 12) % len(nouns)],
        _FORMATS[(style >> 18) % len(_FORMATS)],
    ]
    return " ".join(_translated(word, language) for word in words)


@cache
def _nouns(cluster: int) -> tuple[str, ...]:
    if cluster < len(_CLUSTERS):
        return tuple(_CLUSTERS[cluster].split("|")[2].split())
    return tuple(_made_up("noun", cluster * 6 + number, "en") for number in range(6))


@cache
def _translated(word: str, language: str) -> str:
    return word if language == "en" else _made_up(word, 0, language)


def _made_up(kind: str, row: int, language: str) -> str:
    syllables = _SYLLABLES[language]
    code = salt_of("word", kind, row, language)
    return "".join(syllables[(code >> (8 * part)) % len(syllables)] for part in range(3))
