#!/usr/bin/env python3
"""Token ids of difficult texts in SmolLM2's own vocabulary by the reference tokenizer, and rendered chats.

Here because the tokenizer of `src/` is checked against Hugging Face `tokenizers`, built from the vocabulary and merges
that a GGUF file carries. Small trained tokenizers of several kinds are in `tokenizer.py`, the model's logits in `smollm2.py`.

Needs: gguf, tokenizers, transformers, jinja2, numpy.
Usage: python tests/golden/smollm2_text.py PATH_TO_GGUF     (SmolLM2-135M-Instruct)

Writes beside this file, in ASCII (everything else is escaped):
  smollm2-tokens.jsonl  per line one text: `text`; `ids`, where the names of special tokens become those tokens;
                        `plain_ids`, where they are ordinary text; `lossless`, whether `plain_ids` decode to the text
                        (the vocabulary lacks 21 bytes, which the reference drops)
  chat.json             the chat template and conversations rendered with it: `messages`, `add_generation_prompt`,
                        `text`, `ids`
"""

import json
import random
import sys
from pathlib import Path

from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import versions

HERE = Path(__file__).resolve().parent

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "\t",
    "\r\n",
    " \n \t\n",
    "a",
    " a",
    "a ",
    "  a  b   c    ",
    "The capital of France is",
    "The capital of France is Paris.",
    "Hello, world! How are you today?",
    "hello\nworld\r\n\r\nnew paragraph\n\n  indented",
    "It's we're they've I'm you'll he'd IT'S WE'RE don't rock'n'roll 'tis ''' 's's",
    "\u2019s curly \u201cquotes\u201d \u2014 dash \u2026",
    "0 1 12 123 1234 12345 3.14159 -1e-10 1,000,000 0xDEADBEEF 2024-02-29T23:59:59Z",
    "v1.2.3-rc.4+build5 a1b2c3 1a 2 b3 \u00bd \u00b2 \u2167 \u0661\u0662\u0663 \u0967\u0968\u0969 \u4e94\u5341",
    "1 2  3   4\t5\n6",
    "fn main() {\n    let x: Vec<u8> = vec![0; 1 << 10];\n    println!(\"{:?}\", &x[..3]);\n}\n",
    "def f(x):\n\tif x != 0:\n\t\treturn x**2 // 3  # comment\n\n\n",
    "#include <stdio.h>\r\nint main(void) { return a->b ? *c++ : ~d ^ 0x7f; }\r\n",
    "<div class=\"a b\">&nbsp;<!-- x --></div>",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\": \"\\u00e9\"}}",
    "SELECT * FROM t WHERE a <> 'b' -- end",
    "https://example.org/path?q=1&r=%20#frag user@example.org C:\\dir\\file.txt",
    "$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$",
    "!!! ??? ... --- === *** ### @@@ ~~~ ^^^ ___ ||| \\\\\\ ///",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case",
    "\u00fcber na\u00efve fa\u00e7ade \u00c5ngstr\u00f6m \u0141\u00f3d\u017a \u0110or\u0111e I\u015f\u0131k \u1e9e",
    "e\u0301 vs \u00e9, n\u0303 vs \u00f1, \u1ed7 o\u0302\u0303",
    "\u0391\u03b8\u03ae\u03bd\u03b1 \u041c\u043e\u0441\u043a\u0432\u0430 \u041a\u0438\u0457\u0432 \u10d7\u10d1\u10d8\u10da\u10d8\u10e1\u10d8 \u0535\u0580\u0587\u0561\u0576",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd, \u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u06f1\u06f2\u06f3",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0ba4\u0bae\u0bbf\u0bb4\u0bcd \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u1019\u103c\u1014\u103a\u1019\u102c",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01 \u3053\u3093\u306b\u3061\u306f\u4e16\u754c \u30ab\u30bf\u30ab\u30ca \uc548\ub155\ud558\uc138\uc694",
    "\U00020000\U0002a6d6 \u9f98\u9750 \U00013080\U00012000",
    "\U0001f600\U0001f680 \u2764\ufe0f \U0001f44d\U0001f3fd",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1eb\U0001f1f7 1\ufe0f\u20e3",
    "zero\u200bwidth \u200c\u200d\u2060 \ufeffbom soft\u00adhyphen \u202ertl\u202c",
    "nbsp\u00a0here \u2003em\u3000ideographic \u2028line\u2029para \u0085nel \u000bvt \u000cff \u1680ogham",
    "nul\u0000byte \u0001\u0002\u0003 \u001b[31mred\u001b[0m \u007f",
    "\u0004\u0006\u0013\u0014\u0016\u001d dropped",
    "\U00050000 and \U0010ffff and \ufffd",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "text<|endoftext|>more <|im_end|> spaced <|im_start|> <|im_start|",
    "<|IM_START|> <|im_start |> <<|im_end|>> <repo_name><reponame><file_sep><empty_output>",
    "pneumonoultramicroscopicsilicovolcanoconiosis Donaudampfschifffahrtselektrizit\u00e4tenhauptbetriebswerk",
    "x" * 3000,
    "ab" * 700 + "1" * 50 + "-" * 300,
    " " * 257 + "end",
    "\n" * 33 + "\t" * 17 + "end" + " " * 64,
    "Once upon a time there was a lighthouse keeper who counted ships. " * 20,
]

