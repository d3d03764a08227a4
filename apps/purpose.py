"""What a description is for, and what that changes: nothing clever, and said on the page.

The person types a few words ("reading a label", "cruzar la calle"); word lists in six languages sort them into a
purpose, and a fixed table says what the model is asked first, which warning is always given, and whether the words are
cut to an alternative text. The typed words never become part of a prompt. What is not understood changes nothing,
and the page says so.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

MAX_PURPOSE = 120


@dataclass(frozen=True)
class Plan:
    """What is asked of the model, in this order (levels of ``mmslm.prompts``), and what is always said.

    ``first``: asked before the chosen level. ``only``: asked instead of it. ``notices``: warnings given whatever is seen.
    """

    first: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    brief: bool = False

    def levels(self, chosen: str) -> tuple[str, ...]:
        """The levels to ask, each once."""
        return self.only or tuple(dict.fromkeys((*self.first, chosen)))


PLANS: dict[str, Plan] = {
    "move": Plan(first=("hazard",), notices=("moving",)),
    "medicine": Plan(first=("text",), notices=("medicine",)),
    "food": Plan(first=("text",), notices=("food",)),
    "money": Plan(first=("text",), notices=("money",)),
    "touch": Plan(first=("hazard",), notices=("touching",)),
    "publish": Plan(only=("short",), brief=True),
    "read": Plan(first=("text",)),
}
NOTICES = ("moving", "touching")

# In this order: what may hurt somebody is understood before what is only convenient. Chinese words stand alone, the
# others begin a word.
_WORDS: dict[str, str] = {
    "move": r"walk|trip(?:ping)? over|stumbl"
    r"|cross(?:ing)?\b|street|road|traffic|stair|steps?\b|kerb|curb|sidewalk|pavement|path\b|obstacle|way ahead"
    r"|caminar|andar|cruzar|calle|escalera|acera|obst[aá]culo|marcher|traverser|rue\b|escalier|trottoir|obstacle"
    r"|gehen|laufen|(?:ü|ue)berquer|stra(?:ß|ss)e|treppe|gehweg|hindernis|走路|行走|过马路|马路|街道|楼梯|台阶|障碍|المشي|أمشي|عبور"
    r"|أعبر|شارع|الشارع|طريق|الطريق|درج|الدرج|سلم|عائق",
    "medicine": r"medic|pill|tablet|dose|dosage|prescription|pharma|syrup|drug|medicament|m[eé]dic|pastilla|p[ií]ldora|receta"
    r"|dosis|pilule|comprim|ordonnance|medikament|arznei|tablette|dosier|药|服用|剂量|处方|دواء|الدواء|حبوب|حبة|جرعة|وصفة",
    "food": r"food|eat|allerg|ingredient|cook|recipe|meal|drink|expir|best before|comida|comer|alerg|cocinar|caduc|bebida"
    r"|nourriture|manger|cuisin|repas|boisson|p[eé]rem|essen|zutat|kochen|mahlzeit|getr(?:ä|ae)nk|haltbar|食物|食品|吃|过敏"
    r"|配料|做饭|保质期|طعام|الطعام|أكل|آكل|حساسية|مكونات|طبخ|صلاحية",
    "money": r"money|price|bill\b|bills\b|receipt|invoice|bank|cash|coin|pay\b|paying|payment|dinero|precio|factura|recibo"
    r"|billete|pagar|argent|prix|facture|re[cç]u|billet|payer|geld|preis|rechnung|quittung|m(?:ü|ue)nze|bezahl|钱|价格"
    r"|账单|发票|收据|付款|المال|نقود|سعر|السعر|فاتورة|الفاتورة|دفع",
    "touch": r"touch|hot\b|stove|oven|kettle|electri|plug|socket|knife|sharp|broken glass|tool|tocar|caliente|estufa|horno"
    r"|enchufe|cuchillo|toucher|chaud|four\b|prise\b|couteau|anfassen|ber(?:ü|ue)hr|hei(?:ß|ss)|herd|ofen|steckdose"
    r"|messer|触摸|烫|炉|插座|电源|刀|لمس|ألمس|ساخن|فرن|موقد|مقبس|كهرب|سكين",
    "publish": r"alt[ -]text|alternative text|website|web ?page|web ?site|shop page|online|posting|publish|social|blog"
    r"|newsletter|catalog|sitio|p[aá]gina|tienda|publicar|texto alternativo|redes|site\b|boutique|publier"
    r"|texte alternatif|r[eé]seaux|webseite|internetseite|laden|ver(?:ö|oe)ffentlich|alternativtext|katalog|网站|网页|商店"
    r"|发布|社交|替代文本|博客|موقع|الموقع|صفحة|متجر|نشر|أنشر|نص بديل|مدونة",
    "read": r"read|label|sign\b|signs\b|letter|text\b|screen|display|menu|book|document|form\b|leer|etiqueta|letrero|cartel"
    r"|carta|pantalla|texto|documento|lire|[eé]tiquette|panneau|lettre|[eé]cran|texte|lesen|etikett|schild|brief"
    r"|bildschirm|speisekarte|读|阅读|标签|标志|牌子|信件|屏幕|文字|菜单|قراءة|أقرأ|ملصق|لافتة|رسالة|شاشة|نص|قائمة",
}
_CHINESE = re.compile(r"^[\u4e00-\u9fff]")


def _pattern(words: str) -> re.Pattern[str]:
    """Words at the beginning of a word; Chinese, which has no spaces, anywhere."""
    # Bars inside a group do not part words.
    parts = re.split(r"\|(?![^(]*\))", words)
    return re.compile("|".join(part if _CHINESE.match(part) else rf"\b(?:{part})" for part in parts))


_PATTERNS = {name: _pattern(words) for name, words in _WORDS.items()}


def understand(text: str) -> str:
    """The purpose that ``text`` names: a key of ``PLANS``, "other" when nothing is recognised, "" for no text."""
    text = unicodedata.normalize("NFC", text).lower().strip()
    if not text:
        return ""
    return next((name for name in PLANS if _PATTERNS[name].search(text)), "other")


def plan(purpose: str) -> Plan:
    """What a purpose changes; nothing for "other" and ""."""
    return PLANS.get(purpose, Plan())
