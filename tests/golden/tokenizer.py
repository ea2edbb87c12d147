"""Reference tokenizers and encodings, by the Python `tokenizers` package.

    pip install tokenizers gguf
    python tests/golden/tokenizer.py [SmolLM2-135M-Instruct.Q4_1.gguf]

Writes tiny-*.json (three small tokenizers trained on the text below: SmolLM2's, Llama 3's and Llama 2's kind) and
tokenizer-encodings.json: for each of them, and for the GGUF's own vocabulary where it is given, the ids of TEXTS.
"""

import json
import os
import sys

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog doesn't mind; it's lazy, and they're friends.",
    "Portolan charts led sailors from port to port along the coast, long before the ocean had names.",
    "fn main() {\n    let x = 10;\n    for i in 0..x {\n        println!(\"{}\", i + 1);\n    }\n}\n",
    "A chart is a map of the sea; the sea is a map of the chart. I'll say we've seen 1234567890 of them.",
    "Über die Straße, naïve café, señor, Ωμέγα, Москва, 東京, 안녕, नमस्ते, مرحبا, שלום.",
]

TEXTS = [
    "",
    " ",
    "   ",
    "Hello, world!",
    " leading and trailing ",
    "two  spaces   three    four",
    "tab\there\t\tthere",
    "line\nbreaks\n\n\nand\r\nwindows\r\n",
    "  \n  indented\n\t\n",
    "it's they're I'll we've you'd I'm don't",
    "IT'S THEY'RE I'LL",
    "1234567890 3.14159 1e-9 0x7fff 12,345",
    "x²+y³=½ ① Ⅷ ٣٤٥ 一二三",
    "fn main() { println!(\"{:?}\", vec![1, 2]); }",
    "def f(x):\n    return x ** 2  # comment\n",
    "https://example.org/a?b=c&d=%20e",
    "snake_case camelCase kebab-case SCREAMING_CASE",
    "Straße naïve café señor",
    "e\u0301 versus \u00e9, n\u0303 versus \u00f1",
    "Ωμέγα Москва 東京タワー 안녕하세요",
    "नमस्ते مرحبا بالعالم שלום עולם ภาษาไทย",
    "\U0001F468\u200D\U0001F469\u200D\U0001F467\u200D\U0001F466 family, \U0001F3F3\uFE0F\u200D\U0001F308 flag, \U0001F44D\U0001F3FD",
    "zero\u200bwidth nbsp\u00a0here em\u2003space line\u2028sep",
    "\u201cquotes\u201d \u2018single\u2019 \u2014 dash \u2026",
    "<|im_start|>user\nHi<|im_end|>\n",
    "a<|im_end|>b <|im_end|> c<|im_end|><|im_end|>",
    "<|im_end <|im_end|",
    "!!!???...,,,;;;---***",
    "a" * 100,
    " " * 67 + "x",
    "The quick brown fox jumps over the lazy dog. " * 3,
]

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(split, ignore_merges=False):
    tok = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tok.pre_tokenizer = split
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return tok


def tiny_smollm():
    return byte_level(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    )


def tiny_llama3():
    tok = byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        ignore_merges=True,
    )
    tok.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]),
        ]
    )
    return tok


def tiny_llama2():
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=tokens, show_progress=False, max_token_length=8)
    # Words apart while training, as SentencePiece does; the finished tokenizer splits nothing.
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tok.train_from_iterator(CORPUS[:4], trainer)
    content = json.loads(tok.to_str())
    content["pre_tokenizer"] = None
    content["added_tokens"] = [t for t in content["added_tokens"] if not t["content"].startswith("<0x")]
    tok = Tokenizer.from_str(json.dumps(content))
    tok.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return tok


def from_gguf(path):
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    assert get("model") == "gpt2" and get("pre") == "smollm"
    tokens = get("tokens")
    merges = [tuple(merge.split(" ")) for merge in get("merges")]
    tok = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges))
    tok.pre_tokenizer = tiny_smollm().pre_tokenizer
    tok.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, get("token_type")) if kind == 3]
    tok.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tok


def encodings(tok):
    out = []
    for text in TEXTS:
        tok.encode_special_tokens = True
        plain = tok.encode(text, add_special_tokens=False).ids
        tok.encode_special_tokens = False
        parsed = tok.encode(text, add_special_tokens=False).ids
        around = tok.encode(text, add_special_tokens=True).ids
        row = {"text": text, "plain": plain, "special": parsed, "around": around}
        row["decoded"] = tok.decode(parsed, skip_special_tokens=True)
        row["decoded_special"] = tok.decode(parsed, skip_special_tokens=False)
        out.append(row)
    return out


def main():
    result = {"versions": {"tokenizers": tokenizers.__version__}}
    for name, tok in [("smollm", tiny_smollm()), ("llama3", tiny_llama3()), ("llama2", tiny_llama2())]:
        file = "tiny-tokenizer.json" if name == "smollm" else f"tiny-tokenizer-{name}.json"
        with open(os.path.join(HERE, file), "w") as out:
            json.dump(json.loads(tok.to_str()), out, ensure_ascii=False, separators=(",", ":"))
            out.write("\n")
        result[name] = encodings(tok)
    if len(sys.argv) > 1:
        import importlib.metadata

        result["versions"]["gguf"] = importlib.metadata.version("gguf")
        result["smollm2"] = encodings(from_gguf(sys.argv[1]))
    with open(os.path.join(HERE, "tokenizer-encodings.json"), "w") as out:
        json.dump(result, out, ensure_ascii=True, separators=(",", ":"))
        out.write("\n")


main()