# Pieces that meet at awkward borders when strung together at random.
PIECES = [
    " ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "'s", "'ll", "'", "\u2019", "a", "Z", "the", "ing", "\u00e9",
    "\u00df", "\u01c5", "\u02b0", "\u0301", "\u200d", "\ufe0f", "\u4e2d", "\u3042", "\uac00", "\u0e01\u0e31", "\u0915\u094d", "\u05d0", "\u0639", "0", "7",
    "42", "\u00b2", "\u2164", "\u0663", "\u0be7", ".", ",", "!!", "_", "-", "\u2014", "$", "\u20ac", "+", "\u221e", "\U0001f600",
    "\U0001f3fd", "\U00020000", "\U0001d400", "\U0001d7d8", "<|im_end|>", "<|", "|>", "\\n", "//", "{", "}", "\u0000", "\ufffd",
]  # fmt: skip


def random_texts(number, seed):
    chosen = random.Random(seed)
    return ["".join(chosen.choices(PIECES, k=chosen.randint(2, 12))) for _ in range(number)]


CONVERSATIONS = [
    [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "What is the capital of France?"},
    ],
    [
        {"role": "system", "content": "You are terse.\nNever apologise."},
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Hello. What do you need?"},
        {"role": "user", "content": "  2 + 2 = ?  \n"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "\u00bfY en espa\u00f1ol? \U0001f600 <b>&amp;</b> {{ x }}"},
    ],
    [{"role": "user", "content": "Tell me a joke about \"quotes\" and 'apostrophes'."}],
]


def split_before_merging():
    """What GGUF calls the pre-tokenizer `smollm`: every digit alone, then GPT-2's pattern over bytes."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def from_gguf(path, special=True):
    """The reference tokenizer of a GGUF file; without `special`, names of control tokens are ordinary text."""
    reader = GGUFReader(path)

    def value(key):
        return reader.fields["tokenizer." + key].contents()

    assert value("ggml.model") == "gpt2" and value("ggml.pre") == "smollm", "only SmolLM's kind of tokenizer"
    tokens = value("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in value("ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = split_before_merging()
    tokenizer.decoder = decoders.ByteLevel()
    if special:
        control = [t for t, kind in zip(tokens, value("ggml.token_type")) if kind == TokenType.CONTROL]
        tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    return tokenizer, value("chat_template")


def write_ids(path, texts, tokenizer, plain):
    lines = []
    for text in texts:
        plain_ids = plain.encode(text, add_special_tokens=False).ids
        lines.append(
            {
                "text": text,
                "ids": tokenizer.encode(text, add_special_tokens=False).ids,
                "plain_ids": plain_ids,
                "lossless": plain.decode(plain_ids, skip_special_tokens=False) == text,
            }
        )
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    print(f"{path.name}: {len(lines)} texts, {sum(not line['lossless'] for line in lines)} not lossless")


def write_chat(path, tokenizer, template):
    renderer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template)
    chats = []
    for messages in CONVERSATIONS:
        for prompt in (True, False):
            text = renderer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            chats.append({"messages": messages, "add_generation_prompt": prompt, "text": text, "ids": ids})
    lines = ",\n".join(json.dumps(chat) for chat in chats)
    path.write_text(f'{{"template": {json.dumps(template)},\n"chats": [\n{lines}\n]}}\n')


def main():
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} PATH_TO_GGUF")
    texts = TEXTS + random_texts(200, seed=7)
    tokenizer, template = from_gguf(sys.argv[1])
    plain, _ = from_gguf(sys.argv[1], special=False)
    write_ids(HERE / "smollm2-tokens.jsonl", texts, tokenizer, plain)
    write_chat(HERE / "chat.json", tokenizer, template)
    versions.record(__file__, ["gguf", "tokenizers", "transformers", "jinja2", "numpy"])


if __name__ == "__main__":
    main()
