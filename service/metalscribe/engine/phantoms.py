"""Phrases that Whisper models say when nobody speaks: thanks and credits from the subtitles they were trained with."""

from __future__ import annotations

import unicodedata
from typing import Final

_PHRASES: Final = frozenset(
    {
        # English
        *("you", "thank you", "thank you very much", "thanks", "bye", "bye bye", "the end", "so", "okay", "oh"),
        *("thanks for watching", "thank you for watching", "thank you so much for watching", "see you next time"),
        *("thank you for listening", "please subscribe", "please subscribe to my channel", "like and subscribe"),
        *("dont forget to subscribe", "subtitles by the amaraorg community", "transcription by castingwords"),
        *("ill see you in the next video", "see you in the next video", "music", "applause", "silence"),
        # German, Dutch
        *("vielen dank", "vielen dank fürs zuschauen", "danke fürs zuschauen", "bis zum nächsten mal", "tschüss"),
        *("untertitel der amaraorgcommunity", "untertitel der amaraorg community", "untertitelung des zdf 2020"),
        *("untertitel im auftrag des zdf für funk 2017", "untertitelung aufgrund der amaraorgcommunity"),
        *("ondertitels ingediend door de amaraorg gemeenschap", "bedankt voor het kijken", "tv gelderland 2021"),
        # French
        *("merci", "merci davoir regardé cette vidéo", "soustitres réalisés par la communauté damaraorg"),
        *("soustitrage société radiocanada", "soustitres réalisés para la communauté damaraorg"),
        # Spanish, Portuguese, Italian
        *("gracias", "gracias por ver el video", "gracias por ver", "suscríbete al canal", "obrigado"),
        *("subtítulos realizados por la comunidad de amaraorg", "subtítulos por la comunidad de amaraorg"),
        *("legendas pela comunidade amaraorg", "obrigado por assistir", "sottotitoli creati dalla comunità amaraorg"),
        *("grazie a tutti", "grazie per aver guardato il video", "sottotitoli e revisione a cura di qtss"),
        # Slavic languages
        *("продолжение следует", "субтитры сделал dimatorzok", "субтитры создавал dimatorzok", "спасибо за просмотр"),
        *(
            "редактор субтитров асемкин корректор аегорова",
            "дякую за перегляд",
            "napisy stworzone przez społeczność amaraorg",
        ),
        *("dziękuję za uwagę", "dziękuję za oglądanie", "titulky vytvořil johnyx"),
        # Others
        *(
            "ご視聴ありがとうございました",
            "字幕by索兰娅",
            "字幕由amaraorg社区提供",
            "请不吝点赞订阅转发打赏支持明镜与点点栏目",
        ),
        *(
            "謝謝觀看",
            "谢谢观看",
            "시청해주셔서 감사합니다",
            "mbc 뉴스 이덕영입니다",
            "이덕영입니다",
            "altyazı mk",
            "izlediğiniz için teşekkürler",
        ),
        *("اشتركوا في القناة", "ترجمة نانسي قنقر", "undertexter från amaraorggemenskapen", "tack för att ni tittade"),
    }
)


def is_phantom(text: str) -> bool:
    """Whether a text is one of those phrases, once or several times in a row, and nothing else."""
    plain = "".join(
        character for character in text.casefold() if character.isspace() or _is_word_character(character)
    ).split()
    if not plain:
        return bool(text.strip())
    for length in range(1, len(plain) + 1):
        if len(plain) % length == 0 and plain == plain[:length] * (len(plain) // length):
            return " ".join(plain[:length]) in _PHRASES
    return False


def _is_word_character(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"
