"""Reference WordPiece tokenizers and encodings, by the Python `tokenizers` package.

    pip install tokenizers
    python tests/golden/wordpiece.py [FOLDER]      (FOLDER holds MiniLM's tokenizer.json)

Writes tiny-wordpiece.json (a small BERT tokenizer trained on the corpus of tokenizer.py) and wordpiece-encodings.json:
  uncased, cased   per text its ids, and their text again; the cased one keeps case, accents and Chinese words
  minilm           the same by MiniLM's own vocabulary, where it is given
  characters       for every character c the ids of `acb`, as runs [first, last, ids]: what is dropped, splits or is a letter
"""

import json
import os
import sys

import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog doesn't mind; it's lazy, and they're friends.",
    "Portolan charts led sailors from port to port along the coast, long before the ocean had names.",
    "A chart is a map of the sea; the sea is a map of the chart. I'll say we've seen 1234567890 of them.",
    "Über die Straße, naïve café, señor, Ωμέγα, Москва, 東京, 안녕, नमस्ते, مرحبا, שלום.",
]

TEXTS = [
    "",
    " ",
    "\t\n\r ",
    "Hello, world!",
    "  leading and trailing  ",
    "tab\there\r\nand\u000bvertical\u000cfeed\u0085next",
    "it's they're I'll we've you'd I'm don't do not",
    "UPPER lower MiXeD ÀÉÎÕÜ àéîõü",
    "Straße STRASSE ﬁne ﬀ İstanbul ıI Ǆ ǅ ΌΣΟΣ ὈΔΥΣΣΕΎΣ",
    "e\u0301 versus \u00e9, n\u0303 versus \u00f1, \u1e69 s\u0323\u0307 s\u0307\u0323",
    "a\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307b zalgo",
    "\u0301 alone, \u0301\u0301",
    "東京タワー 中文測試 漢字かな交じり文 안녕하세요 \uf900\U00020000\U0002b820\U0002b920",
    "नमस्ते مَرْحَبًا שָׁלוֹם ภาษาไทย Việt Nam",
    "zero\u200bwidth\u200djoin\ufeffbom soft\u00adhyphen nbsp\u00a0here em\u2003space ideographic\u3000space line\u2028sep para\u2029sep",
    "null\u0000 bell\u0007 escape\u001b[31m delete\u007f private\ue000 replacement\ufffd",
    "\u202eright to left\u202c \u2066isolate\u2069 tag\U000e0041",
    "punct: !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ done",
    "\u201cquotes\u201d \u2018single\u2019 \u2014dash\u2013 \u2026 \u00bf\u00a1 \u00a7\u00b6 \u3001\u3002 \u00ab\u00bb",
    "money $5 \u20ac5 \u00a35 +1 a=b x<y \u00d7\u00f7\u00b1 \u00ac \u00a6 \u2192 \u221e",
    "\U0001F468\u200D\U0001F469\u200D\U0001F467 family \U0001F3F3\uFE0F\u200D\U0001F308 flag \U0001F44D\U0001F3FD",
    "[CLS] hi [SEP] [MASK] [UNK] [PAD] [cls] [ CLS ]",
    "a[MASK]b[SEP]",
    "##ing ## # a##b",
    "1234567890 3.14159 1e-9 0x7fff x\u00b2+y\u00b3 \u2460 \u2167 \u0663\u0664",
    "https://example.org/a?b=c&d=%20e user@mail.example",
    "snake_case camelCase kebab-case",
    "a" * 100,
    "a" * 101,
    "\u0301" * 3 + "a" * 100,
    "\u00e9" * 100 + " " + "\u00e9" * 101,
    "the " * 300,
    "The quick brown fox jumps over the lazy dog, doesn't it? Yes: it does n't!",
]


def bert(tok, lowercase):
    tok.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=lowercase, strip_accents=None, lowercase=lowercase
    )
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece(prefix="##", cleanup=lowercase)
    cls, sep = tok.token_to_id("[CLS]"), tok.token_to_id("[SEP]")
    if lowercase:
        tok.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
        )
    else:
        tok.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    return tok


def tiny(lowercase=True):
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tok.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=420, special_tokens=SPECIAL, show_progress=False, initial_alphabet=list(LETTERS)
    )
    tok.train_from_iterator(CORPUS, trainer)
    return bert(tok, lowercase)


def encodings(tok):
    out = []
    for text in TEXTS:
        tok.encode_special_tokens = True
        plain = tok.encode(text, add_special_tokens=False).ids
        tok.encode_special_tokens = False
        parsed = tok.encode(text, add_special_tokens=False).ids
        around = tok.encode(text, add_special_tokens=True).ids
        out.append({
            "text": text, "plain": plain, "special": parsed, "around": around,
            "decoded": tok.decode(parsed, skip_special_tokens=True),
            "decoded_special": tok.decode(parsed, skip_special_tokens=False),
        })
    return out


def characters():
    tokens = ["[UNK]", "ab", *LETTERS, *("##" + letter for letter in LETTERS)]
    tok = Tokenizer(models.WordPiece({token: at for at, token in enumerate(tokens)}, unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer()
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    runs = []
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000:
            continue
        ids = tok.encode(f"a{chr(code)}b").ids
        if runs and runs[-1][2] == ids and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code, ids])
    return {"tokens": tokens, "runs": runs}


def main():
    uncased = tiny()
    with open(os.path.join(HERE, "tiny-wordpiece.json"), "w") as out:
        json.dump(json.loads(uncased.to_str()), out, ensure_ascii=False, separators=(",", ":"))
        out.write("\n")
    cased = bert(Tokenizer.from_str(uncased.to_str()), False)
    result = {"versions": {"tokenizers": tokenizers.__version__}}
    result |= {"uncased": encodings(uncased), "cased": encodings(cased), "characters": characters()}
    if len(sys.argv) > 1:
        tok = Tokenizer.from_file(os.path.join(sys.argv[1], "tokenizer.json"))
        tok.no_padding()
        tok.no_truncation()
        result["minilm"] = encodings(tok)
    with open(os.path.join(HERE, "wordpiece-encodings.json"), "w") as out:
        json.dump(result, out, ensure_ascii=True, separators=(",", ":"))
        out.write("\n")
    print(len(result["characters"]["runs"]), "runs of characters")


main()
