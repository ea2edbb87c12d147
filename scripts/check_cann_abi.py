#!/usr/bin/env python3
"""Writes the C++ unit of check-cann-abi.sh: `check_cann_abi.py OURS REAL`."""

import pathlib
import re
import sys

PRELUDE = """
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace ours {
%s
}

%s

// Two types are the same to a caller when their normal forms are: const behind a pointer is advice, an enumeration is
// an integer of its size, and what a pointer to a struct points to is compared by size where it is defined.
struct aggregate;
template <class T, class = void> struct norm { using type = T; };
template <class T> struct norm<T, std::enable_if_t<std::is_enum_v<T>>> {
    using type = std::conditional_t<sizeof(T) == 4, int32_t, T>;
};
template <> struct norm<uint32_t> { using type = int32_t; };
template <class T> struct norm<T, std::enable_if_t<std::is_class_v<T> || std::is_union_v<T>>> { using type = aggregate; };
template <class T> struct norm<T *, std::enable_if_t<!std::is_function_v<T>>> {
    using type = typename norm<std::remove_const_t<T>>::type *;
};
template <class R, class... A> struct norm<R(A...)> {
    using type = typename norm<R>::type(typename norm<std::remove_const_t<A>>::type...);
};
template <class R, class... A> struct norm<R (*)(A...)> {
    using type = typename norm<R(A...)>::type *;
};
template <class A, class B> constexpr bool same = std::is_same_v<typename norm<A>::type, typename norm<B>::type>;
"""

STRUCTS = ["aclrtMemLocation", "aclrtPhysicalMemProp", "aclrtPtrAttributes", "aclrtMallocConfig", "HcclRootInfo", "HcclSendRecvItem"]


def bare(text):
    return re.sub(r"//[^\n]*", "", re.sub(r"/\*.*?\*/", "", text, flags=re.S))


def main():
    ours, real = map(pathlib.Path, sys.argv[1:])
    mine = bare("".join((ours / name).read_text() for name in ["acl.h", "aclnn.h", "aclnnop.h", "hccl.h"]))
    files = [p for sub in ["acl", "aclnn", "aclnnop", "hccl"] for p in sorted((real / sub).rglob("*.h")) if p.is_file()]
    texts = {path: bare(path.read_text(errors="replace")) for path in files}
    functions = dict.fromkeys(re.findall(r"^[\w ]+[ *](\w+)\([^;{]*\);", mine, re.M | re.S))
    # Whole words that stand before a parenthesis in a header, and where.
    where = {}
    words = set()
    for path, text in texts.items():
        for name in re.findall(r"\b(\w+)\s*\(", text):
            where.setdefault(name, path)
        words.update(re.findall(r"\b\w+\b", text))
    present = [name for name in functions if name in where]
    needed = dict.fromkeys(where[name].relative_to(real) for name in present)
    includes = "".join(f'#include "{path}"\n' for path in needed)
    # Without linkage, the declarations are plain functions of a namespace.
    inside = "".join(re.sub(r'extern "C" \{|#\s*if.*|#\s*endif|#\s*include.*|#\s*define PORTOLAN.*', "", line) + "\n" for line in mine.splitlines())
    inside = re.sub(r"#ifdef __cplusplus\s*\}?\s*", "", inside)
    inside = re.sub(r"^\}\s*$", "", inside, flags=re.M)
    macros = re.findall(r"^#define (\w+) (\w+)$", inside, re.M)
    inside = re.sub(r"^#define.*$", "", inside, flags=re.M)
    print(PRELUDE % (inside, includes))
    for name in present:
        print(f'static_assert(same<decltype(ours::{name}), decltype(::{name})>, "{name}");')
    values = 0
    enumerators = re.findall(r"^    (\w+) = -?\d+,$", mine, re.M)
    for name in enumerators:
        if name in words:
            print(f'static_assert(int(ours::{name}) == int(::{name}), "{name}");')
            values += 1
    for name, value in macros:
        if name in words:
            print(f'static_assert({value} == {name}, "{name}");')
            values += 1
    sizes = 0
    for name in STRUCTS:
        if name in words:
            print(f'static_assert(sizeof(ours::{name}) == sizeof(::{name}), "size of {name}");')
            sizes += 1
    # The last line is the summary.
    unknown = [name for name in enumerators + [name for name, _ in macros] if name not in words]
    print(f"// compared {len(present)} of {len(functions)} functions, {values} of {values + len(unknown)} values, {sizes} of {len(STRUCTS)} sizes; "
          f"not in these headers: {', '.join(unknown) or 'no value'}")


main()
